"""One streaming pass over the neurons: a count, a mean and a spread for each, and nothing more.

Prompts are sorted by length, padded on the left and run in batches through `run_with_cache`, which
keeps only `mlp.hook_post` at the position that is read. No logits are computed. Each batch becomes
an `ActivationStatistics`, and those merge exactly (Chan, Golub and LeVeque 1983), so memory does
not grow with the number of prompts and the order of batches, devices and machines does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from cna_lens.errors import CircuitMismatch, InvalidInput, ModelError, NonFiniteActivations
from cna_lens.formatting import PromptFormat
from cna_lens.models import check_hooks, encode, hook_post
from cna_lens.progress import track

Position = int | Literal["last", "mean"]


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Running statistics of every neuron over prompts; `a + b` merges two of them exactly.

    Args:
        count: prompts seen.
        mean: mean activation, float64.
        m2: sum of squared deviations from the mean, float64.
        hits: prompts for which the neuron was among the top `top_fraction` by |activation|.
        top_fraction: share of all neurons that counts as the top.
    """

    count: int
    mean: Float[Tensor, "layer neuron"]
    m2: Float[Tensor, "layer neuron"]
    hits: Int[Tensor, "layer neuron"]
    top_fraction: float

    @classmethod
    def empty(cls, n_layers: int, d_mlp: int, top_fraction: float = 0.001) -> ActivationStatistics:
        """Statistics of no prompts: the identity of merging."""
        zeros = torch.zeros(n_layers, d_mlp, dtype=torch.float64)
        return cls(0, zeros, zeros, zeros.long(), top_fraction)

    @classmethod
    def of(
        cls, activations: Float[Tensor, "batch layer neuron"], top_fraction: float = 0.001
    ) -> ActivationStatistics:
        """Statistics of one batch, computed where the batch is and returned on the CPU."""
        n_prompts, n_layers, d_mlp = activations.shape
        # Apple's GPUs have no float64: there the batch is reduced in float32.
        values = activations.float() if activations.device.type == "mps" else activations.double()
        variance, mean = torch.var_mean(values, dim=0, correction=0)
        k = neuron_count(top_fraction, n_layers * d_mlp)
        top, index = values.flatten(1).abs().topk(k, dim=1)
        hits = torch.zeros(n_layers * d_mlp, dtype=torch.long, device=values.device)
        # A neuron that is silent (exactly 0, after a ReLU) is in no top, however few others fire.
        hits.scatter_add_(0, index.flatten(), (top > 0).long().flatten())
        return cls(
            n_prompts,
            mean.cpu().double(),
            variance.cpu().double() * n_prompts,
            hits.view(n_layers, d_mlp).cpu(),
            top_fraction,
        )

    def __add__(self, other: ActivationStatistics) -> ActivationStatistics:
        """Merge: the statistics of both sets of prompts together.

        Raises:
            CircuitMismatch: the two are of models of different shapes.
            InvalidInput: they count different top fractions.
        """
        if self.mean.shape != other.mean.shape:
            raise CircuitMismatch(
                f"statistics of shapes {tuple(self.mean.shape)} and {tuple(other.mean.shape)} "
                "come from different models and do not merge"
            )
        if self.top_fraction != other.top_fraction:
            raise InvalidInput(
                f"statistics with top fractions {self.top_fraction} and {other.top_fraction} "
                "do not merge"
            )
        if not (self.count and other.count):
            return other if other.count else self
        count = self.count + other.count
        step = other.mean - self.mean
        return ActivationStatistics(
            count,
            self.mean + step * (other.count / count),
            self.m2 + other.m2 + step.square() * (self.count * other.count / count),
            self.hits + other.hits,
            self.top_fraction,
        )

    @property
    def hit_rate(self) -> Float[Tensor, "layer neuron"]:
        """Share of prompts for which each neuron was among the top by |activation|."""
        return self.hits.double() / max(1, self.count)


