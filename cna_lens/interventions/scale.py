"""Scaling neurons: the intervention of contrastive neuron attribution.

Each circuit neuron's activation is multiplied by m while the model runs: 0 ablates, 1 changes
nothing, above 1 amplifies (arXiv 2605.12290, section 3). Scaling a neuron at every position is the
same function as scaling its row of `W_out`, so a fixed multiplier can be *folded* into the weights
and costs nothing at run time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from cna_lens.circuit import Circuit
from cna_lens.errors import CircuitMismatch, InvalidInput
from cna_lens.interventions.base import Hooks, Positions, PositionWindow
from cna_lens.models import hook_post
from cna_lens.provenance import digest


@dataclass(frozen=True)
class ScaleNeurons:
    """Multiply the activations of a circuit's neurons.

    Args:
        circuit: which neurons.
        positions: where in the sequence (see `PositionWindow`).
    """

    circuit: Circuit
    positions: Positions = "all"

    neutral = 1.0

    def __post_init__(self) -> None:
        PositionWindow(self.positions)  # refuse unknown positions here, not in the forward pass

    @property
    def name(self) -> str:
        return f"scale {self.circuit.name}"

    @property
    def identity(self) -> str:
        return digest(["scale", self.positions, *map(str, sorted(self.circuit))])

    def check_fits(self, model: HookedTransformer) -> None:
        self.circuit.check_fits(model)

    def hooks(self, strengths: Float[Tensor, "batch"], prompt_length: int | None = None) -> Hooks:
        window = PositionWindow(self.positions, prompt_length)
        pairs = window.hooks()
        for layer, neurons in self.circuit.by_layer().items():
            index = torch.tensor(neurons, device=strengths.device)
            scale = partial(_scale, index=index, strengths=strengths, window=window)
            pairs.append((hook_post(layer), scale))
        return pairs


def _scale(
    activation: Float[Tensor, "batch pos neuron"],
    hook: Any,
    *,
    index: Int[Tensor, "chosen"],
    strengths: Float[Tensor, "rows"],
    window: PositionWindow,
) -> Float[Tensor, "batch pos neuron"]:
    """The activation with the chosen neurons multiplied, row by row; the input is not changed."""
    covered = window.of(activation.shape[1])
    if covered.start >= covered.stop:
        return activation
    if len(strengths) not in (1, len(activation)):
        raise InvalidInput(f"{len(strengths)} strengths do not fit a batch of {len(activation)}")
    if index.device != activation.device:  # layers spread over several devices
        index, strengths = index.to(activation.device), strengths.to(activation.device)
    part = activation[:, covered]
    factor = strengths.to(activation.dtype)[:, None, None]
    scaled = part.index_copy(2, index, part.index_select(2, index) * factor)
    if part.shape == activation.shape:
        return scaled
    return torch.cat([activation[:, : covered.start], scaled, activation[:, covered.stop :]], dim=1)


@contextmanager
def fold(
    model: HookedTransformer, circuit: Circuit, multiplier: float = 0.0
) -> Iterator[HookedTransformer]:
    """Scale the circuit's rows of `W_out` inside the block; afterwards they are bit for bit back.

    The same function as steering all positions with `multiplier`, at no cost at run time.

    Raises:
        CircuitMismatch: the circuit is for a model of another shape.
        InvalidInput: the multiplier is not finite.
    """
    circuit.check_fits(model)
    if not math.isfinite(multiplier):
        raise InvalidInput(f"the multiplier must be a finite number, not {multiplier}")
    saved: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for layer, neurons in circuit.by_layer().items():
                weight = model.blocks[layer].mlp.W_out
                if not isinstance(weight, Tensor) or not weight.is_floating_point():
                    raise CircuitMismatch(f"layer {layer} has no W_out rows that can be scaled")
                index = torch.tensor(neurons, device=weight.device)
                rows = weight.data[index].clone()
                saved.append((weight, index, rows))
                weight.data[index] = rows * multiplier
        yield model
    finally:
        with torch.no_grad():
            for weight, index, rows in reversed(saved):
                weight.data[index] = rows
