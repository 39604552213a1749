"""Contrastive neuron attribution on TransformerLens.

Find the 0.1 % of MLP neurons whose activations most separate two prompt sets, prove that they are
causal by scaling them, and show it (arXiv 2605.12290).

    import cna_lens as cl

    model = cl.load_model("organism/instruct")
    circuit = cl.discover(model, cl.load_contrast_set("organism"))
    with cl.steer(model, circuit, multiplier=0.0):
        ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cna_lens import organism, plotting
    from cna_lens.circuit import Circuit
    from cna_lens.discovery import Contrast, contrast, discover
    from cna_lens.errors import CnaLensError
    from cna_lens.experiments import Sweep, sweep
    from cna_lens.formatting import PromptFormat
    from cna_lens.generation import Generation, Sampling, generate
    from cna_lens.interventions import ScaleNeurons, fold, random_circuits, steer
    from cna_lens.models import load_model
    from cna_lens.prompts import ContrastSet, load_contrast_set, load_jbb, load_prompts

# Importing TransformerLens takes seconds; `cna-lens --help` and `import cna_lens` do not wait.
_HOME = {
    "Circuit": "circuit",
    "CnaLensError": "errors",
    "Contrast": "discovery",
    "ContrastSet": "prompts",
    "Generation": "generation",
    "PromptFormat": "formatting",
    "Sampling": "generation",
    "ScaleNeurons": "interventions",
    "Sweep": "experiments",
    "contrast": "discovery",
    "discover": "discovery",
    "fold": "interventions",
    "generate": "generation",
    "load_contrast_set": "prompts",
    "load_jbb": "prompts",
    "load_model": "models",
    "load_prompts": "prompts",
    "random_circuits": "interventions",
    "steer": "interventions",
    "sweep": "experiments",
}

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
    "organism",
    "plotting",
    "random_circuits",
    "steer",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in ("organism", "plotting"):
        return import_module(f"cna_lens.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'cna_lens' has no attribute {name!r}")
    return getattr(import_module(f"cna_lens.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
