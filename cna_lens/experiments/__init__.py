"""Experiments: each decodes prompts under conditions and returns a tidy pandas table."""

from cna_lens.experiments.conditions import Condition, run_conditions
from cna_lens.experiments.sweep import Sweep, sweep

__all__ = ["Condition", "Sweep", "run_conditions", "sweep"]
