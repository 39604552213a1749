"""Interventions: one small file a method, all of one protocol (`base.Intervention`)."""

from cna_lens.interventions.base import Intervention, Positions, PositionWindow
from cna_lens.interventions.random import random_circuits
from cna_lens.interventions.scale import ScaleNeurons, fold
from cna_lens.interventions.steering import Strength, as_intervention, as_strengths, steer

__all__ = [
    "Intervention",
    "PositionWindow",
    "Positions",
    "ScaleNeurons",
    "Strength",
    "as_intervention",
    "as_strengths",
    "fold",
    "random_circuits",
    "steer",
]
