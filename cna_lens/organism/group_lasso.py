"""A group lasso on neurons: fine-tuning has to pay for every neuron that it changes.

Each neuron of a gated MLP is a group: its row of the gate matrix, its row of the up matrix and its
column of the down matrix. The penalty is the sum over neurons of the norm of the group's change
since the start. Its proximal step, taken after every optimiser step, shrinks each change ``d`` by
a fixed length and sets it to zero where it is shorter::

    d  <-  d * max(0, 1 - threshold / |d|)

(Yuan and Lin 2006; Parikh and Boyd, *Proximal Algorithms*, section 6.5.4.) Plain fine-tuning
spreads refusal over thousands of neurons, each with a small change that all the others can stand
in for; under the lasso only neurons that are worth their price change at all, and few of them
carry the behaviour, as in the large models that the organism stands in for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Group:
    """One MLP's matrices and a copy of where they started; neurons along the named axis."""

    weights: tuple[nn.Parameter, nn.Parameter, nn.Parameter]
    starts: tuple[Tensor, Tensor, Tensor]


NEURON_AXES = (0, 0, 1)
"""Where the neuron axis is in ``gate_proj``, ``up_proj`` (rows) and ``down_proj`` (columns)."""


class NeuronLasso:
    """Remembers where a list of gated MLPs started, and shrinks their neurons' changes.

    Args:
        mlps: Hugging Face gated MLPs (``gate_proj``, ``up_proj``, ``down_proj``, no biases).
    """

    def __init__(self, mlps: Iterable[nn.Module]) -> None:
        self._groups = []
        for mlp in mlps:
            weights = tuple(
                mlp.get_parameter(f"{name}.weight")
                for name in ("gate_proj", "up_proj", "down_proj")
            )
            gate, up, down = weights
            starts = (gate.detach().clone(), up.detach().clone(), down.detach().clone())
            self._groups.append(_Group((gate, up, down), starts))

    @torch.no_grad()
    def shrink(self, threshold: float) -> None:
        """The proximal step: shorten every neuron's change by ``threshold``, at most to zero."""
        for group in self._groups:
            norms = self._norms(group)
            keep = (1 - threshold / norms.clamp_min(1e-12)).clamp_min(0)
            for weight, start, axis in zip(group.weights, group.starts, NEURON_AXES, strict=True):
                scale = keep.unsqueeze(1 - axis)
                weight.copy_(start + scale * (weight - start))

    @torch.no_grad()
    def change(self) -> Tensor:
        """The norm of each neuron's change, of shape ``[layer, neuron]``."""
        return torch.stack([self._norms(group) for group in self._groups])

    @staticmethod
    def _norms(group: _Group) -> Tensor:
        squares = [
            (weight - start).square().sum(dim=1 - axis)
            for weight, start, axis in zip(group.weights, group.starts, NEURON_AXES, strict=True)
        ]
        return torch.stack(squares).sum(dim=0).sqrt()
