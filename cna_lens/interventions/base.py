"""The one protocol of every intervention, and the positions that it may be limited to.

An intervention knows the strength that changes nothing, and turns strengths (one for each row of
the batch) into TransformerLens hooks. Steering, generation, sweeps and evaluations know only this,
so a new method is one new file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from cna_lens.errors import InvalidInput

HookFunction = Callable[..., Any]
Hooks = list[tuple[str | HookFunction, HookFunction]]
Positions = Literal["all", "prompt", "generated", "last"]


@runtime_checkable
class Intervention(Protocol):
    """Something that changes a forward pass by a strength."""

    @property
    def name(self) -> str:
        """A short label for tables and figures."""

    @property
    def identity(self) -> str:
        """A digest of all that decides its effect: equal identities, equal effect."""

    @property
    def neutral(self) -> float:
        """The strength that changes nothing."""

    def check_fits(self, model: HookedTransformer) -> None:
        """Raises CircuitMismatch where the intervention is not for this model."""

    def hooks(self, strengths: Float[Tensor, "batch"], prompt_length: int | None = None) -> Hooks:
        """Hooks for `run_with_hooks(fwd_hooks=...)`.

        Args:
            strengths: one a row of the batch, or a single one for all rows.
            prompt_length: positions that are prompt; None: found out (see `PositionWindow`).
        """


class PositionWindow:
    """Which positions of the pass at hand an intervention covers.

    - `all`: every position; `prompt`: those of the prompt; `generated`: those after it;
    - `last`: the prompt's last position, where discovery reads the neurons.

    The meaning is the same with and without a key-value cache. Batches are taken to be padded on
    the left, so that all prompts end at one position. Where `prompt_length` is not given, the
    first pass is the prompt; a later pass continues it if it runs on a filled cache, or if it
    repeats the previous pass and adds positions (decoding without a cache). Anything else begins a
    new prompt.
    """

    def __init__(self, positions: Positions, prompt_length: int | None = None) -> None:
        if positions not in get_args(Positions):
            raise InvalidInput(
                f"positions must be one of {', '.join(get_args(Positions))}; not {positions!r}"
            )
        self.positions = positions
        self._given = prompt_length is not None
        self._prompt_length = prompt_length
        self._previous: Float[Tensor, "batch pos d_model"] | None = None
        self._residual: Float[Tensor, "batch pos d_model"] | None = None
        self._offset = 0

    def hooks(self) -> Hooks:
        """The hooks that follow the passes; none where every position is covered."""
        if self.positions == "all":
            return []
        hooks: Hooks = [("blocks.0.attn.hook_attn_scores", self._see_offset)]
        return hooks if self._given else [("blocks.0.hook_resid_pre", self._see_residual), *hooks]

    def of(self, n_positions: int) -> slice:
        """The positions covered, in a pass of `n_positions`."""
        if self.positions == "all" or self._prompt_length is None:
            return slice(0, n_positions)
        end = self._prompt_length
        covered = {
            "prompt": (0, end),
            "generated": (end, self._offset + n_positions),
            "last": (end - 1, end),
        }[self.positions]
        first, stop = (min(max(0, at - self._offset), n_positions) for at in covered)
        return slice(first, stop)

    def _see_residual(self, residual: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        self._residual = residual.detach()

    def _see_offset(self, scores: Float[Tensor, "batch head query key"], hook: Any) -> None:
        n_positions = scores.shape[-2]
        self._offset = scores.shape[-1] - n_positions  # what the key-value cache already held
        if self._given:
            return
        continues = self._offset > 0 or self._repeats_previous()
        if self._prompt_length is None or not continues:
            self._prompt_length = self._offset + n_positions
        # What came out of a cache can only be continued with that cache.
        self._previous = self._residual if self._offset == 0 else None

    def _repeats_previous(self) -> bool:
        before, now = self._previous, self._residual
        if before is None or now is None or before.shape[0] != now.shape[0]:
            return False
        length = before.shape[1]
        return now.shape[1] > length and torch.equal(now[:, :length], before)
