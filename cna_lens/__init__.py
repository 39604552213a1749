"""Contrastive neuron attribution on TransformerLens.

Find the 0.1 % of MLP neurons whose activations most separate two prompt sets, prove that they are
causal by scaling them, and show it (arXiv 2605.12290).

    import cna_lens as cl

    model = cl.load_model("organism/instruct")
    circuit = cl.discover(model, cl.load_contrast_set("organism"))
    with cl.steer(model, circuit, multiplier=0.0):
        ...
"""

from cna_lens.circuit import Circuit
from cna_lens.discovery import Contrast, contrast, discover
from cna_lens.errors import CnaLensError
from cna_lens.experiments import Sweep, sweep
from cna_lens.formatting import PromptFormat
from cna_lens.generation import Generation, Sampling, generate
from cna_lens.interventions import ScaleNeurons, fold, random_circuits, steer
from cna_lens.models import load_model
from cna_lens.prompts import ContrastSet, load_contrast_set, load_jbb, load_prompts

__version__ = "0.1.0"

__all__ = [
    "Circuit",
    "CnaLensError",
    "Contrast",
    "ContrastSet",
    "Generation",
    "PromptFormat",
    "Sampling",
    "ScaleNeurons",
    "Sweep",
    "contrast",
    "discover",
    "fold",
    "generate",
    "load_contrast_set",
    "load_jbb",
    "load_model",
    "load_prompts",
    "random_circuits",
    "steer",
    "sweep",
]
