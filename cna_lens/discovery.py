"""Contrastive neuron attribution: measure every neuron once, select circuits many times.

    delta[l, j] = mean of a[l, j] over positive prompts - mean of a[l, j] over negative prompts

A circuit is the top 0.1 % of all neurons by |delta|, after *universal* neurons are dropped: those
among the most active for nearly every unrelated prompt (arXiv 2605.12290, section 3). The paper's
reference code computes that filter and does not apply it; here the slots are filled after it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor
from transformer_lens import HookedTransformer

from cna_lens.activations import ActivationStatistics, Position, measure, neuron_count
from cna_lens.circuit import Circuit
from cna_lens.errors import CircuitMismatch, DamagedFile, InvalidInput
from cna_lens.files import write_bytes
from cna_lens.formatting import PromptFormat
from cna_lens.models import describe
from cna_lens.prompts import ContrastSet, load_prompts
from cna_lens.provenance import Provenance, digest

if TYPE_CHECKING:
    import pandas as pd

SelectBy = Literal["delta", "effect_size"]
Sign = Literal["positive", "negative"]

FORMAT = "cna_lens.contrast"
FORMAT_VERSION = "1"


@dataclass(frozen=True, eq=False)
class Contrast:
    """The statistic of every neuron, from which circuits of any size come for free.

    Args:
        delta: mean activation over positive minus over negative prompts, float64.
        pooled_std: pooled standard deviation within the two sides, float64.
        universal: neurons that no circuit may hold.
        n_positive, n_negative: prompts on each side.
        provenance: model, contrast set, position and filter.

    Raises:
        InvalidInput: the three are not of one shape, or a number is not finite.
    """

    delta: Float[Tensor, "layer neuron"]
    pooled_std: Float[Tensor, "layer neuron"]
    universal: Bool[Tensor, "layer neuron"]
    n_positive: int
    n_negative: int
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        shapes = {tuple(getattr(self, name).shape) for name in _TENSORS}
        if len(shapes) != 1 or self.delta.dim() != 2 or self.universal.dtype != torch.bool:
            raise InvalidInput(
                f"a contrast's tensors are not of one [layer, neuron] shape: {shapes}"
            )
        if not bool(torch.isfinite(self.delta).all() and torch.isfinite(self.pooled_std).all()):
            raise InvalidInput("a contrast's delta and pooled_std must be finite")

    @classmethod
    def between(
        cls,
        positive: ActivationStatistics,
        negative: ActivationStatistics,
        universal: Bool[Tensor, "layer neuron"] | None = None,
        provenance: Provenance | None = None,
    ) -> Contrast:
        """The contrast of two measured sides.

        Raises:
            CircuitMismatch: they come from models of different shapes.
        """
        if positive.mean.shape != negative.mean.shape:
            raise CircuitMismatch(
                f"sides of shapes {tuple(positive.mean.shape)} and {tuple(negative.mean.shape)} "
                "come from different models"
            )
        freedom = max(1, positive.count + negative.count - 2)
        if universal is None:
            universal = torch.zeros_like(positive.mean, dtype=torch.bool)
        return cls(
            delta=positive.mean - negative.mean,
            pooled_std=((positive.m2 + negative.m2) / freedom).sqrt(),
            universal=universal,
            n_positive=positive.count,
            n_negative=negative.count,
            provenance=provenance or Provenance(),
        )

    @property
    def effect_size(self) -> Float[Tensor, "layer neuron"]:
        """Cohen's d: delta in pooled standard deviations; 0 for a neuron that never moves.

        A neuron that separates the sides with no spread at all is infinitely many deviations apart.
        """
        return torch.where(self.delta == 0, 0.0, self.delta / self.pooled_std)

    def select(
        self,
        fraction: float = 0.001,
        *,
        k: int | None = None,
        by: SelectBy = "delta",
        sign: Sign | None = None,
    ) -> Circuit:
        """The circuit of the strongest neurons, ranked over all layers together.

        Args:
            fraction: share of all neurons (0.001 is the paper's 0.1 %), at least one neuron.
            k: how many neurons, in place of a fraction.
            by: rank by |delta| (the paper) or by |effect size|.
            sign: only neurons more active (`positive`) or less active (`negative`) on the
                positive side.

        Where fewer neurons are left after the filter and the sign, the circuit has those.

        Raises:
            InvalidInput: fraction outside (0, 1], k below 1, unknown `by` or `sign`, or no neuron
                is left.
        """
        n_layers, d_mlp = self.delta.shape
        if by not in get_args(SelectBy):
            raise InvalidInput(f"by must be 'delta' or 'effect_size', not {by!r}")
        if sign is not None and sign not in get_args(Sign):
            raise InvalidInput(f"sign must be 'positive' or 'negative', not {sign!r}")
        if k is not None and k < 1:
            raise InvalidInput(f"k must be at least 1, not {k}")
        size = k if k is not None else neuron_count(fraction, n_layers * d_mlp)

        score = (self.delta if by == "delta" else self.effect_size).flatten()
        allowed = ~self.universal.flatten()
        if sign is not None:
            allowed &= score > 0 if sign == "positive" else score < 0
        # Stable: equal scores keep the order of (layer, neuron), so a circuit is reproducible.
        ranked = score.abs().argsort(descending=True, stable=True)
        chosen = ranked[allowed[ranked]][:size]
        if not len(chosen):
            raise InvalidInput(f"no neuron is left (sign={sign}, universal filter applied)")
        return Circuit(
            n_layers=n_layers,
            d_mlp=d_mlp,
            layers=tuple((chosen // d_mlp).tolist()),
            neurons=tuple((chosen % d_mlp).tolist()),
            delta=tuple(self.delta.flatten()[chosen].tolist()),
            pooled_std=tuple(self.pooled_std.flatten()[chosen].tolist()),
            provenance=self.provenance.with_settings(by=by, sign=sign, k=len(chosen)),
        )

    def table(self) -> pd.DataFrame:
        """One row a neuron of the model, with its delta, pooled_std, effect_size and universal."""
        import pandas as pd

        n_layers, d_mlp = self.delta.shape
        return pd.DataFrame(
            {
                "layer": torch.arange(n_layers).repeat_interleave(d_mlp).numpy(),
                "neuron": torch.arange(d_mlp).repeat(n_layers).numpy(),
                "delta": self.delta.flatten().numpy(),
                "pooled_std": self.pooled_std.flatten().numpy(),
                "effect_size": self.effect_size.flatten().numpy(),
                "universal": self.universal.flatten().numpy(),
            }
        )

    def save(self, path: str | Path) -> Path:
        """Write the contrast as one safetensors file, provenance in its header.

        Raises:
            OutputError: the place cannot be written.
        """
        head = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "n_positive": str(self.n_positive),
            "n_negative": str(self.n_negative),
            "provenance": json.dumps(self.provenance.to_dict(), sort_keys=True),
        }
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        return write_bytes(path, serialise(tensors, metadata=head))

    @classmethod
    def load(cls, path: str | Path) -> Contrast:
        """Read what `save` wrote.

        Raises:
            InvalidInput: there is no such file.
            DamagedFile: it is not a contrast, or is not whole.
        """
        if not Path(path).is_file():
            raise InvalidInput(f"there is no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                head: dict[str, Any] = file.metadata() or {}
                if head.get("format") != FORMAT:
                    raise DamagedFile(f"{path} is not a contrast file (format {FORMAT!r})")
                if head.get("version") != FORMAT_VERSION:
                    raise DamagedFile(
                        f"{path} is a contrast of format version {head.get('version')}; this "
                        f"cna_lens reads {FORMAT_VERSION}. Install the cna_lens that wrote it."
                    )
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            return cls(
                **tensors,
                n_positive=int(head["n_positive"]),
                n_negative=int(head["n_negative"]),
                provenance=Provenance.from_dict(json.loads(head["provenance"])),
            )
        except DamagedFile:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DamagedFile(f"{path} is a damaged contrast file: {error}") from error


_TENSORS = ("delta", "pooled_std", "universal")


def contrast(
    model: HookedTransformer,
    contrast_set: ContrastSet,
    *,
    position: Position = "last",
    universal_prompts: Sequence[str] | Literal["diverse"] | None = "diverse",
    universal_top: float = 0.001,
    universal_share: float = 0.8,
    batch_size: int = 32,
    form: PromptFormat | None = None,
    progress: bool = True,
) -> Contrast:
    """Measure every neuron on both sides of `contrast_set`.

    Args:
        position: where a neuron is read (see `measure`).
        universal_prompts: diverse, unrelated prompts for the universal filter; `diverse` takes the
            built-in ones, None leaves the filter out.
        universal_top: share of all neurons that is a prompt's top by |activation|.
        universal_share: a neuron in the top for at least this share of prompts is universal.
        batch_size, form, progress: see `measure`.

    Raises:
        InvalidInput: a share outside (0, 1], a prompt longer than the context.
        NonFiniteActivations: a forward pass gave NaN or infinite activations.
    """
    if not 0 < universal_share <= 1:
        raise InvalidInput(f"universal_share must be in (0, 1], not {universal_share}")
    if universal_prompts == "diverse":
        universal_prompts = load_prompts("diverse")

    def side(prompts: Sequence[str]) -> ActivationStatistics:
        return measure(
            model,
            prompts,
            position=position,
            top_fraction=universal_top,
            batch_size=batch_size,
            form=form,
            progress=progress,
        )

    universal = None
    settings: dict[str, Any] = {"position": position}
    if universal_prompts is not None:
        universal = side(universal_prompts).hit_rate >= universal_share
        settings["universal"] = {
            "prompts": digest(universal_prompts),
            "top": universal_top,
            "share": universal_share,
            "dropped": int(universal.sum()),
        }
    origin = describe(model, form)
    return Contrast.between(
        side(contrast_set.positive),
        side(contrast_set.negative),
        universal,
        Provenance(
            **{
                **origin.__dict__,
                "contrast_set": contrast_set.name,
                "contrast_set_hash": contrast_set.hash,
                "settings": settings,
            }
        ),
    )


def discover(
    model: HookedTransformer,
    contrast_set: ContrastSet,
    fraction: float = 0.001,
    *,
    k: int | None = None,
    by: SelectBy = "delta",
    sign: Sign | None = None,
    **options: Any,
) -> Circuit:
    """Find the circuit of a behaviour: `contrast(...)`, then `.select(...)`.

    Args:
        fraction, k, by, sign: how many neurons and which (see `Contrast.select`).
        options: what `contrast` takes: position, the universal filter, batch size, format.

    Raises what those two raise. Keep the `Contrast` where more than one circuit is wanted.
    """
    # Refuse a bad size before the forward passes.
    if k is None:
        neuron_count(fraction, 1)
    elif k < 1:
        raise InvalidInput(f"k must be at least 1, not {k}")
    return contrast(model, contrast_set, **options).select(fraction, k=k, by=by, sign=sign)
