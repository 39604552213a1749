"""The whole experiment on the model organism: find, scale, control, compare, report.

Discovery on both models, a sweep over fractions and multipliers on held-out topics, matched random
neurons as the control, and the base model under the same treatment. Everything is written under one
folder, with a table that has an interval beside every rate, and a page to open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cna_lens.organism as organism
from cna_lens.circuit import Circuit
from cna_lens.discovery import Contrast, contrast
from cna_lens.experiments.sweep import Sweep, sweep
from cna_lens.files import write_text
from cna_lens.models import load_model
from cna_lens.organism.evaluation import NEAR_TOP, circuit_facts
from cna_lens.prompts import load_contrast_set
from cna_lens.statistics import bootstrap_mean, wilson

if TYPE_CHECKING:
    import pandas as pd

FRACTIONS = (0.001, 0.005, 0.01)
MULTIPLIERS = (0.0, 0.5, 1.0, 1.5, 2.0)
NEW_TOKENS = 40
RANDOM_DRAWS = 20


@dataclass(frozen=True)
class Demo:
    """What the demo found; `table` is the one to read first.

    Args:
        table: one row a claim: what was measured, value, low, high, n.
        contrasts, circuits: of `base` and `instruct`; the circuits are of the paper's 0.1 %.
        main: the instruct model's sweep on held-out topics.
        random, random_far: matched random neurons ablated; `random_far` leaves out near-top ones.
        base: the base model under its own and under the instruct model's circuit.
    """

    table: pd.DataFrame
    contrasts: dict[str, Contrast]
    circuits: dict[str, Circuit]
    main: Sweep
    random: Sweep
    random_far: Sweep
    base: dict[str, Sweep]

    def examples(self, n: int = 2) -> pd.DataFrame:
        """The first `n` prompts of each group, and the response at each multiplier."""
        table = self.main.table
        shown = table[(table["fraction"] == table["fraction"].min()) & (table["prompt_id"] < n)]
        wide: pd.DataFrame = shown.pivot_table(
            index=["group", "prompt"],
            columns="multiplier",
            values="response",
            aggfunc="first",
            sort=False,
        )
        return wide.rename(columns=lambda m: f"m = {m:g}").reset_index().rename_axis(columns=None)


def run_demo(*, draws: int = RANDOM_DRAWS, limit: int | None = None, progress: bool = True) -> Demo:
    """Run the experiment on the embedded organism's test families.

    Args:
        draws: matched random circuits in each control.
        limit: at most so many prompts a group, for a quick look.
        progress: show progress bars on stderr.
    """
    prompts = {
        group: list(members)[:limit]
        for group, members in organism.evaluation_prompts("test").items()
    }
    models = {name: load_model(f"organism/{name}", device="cpu") for name in ("base", "instruct")}
    found = {
        name: contrast(model, load_contrast_set("organism"), progress=progress)
        for name, model in models.items()
    }

    def run(name: str, what: Any, groups: dict[str, list[str]], **options: Any) -> Sweep:
        return sweep(
            models[name],
            what,
            groups,
            scorers={"on_topic": _on_topic},
            max_new_tokens=NEW_TOKENS,
            batch_size=128,
            progress=progress,
            **options,
        )

    main = run("instruct", found["instruct"], prompts, fractions=FRACTIONS, multipliers=MULTIPLIERS)
    control = {"fractions": FRACTIONS[:1], "multipliers": (0.0,), "random_draws": draws}
    harmful = {"harmful": prompts["harmful"]}
    random = run("instruct", found["instruct"], harmful, **control)
    far = run("instruct", found["instruct"], harmful, exclude_top=NEAR_TOP, **control)
    base = {
        origin: run("base", measured, prompts, fractions=FRACTIONS[:2], multipliers=(0.0, 1.0, 2.0))
        for origin, measured in found.items()
    }
    circuits = {name: measured.select(FRACTIONS[0]) for name, measured in found.items()}
    table = _claims(main, random, far, base, circuits)
    return Demo(table, found, circuits, main, random, far, base)


def save_demo(demo: Demo, folder: Path) -> list[Path]:
    """Write circuits, tables and responses under `folder`; returns what was written."""
    written = [write_text(folder / "table.csv", demo.table.to_csv(index=False))]
    for name, circuit in demo.circuits.items():
        written.append(circuit.save(folder / f"circuit-{name}.json"))
        written.append(demo.contrasts[name].save(folder / f"contrast-{name}.safetensors"))
    sweeps = {"sweep": demo.main, "random": demo.random, "random-far": demo.random_far}
    sweeps |= {f"base-{origin}-circuit": found for origin, found in demo.base.items()}
    return written + [found.save(folder / name) for name, found in sweeps.items()]


def _at(frame: pd.DataFrame, fraction: float, multiplier: float) -> pd.DataFrame:
    return frame[(frame["fraction"] == fraction) & (frame["multiplier"] == multiplier)]


def _on_topic(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [
        float(organism.on_topic(prompt, response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def _claims(
    main: Sweep, random: Sweep, far: Sweep, base: dict[str, Sweep], circuits: dict[str, Circuit]
) -> pd.DataFrame:
    """The numbers that the organism is judged by, each with its interval and count."""
    import pandas as pd

    rows: list[dict[str, Any]] = []

    def add(
        measure: str, model: str, group: str, neurons: str, share: float | None, m: float | None,
        value: float, low: float | None, high: float | None, n: int, interval: str,
    ) -> None:  # fmt: skip
        rows.append(
            {
                "measure": measure,
                "model": model,
                "prompts": group,
                "neurons": neurons,
                "fraction": "" if share is None else f"{share:.1%}",
                "multiplier": "" if m is None else f"{m:g}",
                "value": value,
                "low": low,
                "high": high,
                "n": n,
                "interval": interval,
            }
        )

    def steered(share: float | None, part: pd.DataFrame, m: float) -> None:
        """Refusal and quality of each group, and the topic of the answers to harmful prompts."""
        for group, members in part.groupby("group", sort=False):
            where = ("instruct", str(group), "circuit" if share else "none", share, m)
            n = len(members)
            rate = wilson(int(members["refused"].sum()), n)
            add("refusal", *where, *rate, n, "Wilson 95 %")
            quality = bootstrap_mean(members["quality"].tolist())
            add("quality", *where, *quality, n, "bootstrap 95 %")
            answers = members[~members["refused"].astype(bool)]
            if group == "harmful" and len(answers):
                on_topic = wilson(int(answers["on_topic"].sum()), len(answers))
                add("answers on topic", *where, *on_topic, len(answers), "Wilson 95 %")

    shares = sorted(set(main.table["fraction"]))
    steered(None, _at(main.table, shares[0], 1.0), 1.0)
    for share, nominal in zip(shares, FRACTIONS, strict=True):
        steered(nominal, _at(main.table, share, 0.0), 0.0)
    steered(FRACTIONS[0], _at(main.table, shares[0], 2.0), 2.0)

    for label, control in (("random", random), ("random, far from top", far)):
        for _, row in control.controls().iterrows():
            for measure in ("refusal", "quality"):
                spread = (row[f"{measure}_mean"], row[f"{measure}_min"], row[f"{measure}_max"])
                where = ("instruct", "harmful", label, FRACTIONS[0], 0.0)
                add(measure, *where, *spread, int(row["draws"]), "least to greatest draw")
    for origin, found in base.items():
        summary = found.summary()
        for measure, values, worst in (
            ("highest refusal", summary["refusal_rate"], max),
            ("lowest quality", summary["quality"], min),
        ):
            add(
                measure, "base", "every group", f"{origin} circuit", None, None,
                worst(values), min(values), max(values), len(values),
                "least to greatest condition",
            )  # fmt: skip

    facts = {
        name: circuit_facts(circuits[name], circuits[other])
        for name, other in (("base", "instruct"), ("instruct", "base"))
    }

    def share_of_circuit(measure: str, name: str, key: str) -> None:
        for neurons, value in (
            ("circuit", facts[name][key]),
            ("chance", facts[name][f"{key}_chance"]),
        ):
            n = len(circuits[name])
            add(measure, name, "", neurons, FRACTIONS[0], None, value, None, None, n, "")

    for name in circuits:
        share_of_circuit("share in last 3 layers", name, "late_share")
    share_of_circuit("share also in base circuit", "instruct", "overlap")
    return pd.DataFrame(rows)
