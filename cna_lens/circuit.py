"""A circuit: the few neurons, of all MLP layers together, that most separate two prompt sets.

A neuron is one coordinate of `blocks.{layer}.mlp.hook_post`. A `Circuit` keeps its neurons in rank
order, the largest |delta| first, so the circuit of a smaller fraction is a prefix: `top(k)`.

Source: arXiv 2605.12290, section 3 (contrastive neuron attribution).
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cna_lens.errors import CircuitMismatch, DamagedFile, InvalidInput
from cna_lens.files import read_json, write_text
from cna_lens.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens import HookedTransformer

FORMAT = "cna_lens.circuit"
FORMAT_VERSION = 1

_COLUMNS: dict[str, Callable[[Any], float]] = {
    "layers": operator.index,  # whole numbers only
    "neurons": operator.index,
    "delta": float,
    "pooled_std": float,
}


@dataclass(frozen=True)
class Circuit:
    """Ranked neurons of one model shape.

    Args:
        n_layers: layers of the model.
        d_mlp: neurons in a layer.
        layers: layer of each neuron, in rank order.
        neurons: index in its layer of each neuron, in rank order.
        delta: mean activation over positive minus mean over negative prompts, for each neuron.
        pooled_std: pooled standard deviation of the activation within the two sides.
        provenance: where the circuit came from.

    Raises:
        InvalidInput: lengths differ, a neuron is outside the model's shape or listed twice, or a
            number is not finite or not a number.
    """

    n_layers: int
    d_mlp: int
    layers: tuple[int, ...]
    neurons: tuple[int, ...]
    delta: tuple[float, ...]
    pooled_std: tuple[float, ...]
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        try:  # plain Python numbers, so that numpy's are compared and saved like all others
            for name, number in _COLUMNS.items():
                object.__setattr__(self, name, tuple(map(number, getattr(self, name))))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"a circuit's columns hold numbers only: {error}") from error
        lengths = {len(self.layers), len(self.neurons), len(self.delta), len(self.pooled_std)}
        if len(lengths) != 1:
            raise InvalidInput(f"a circuit's columns have different lengths: {sorted(lengths)}")
        for layer, neuron in self:
            if not (0 <= layer < self.n_layers and 0 <= neuron < self.d_mlp):
                raise InvalidInput(
                    f"neuron (layer {layer}, {neuron}) is outside a model of "
                    f"{self.n_layers} layers x {self.d_mlp} neurons"
                )
        if len(set(self)) != len(self):
            raise InvalidInput("a circuit lists the same neuron twice")
        if not all(math.isfinite(x) for x in (*self.delta, *self.pooled_std)):
            raise InvalidInput("a circuit's delta and pooled_std must be finite")

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(layer, neuron) pairs in rank order."""
        return iter(zip(self.layers, self.neurons, strict=True))

    @property
    def fraction(self) -> float:
        """The circuit's share of all neurons of the model."""
        return len(self) / (self.n_layers * self.d_mlp)

    @property
    def name(self) -> str:
        """A short label for tables and figures."""
        return f"{self.provenance.contrast_set or 'circuit'} ({len(self)} neurons)"

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Neurons of each layer that has any: layer -> sorted neuron indices."""
        found: dict[int, list[int]] = {}
        for layer, neuron in sorted(self):
            found.setdefault(layer, []).append(neuron)
        return {layer: tuple(neurons) for layer, neurons in found.items()}

    def top(self, k: int) -> Circuit:
        """The first `k` neurons in rank order, as a circuit (all of them where k is larger)."""
        if k < 1:
            raise InvalidInput(f"a circuit needs at least one neuron; k was {k}")
        return self._pick(range(min(k, len(self)))).with_settings(k=min(k, len(self)))

    def signed(self, sign: Literal["positive", "negative"]) -> Circuit:
        """Only the neurons that are more active (`positive`) or less active on the positive side.

        Raises:
            InvalidInput: `sign` is something else, or no neuron has that sign.
        """
        if sign not in ("positive", "negative"):
            raise InvalidInput(f"sign must be 'positive' or 'negative', not {sign!r}")
        right = operator.gt if sign == "positive" else operator.lt
        keep = [i for i, delta in enumerate(self.delta) if right(delta, 0)]
        if not keep:
            raise InvalidInput(f"no neuron of this circuit has a {sign} delta")
        return self._pick(keep).with_settings(sign=sign)

    def with_settings(self, **settings: Any) -> Circuit:
        """A copy whose provenance records more settings."""
        return replace(self, provenance=self.provenance.with_settings(**settings))

    def _pick(self, rows: Iterable[int]) -> Circuit:
        return replace(
            self,
            layers=tuple(self.layers[i] for i in rows),
            neurons=tuple(self.neurons[i] for i in rows),
            delta=tuple(self.delta[i] for i in rows),
            pooled_std=tuple(self.pooled_std[i] for i in rows),
        )

    def check_fits(self, model: HookedTransformer) -> None:
        """Raises CircuitMismatch where the model's shape is not the circuit's."""
        shape = (model.cfg.n_layers, model.cfg.d_mlp)
        if shape != (self.n_layers, self.d_mlp):
            raise CircuitMismatch(
                f"this circuit is for {self.n_layers} layers x {self.d_mlp} neurons "
                f"({self.provenance.model or 'model unknown'}), but {model.cfg.model_name} has "
                f"{shape[0]} x {shape[1]}. Discover a circuit on that model."
            )

    def table(self) -> pd.DataFrame:
        """One row a neuron, in rank order.

        Columns: rank, layer, neuron, delta, pooled_std, effect_size (delta in pooled standard
        deviations, as in `Contrast.effect_size`), sign (`none` where delta is 0).
        """
        import pandas as pd

        frame = pd.DataFrame(
            {
                "rank": range(1, len(self) + 1),
                "layer": self.layers,
                "neuron": self.neurons,
                "delta": self.delta,
                "pooled_std": self.pooled_std,
            }
        )
        frame["effect_size"] = (frame["delta"] / frame["pooled_std"]).where(
            frame["delta"] != 0, 0.0
        )
        signs = {1: "positive", -1: "negative", 0: "none"}
        frame["sign"] = [signs[(delta > 0) - (delta < 0)] for delta in self.delta]
        return frame

    def layer_table(self) -> pd.DataFrame:
        """One row a layer of the model: layer, neurons (how many), share, cumulative share."""
        import pandas as pd

        counts = [0] * self.n_layers
        for layer in self.layers:
            counts[layer] += 1
        frame = pd.DataFrame({"layer": range(self.n_layers), "neurons": counts})
        frame["share"] = frame["neurons"] / max(1, len(self))
        frame["cumulative"] = frame["share"].cumsum()
        return frame

    def _repr_html_(self) -> str:
        return f"<p><b>{len(self)} neurons</b></p>{self.table().to_html(index=False)}"

    def save(self, path: str | Path) -> Path:
        """Write the circuit as readable JSON, whole or not at all.

        Raises:
            OutputError: the place cannot be written.
        """
        head = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "n_layers": self.n_layers,
            "d_mlp": self.d_mlp,
            "provenance": self.provenance.to_dict(),
            "columns": ["layer", "neuron", "delta", "pooled_std"],
        }
        rows = zip(self.layers, self.neurons, self.delta, self.pooled_std, strict=True)
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        body = json.dumps(head, indent=2, ensure_ascii=False)[:-2]  # reopened: one neuron a line
        return write_text(path, f'{body},\n  "neurons": [\n{lines}\n  ]\n}}\n')

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read what `save` wrote; equal to what was saved.

        Raises:
            InvalidInput: there is no such file.
            DamagedFile: it is not a circuit, or is not whole.
        """
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DamagedFile(f"{path} is not a circuit file (format {FORMAT!r} is not there)")
        if data.get("version") != FORMAT_VERSION:
            raise DamagedFile(
                f"{path} is a circuit of format version {data.get('version')}; this cna_lens "
                f"reads version {FORMAT_VERSION}. Install the cna_lens that wrote it."
            )
        try:
            layers, neurons, delta, pooled = (
                zip(*data["neurons"], strict=True) if data["neurons"] else ((), (), (), ())
            )
            return cls(
                n_layers=data["n_layers"],
                d_mlp=data["d_mlp"],
                layers=layers,
                neurons=neurons,
                delta=delta,
                pooled_std=pooled,
                provenance=Provenance.from_dict(data["provenance"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFile(f"{path} is a damaged circuit file: {error}") from error
