"""Steering: an intervention switched on for a block of code, and off again whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from cna_lens.circuit import Circuit
from cna_lens.errors import InvalidInput
from cna_lens.interventions.base import Intervention, Positions
from cna_lens.interventions.scale import ScaleNeurons

Strength = float | Sequence[float] | Float[Tensor, "batch"]


def as_intervention(what: Circuit | Intervention, positions: Positions = "all") -> Intervention:
    """An intervention as it is; a circuit as the scaling of its neurons.

    Raises:
        InvalidInput: `what` is neither, or positions are asked of an intervention, which has its
            own.
    """
    if isinstance(what, Circuit):
        return ScaleNeurons(what, positions)
    if not isinstance(what, Intervention):
        raise InvalidInput(
            f"{type(what).__name__} is neither a Circuit nor an Intervention (neutral, hooks, ...)"
        )
    if positions != "all":
        raise InvalidInput(
            f"{what.name} has its own positions: {positions!r} goes where it is made, for instance "
            "ScaleNeurons(circuit, positions)"
        )
    return what


def as_strengths(strength: Strength, device: torch.device | str | None) -> Float[Tensor, "batch"]:
    """Strengths as a 1-dimensional float32 tensor; a single number gives one for all rows.

    Raises:
        InvalidInput: no numbers, NaN or infinite ones, or more than one dimension.
    """
    try:
        strengths = torch.as_tensor(strength, dtype=torch.float32, device=device)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"strengths must be numbers, not {strength!r}") from error
    if strengths.dim() > 1 or not strengths.numel() or not bool(strengths.isfinite().all()):
        raise InvalidInput(f"strengths must be finite, one number or one a row, not {strength}")
    return strengths.reshape(-1)


@contextmanager
def steer(
    model: HookedTransformer,
    what: Circuit | Intervention,
    multiplier: Strength = 0.0,
    *,
    positions: Positions = "all",
    prompt_length: int | None = None,
) -> Iterator[HookedTransformer]:
    """Steer everything that `model` does inside the block: forward, generate, run_with_cache.

    Nested blocks compose. Afterwards, also after an exception or Ctrl-C, the hooks are gone and
    the model is bit for bit what it was.

    Args:
        what: a circuit (its neurons are scaled), or any other intervention.
        multiplier: the strength; for a circuit 0 ablates, 1 changes nothing, above 1 amplifies.
            One number, or one for each row of the batches that will be run.
        positions: for a circuit, where in the sequence it is scaled (see `PositionWindow`).
        prompt_length: positions that are prompt; None: found out.

    Raises:
        CircuitMismatch: the intervention is for a model of another shape.
        InvalidInput: a strength is not finite, or positions are unknown.
    """
    intervention = as_intervention(what, positions)
    intervention.check_fits(model)
    strengths = as_strengths(multiplier, model.cfg.device)
    with model.hooks(fwd_hooks=intervention.hooks(strengths, prompt_length)):
        yield model