def measure(
    model: HookedTransformer,
    prompts: Sequence[str],
    *,
    position: Position = "last",
    top_fraction: float = 0.001,
    batch_size: int = 32,
    form: PromptFormat | None = None,
    progress: bool = True,
) -> ActivationStatistics:
    """Statistics of every neuron over `prompts`, in one pass.

    Args:
        position: where a neuron is read: `last` (the last token of the formatted prompt, as in
            the paper), a negative index from the end, or `mean` over the prompt's tokens.
        top_fraction: share of all neurons that counts as a prompt's top, for the universal filter.
        batch_size: prompts in a forward pass.
        form: how prompts are written; default: the model's own format.

    Raises:
        InvalidInput: no prompts (or one string), one longer than the context, or a position
            outside a prompt.
        NonFiniteActivations: a layer gave NaN or infinite activations.
    """
    if not 0 < top_fraction <= 1:
        raise InvalidInput(f"top_fraction must be in (0, 1], not {top_fraction}")
    if not prompts:
        raise InvalidInput("there are no prompts to measure")
    total = ActivationStatistics.empty(model.cfg.n_layers, model.cfg.d_mlp or 0, top_fraction)
    batches = stream(model, prompts, position=position, batch_size=batch_size, form=form)
    with track("activations", len(prompts), progress) as advance:
        for rows, values in batches:
            total = total + ActivationStatistics.of(values, top_fraction)
            advance(len(rows))
    return total


def stream(
    model: HookedTransformer,
    prompts: Sequence[str],
    *,
    position: Position = "last",
    batch_size: int = 32,
    form: PromptFormat | None = None,
) -> Iterator[tuple[list[int], Float[Tensor, "batch layer neuron"]]]:
    """Neuron activations batch by batch: (indices into `prompts`, float32 activations).

    Batches hold prompts of similar length, so they do not come in the order of `prompts`.
    Raises what `measure` raises.
    """
    if batch_size < 1:
        raise InvalidInput(f"batch_size must be at least 1, not {batch_size}")
    check_hooks(model)
    sequences = encode(model, prompts, form)
    _check_position(position, sequences)
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        tokens, mask = pad_left([sequences[row] for row in rows], model.cfg.device)
        values = _run(model, tokens, mask, position)
        if not bool(torch.isfinite(values).all()):
            row, layer = torch.nonzero(~torch.isfinite(values))[0, :2].tolist()
            raise NonFiniteActivations(
                f"layer {layer} gave NaN or infinite activations for the prompt "
                f"{prompts[rows[row]][:60]!r}. Check the weights, or load the model with "
                "dtype float32."
            )
        yield rows, values


def pad_left(
    sequences: Sequence[Sequence[int]], device: torch.device | str | None, pad: int = 0
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Token ids padded on the left to one length, and the mask that is 1 on real tokens."""
    width = max(len(sequence) for sequence in sequences)
    tokens = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        tokens[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return tokens.to(device), mask.to(device)


def neuron_count(fraction: float, total: int) -> int:
    """How many of `total` neurons a fraction is: rounded, at least 1.

    Raises:
        InvalidInput: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InvalidInput(
            f"fraction must be in (0, 1], not {fraction}; the paper's 0.1 % is fraction=0.001"
        )
    return max(1, round(fraction * total))


def _run(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    position: Position,
) -> Float[Tensor, "batch layer neuron"]:
    """One forward pass; `mlp.hook_post` of every layer at `position`, float32."""
    names = [hook_post(layer) for layer in range(model.cfg.n_layers)]
    at = {"last": -1, "mean": None}[position] if isinstance(position, str) else position
    with torch.no_grad():
        _, cache = model.run_with_cache(
            tokens,
            names_filter=names,
            pos_slice=at,
            return_type=None,
            attention_mask=mask,
        )
    device = tokens.device
    values = torch.stack([cache[name].to(device).float() for name in names], dim=1)
    if values.shape[-1] != model.cfg.d_mlp:
        raise ModelError(
            f"{names[0]} has width {values.shape[-1]}, not d_mlp = {model.cfg.d_mlp}: it does not "
            "hold neurons in this model"
        )
    if position != "mean":
        return values[:, :, 0]  # the one position that was kept
    weights = mask.to(values.dtype) / mask.sum(dim=1, keepdim=True)
    return einsum(values, weights, "batch layer pos neuron, batch pos -> batch layer neuron")


def _check_position(position: Position, sequences: list[list[int]]) -> None:
    shortest = min(len(sequence) for sequence in sequences)
    if isinstance(position, str):
        if position not in ("last", "mean"):
            raise InvalidInput(f"position must be 'last', 'mean' or negative, not {position!r}")
    elif not -shortest <= position <= -1:
        raise InvalidInput(
            f"position {position} is not in the shortest prompt, which has {shortest} tokens: use "
            f"-1 (the last) down to {-shortest}"
        )
