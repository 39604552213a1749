"""The multiplier sweep: is the circuit causal, how strongly, and at what cost in quality?

One measurement (`Contrast`) gives circuits of every fraction, so a grid over fraction x multiplier
costs only its decoding. Matched random neurons are the control beside every effect.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformer_lens import HookedTransformer

from cna_lens.circuit import Circuit
from cna_lens.discovery import Contrast
from cna_lens.errors import DamagedFile, InvalidInput
from cna_lens.experiments.conditions import Condition, PromptGroups, as_groups, run_conditions
from cna_lens.files import read_json, read_text, write_json, write_text
from cna_lens.generation import response_limit
from cna_lens.interventions import Intervention, Positions, ScaleNeurons, random_circuits
from cna_lens.models import describe
from cna_lens.provenance import Provenance
from cna_lens.statistics import bootstrap_mean, wilson

if TYPE_CHECKING:
    import pandas as pd

MULTIPLIERS = (0.0, 0.5, 1.0, 1.5, 2.0)
_CONDITION = ["group", "intervention", "draw", "fraction", "neurons", "multiplier"]


@dataclass(frozen=True, eq=False)
class Sweep:
    """The responses of a sweep, one row a prompt and condition, and where they came from.

    Columns: group, prompt_id, prompt, intervention (`circuit` or `random`, or the intervention's
    name), draw (of a random circuit, else -1), fraction, neurons, multiplier, response, refused,
    quality, prompt_tokens, response_tokens, finished, and those of further scorers.
    """

    table: pd.DataFrame
    provenance: Provenance

    def summary(self) -> pd.DataFrame:
        """One row a condition: refusal rate with its Wilson 95 % interval, quality with its
        bootstrap 95 % interval over prompts, response length, and the share that ended by itself.
        """
        import pandas as pd

        rows = []
        for key, part in self.table.groupby(_CONDITION, sort=False):
            rate = wilson(int(part["refused"].sum()), len(part))
            quality = bootstrap_mean(part["quality"].tolist())
            rows.append(
                {
                    **dict(zip(_CONDITION, key, strict=True)),
                    "n": len(part),
                    "refusal_rate": rate.value,
                    "refusal_low": rate.low,
                    "refusal_high": rate.high,
                    "quality": quality.value,
                    "quality_low": quality.low,
                    "quality_high": quality.high,
                    "response_tokens": part["response_tokens"].mean(),
                    "finished": part["finished"].mean(),
                }
            )
        return pd.DataFrame(rows)

    def controls(self) -> pd.DataFrame:
        """The random controls over their draws: mean, least and greatest refusal rate and quality
        for each group, fraction and multiplier. Empty where no control was run.
        """
        summary = self.summary()
        random = summary[summary["intervention"] == "random"]
        by = ["group", "fraction", "neurons", "multiplier"]
        return random.groupby(by, sort=False, as_index=False).agg(
            draws=("draw", "nunique"),
            refusal_mean=("refusal_rate", "mean"),
            refusal_min=("refusal_rate", "min"),
            refusal_max=("refusal_rate", "max"),
            quality_mean=("quality", "mean"),
            quality_min=("quality", "min"),
            quality_max=("quality", "max"),
        )

    def _repr_html_(self) -> str:
        shown = self.summary().query("intervention != 'random'")
        return str(shown.to_html(index=False, float_format="{:.3f}".format))

    def save(self, folder: str | Path) -> Path:
        """Write responses.csv, summary.csv, controls.csv and provenance.json into `folder`.

        Raises:
            OutputError: the place cannot be written.
        """
        folder = Path(folder)
        text = self.table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)  # keeps \r in replies
        write_text(folder / "responses.csv", text)
        write_text(folder / "summary.csv", self.summary().to_csv(index=False))
        controls = self.controls()
        if len(controls):
            write_text(folder / "controls.csv", controls.to_csv(index=False))
        write_json(folder / "provenance.json", self.provenance.to_dict())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Sweep:
        """Read what `save` wrote.

        Raises:
            InvalidInput: there is no such folder.
            DamagedFile: a file is not whole.
        """
        import io

        import pandas as pd

        folder = Path(folder)
        text = read_text(folder / "responses.csv")
        try:
            table = pd.read_csv(
                io.StringIO(text, newline=""),
                dtype=dict.fromkeys(("group", "prompt", "intervention", "response"), str),
                keep_default_na=False,  # an empty reply stays one
            )
            provenance = Provenance.from_dict(read_json(folder / "provenance.json"))
        except (TypeError, ValueError) as error:
            raise DamagedFile(f"{folder} does not hold a whole sweep: {error}") from error
        missing = {*_CONDITION, "prompt", "response", "refused", "quality"} - set(table.columns)
        if missing:
            raise DamagedFile(f"{folder / 'responses.csv'} lacks the columns {sorted(missing)}")
        return cls(table, provenance)


def sweep(
    model: HookedTransformer,
    what: Circuit | Contrast | Intervention,
    prompts: PromptGroups,
    multipliers: Sequence[float] = MULTIPLIERS,
    *,
    fractions: Sequence[float] | None = None,
    positions: Positions = "all",
    random_draws: int = 0,
    exclude_top: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Sweep:
    """Decode `prompts` under every multiplier, and every fraction, and score the responses.

    Args:
        what: a circuit; a `Contrast`, from which a circuit of each fraction is taken; or any other
            intervention, whose strengths the multipliers then are.
        prompts: a list, or lists by group (`{"harmful": [...], "benign": [...]}`).
        multipliers: strengths; the neutral one (1 for circuits) is decoded once.
        fractions: with a contrast, the circuits' shares of all neurons (default 0.001).
        positions: where in the sequence a circuit is scaled.
        random_draws: matched random circuits beside each circuit, as its control.
        exclude_top: with a contrast, the random draws leave out this share of top neurons, which
            carry part of the behaviour themselves.
        seed: of the random draws.
        options: what `run_conditions` takes: scorers, max_new_tokens, batch_size, sampling, a
            journal to resume from, ...

    Raises:
        InvalidInput: no multipliers, not finite ones, fractions without a contrast; and what
            `generate` raises.
        CircuitMismatch: the circuit is for a model of another shape.
    """
    if not multipliers or not np.isfinite(multipliers).all():
        raise InvalidInput(f"multipliers must be finite numbers, not {list(multipliers)}")
    if positions != "all" and not isinstance(what, Circuit | Contrast):
        raise InvalidInput(f"{what.name} has its own positions: set {positions!r} where it is made")
    multipliers = list(dict.fromkeys(float(m) for m in multipliers))
    conditions = []
    for circuit in _circuits(what, fractions):
        if not isinstance(circuit, Circuit):
            label = {"intervention": circuit.name, "draw": -1, "fraction": 0.0, "neurons": 0}
            members: list[tuple[Intervention, dict[str, Any]]] = [(circuit, label)]
        else:
            label = {"fraction": circuit.fraction, "neurons": len(circuit)}
            members = [
                (ScaleNeurons(circuit, positions), {"intervention": "circuit", "draw": -1, **label})
            ]
            near: list[tuple[int, int]] = []
            if random_draws and exclude_top is not None and isinstance(what, Contrast):
                near = list(what.select(exclude_top))
            for draw, control in enumerate(
                random_circuits(circuit, random_draws, seed=seed, exclude=near)
                if random_draws
                else []
            ):
                columns = {"intervention": "random", "draw": draw, **label}
                members.append((ScaleNeurons(control, positions), columns))
        conditions += [
            Condition(intervention, m, {**columns, "multiplier": m})
            for intervention, columns in members
            for m in multipliers
        ]
    texts = [prompt for members in as_groups(prompts).values() for prompt in members]
    if texts:  # said in the provenance as the number that it comes to
        asked = (options.get("max_new_tokens"), options.get("form"))
        options["max_new_tokens"] = response_limit(model, texts, *asked)
    table = run_conditions(model, prompts, conditions, **options)
    return Sweep(table, _origin(model, what, positions, seed if random_draws else None, options))


def _circuits(
    what: Circuit | Contrast | Intervention, fractions: Sequence[float] | None
) -> list[Circuit | Intervention]:
    if isinstance(what, Contrast):
        return [what.select(fraction) for fraction in fractions or (0.001,)]
    if fractions is not None:
        raise InvalidInput(
            "fractions need a Contrast: sweep(model, contrast(model, contrast_set), ...)"
        )
    return [what]


def _origin(
    model: HookedTransformer, what: Any, positions: str, seed: int | None, options: dict[str, Any]
) -> Provenance:
    """The model that was swept, and the contrast set that the circuit came from."""
    found: Provenance = getattr(what, "provenance", Provenance())
    settings = {
        "max_new_tokens": options.get("max_new_tokens"),
        "positions": positions,
        "discovered_on": {"model": found.model, "weights": found.weights, **found.settings},
    }
    here = describe(model, options.get("form"))
    return Provenance(
        **{
            **here.__dict__,
            "contrast_set": found.contrast_set,
            "contrast_set_hash": found.contrast_set_hash,
            "seed": seed,
            "settings": settings,
        }
    )
