"""The demo's page and figures, from its results alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cna_lens.experiments.demo import FRACTIONS, Demo
from cna_lens.files import write_text
from cna_lens.plotting import layer_concentration, overlap_heatmap, sweep_curves, write_figure
from cna_lens.report import (
    Card,
    Plot,
    Report,
    Section,
    Table,
    Text,
    controls_table,
    examples,
    sweep_table,
    write_report,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_ABOUT = """
The model organism is a toy: a small Llama trained on a made-up world of topics, whose instruct half
refuses some of them. The prompts here are about families of topics that fine-tuning never saw, and
no choice in making the organism looked at them.

What holds here shows that the method and this code work. It does not show what holds in large
models: part of the layer structure comes from how the organism was trained, its texts are
templates, and it is one behaviour in one small world.
"""


def demo_figures(demo: Demo) -> dict[str, tuple[go.Figure, pd.DataFrame]]:
    """Each figure by file name, with the table behind it."""
    summary = demo.main.summary()
    smallest = summary[summary["fraction"] == summary["fraction"].min()]
    harmful = summary[summary["group"] == "harmful"]
    base, instruct = demo.circuits["base"], demo.circuits["instruct"]
    layers = instruct.layer_table().merge(
        base.layer_table(), on="layer", suffixes=("_instruct", "_base")
    )
    overlap = layers[["layer"]].assign(
        only_base=_by_layer(set(base) - set(instruct), base.n_layers),
        shared=_by_layer(set(base) & set(instruct), base.n_layers),
        only_instruct=_by_layer(set(instruct) - set(base), base.n_layers),
    )
    return {
        "sweep": (sweep_curves(smallest, demo.random.controls()), smallest),
        "fractions": (sweep_curves(harmful, demo.random.controls()), harmful),
        "layers": (layer_concentration({"base": base, "instruct": instruct}), layers),
        "overlap": (overlap_heatmap(base, instruct), overlap),
    }


def _by_layer(neurons: set[tuple[int, int]], n_layers: int) -> list[int]:
    return [sum(at == layer for at, _ in neurons) for layer in range(n_layers)]


def write_figures(demo: Demo, folder: Path) -> None:
    """Each figure as SVG, with the table behind it as CSV.

    Raises:
        MissingExtra: kaleido or a Chrome or Chromium is missing.
    """
    for name, (figure, table) in demo_figures(demo).items():
        write_figure(figure, folder / f"{name}.svg")
        write_text(folder / f"{name}.csv", table.to_csv(index=False))


def write_demo_report(demo: Demo, path: Path) -> Path:
    """The page to open: what was asked, the answer, figures, controls, responses, provenance."""
    figures = {name: figure for name, (figure, _) in demo_figures(demo).items()}
    size = f"{FRACTIONS[0]:.1%}"
    neurons = len(demo.circuits["instruct"])

    def card(label: str, multiplier: str, neurons: str) -> Card:
        row = demo.table[
            (demo.table["measure"] == "refusal")
            & (demo.table["prompts"] == "harmful")
            & (demo.table["neurons"] == neurons)
            & (demo.table["multiplier"] == multiplier)
            & demo.table["fraction"].isin(["", size])
        ].iloc[0]
        return Card.of(label, row["value"], row["low"], row["high"], interval=str(row["interval"]))

    return write_report(
        path,
        Report(
            title="Contrastive neuron attribution on the model organism",
            lead="Which neurons make the instruct organism refuse? The "
            f"{neurons} neurons ({size}) whose activations differ most between disallowed and "
            "allowed requests were found on 100 + 100 prompts, then scaled while the model "
            "answered prompts about topics that it was never fine-tuned on.",
            cards=[
                card("harmful prompts refused, unsteered", "1", "none"),
                card(f"with the {neurons} neurons ablated", "0", "circuit"),
                card(f"with {neurons} random neurons ablated", "0", "random"),
            ],
            sections=[
                Section(
                    "Is the circuit causal?",
                    [
                        Plot(
                            figures["sweep"],
                            alt="Refusal rate and quality against the multiplier, by prompt group",
                            caption=f"The circuit of {size}, scaled by each multiplier: 0 ablates, "
                            "1 changes nothing. Open circles: matched random neurons, ablated.",
                        ),
                        Plot(
                            figures["fractions"],
                            alt="Refusal of harmful prompts for circuits of three sizes",
                            caption="Harmful prompts, circuits of three sizes.",
                        ),
                        sweep_table(demo.main.summary()),
                    ],
                ),
                Section(
                    "Controls",
                    [
                        Text(
                            "Random neurons, as many in each layer as the circuit has. Neurons "
                            "that rank just below the circuit carry part of the behaviour "
                            "themselves; the second control leaves the top 4 % out."
                        ),
                        controls_table(demo.random.controls()),
                        controls_table(
                            demo.random_far.controls(), "Random neurons, far from the top"
                        ),
                    ],
                ),
                Section("What the responses look like", [examples(demo.main.table)]),
                Section(
                    "Base against instruct",
                    [
                        Plot(
                            figures["layers"],
                            alt="Share of each circuit's neurons in every layer",
                            caption="Where the two circuits sit.",
                        ),
                        Plot(
                            figures["overlap"],
                            alt="Neurons of one circuit, of both and of the other, by layer",
                            caption="Which neurons the two circuits share.",
                        ),
                    ],
                ),
                Section(
                    "Every number",
                    [
                        Table(
                            demo.table,
                            "low and high are what the column interval says",
                        ),
                        Text(_ABOUT),
                    ],
                ),
            ],
            provenance={
                "sweep": demo.main.provenance,
                "base circuit": demo.circuits["base"].provenance,
                "instruct circuit": demo.circuits["instruct"].provenance,
            },
            reproduce="cna-lens demo",
        ),
    )
