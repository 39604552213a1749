"""Where in the model a circuit sits: its neurons by layer.

The paper's finding is that discriminative neurons sit late, in the base model as in the instruct
model (arXiv 2605.12290, section 5): bars give each layer's share of the circuit, the line adds
them up from the first layer on, and the last quarter of the layers is shaded.
"""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from cna_lens.circuit import Circuit
from cna_lens.errors import CircuitMismatch, InvalidInput
from cna_lens.plotting.style import DASHES, GREY, SYMBOLS, Size, colour, finish


def layer_concentration(
    circuits: Mapping[str, Circuit] | Circuit,
    *,
    late_layers: int | None = None,
    size: Size = "screen",
    title: str | None = None,
) -> go.Figure:
    """Share of the circuit's neurons in each layer, and the cumulative share.

    Args:
        circuits: a circuit, or several of one model shape by label.
        late_layers: how many layers at the end are shaded; a quarter of them by default.
        size, title: see `cna_lens.plotting`.

    Raises:
        InvalidInput: no circuits, or more late layers than layers.
        CircuitMismatch: the circuits are of models of different depth.

    Example:
        >>> from cna_lens import Circuit
        >>> late = Circuit(4, 8, layers=(3, 3, 2), neurons=(0, 5, 1), delta=(2., 1., 1.),
        ...                pooled_std=(1., 1., 1.))
        >>> figure = layer_concentration({"instruct": late})
        >>> figure.data[0].y.round(2).tolist()
        [0.0, 0.0, 0.33, 0.67]
    """
    named = {circuits.name: circuits} if isinstance(circuits, Circuit) else dict(circuits)
    if not named:
        raise InvalidInput("no circuits to draw: give a circuit, or a mapping of label to circuit")
    depths = {label: circuit.n_layers for label, circuit in named.items()}
    if len(set(depths.values())) > 1:
        raise CircuitMismatch(
            f"the circuits are of models of different depth ({depths}), so their layers cannot "
            "share an axis. Draw one figure a model."
        )
    n_layers = next(iter(depths.values()))
    late = max(1, int(n_layers / 4 + 0.5)) if late_layers is None else late_layers
    if not 0 < late <= n_layers:
        raise InvalidInput(f"late_layers must be between 1 and {n_layers}, not {late}")

    figure = go.Figure()
    tables = {label: circuit.layer_table() for label, circuit in named.items()}
    for i, (label, table) in enumerate(tables.items()):
        figure.add_bar(
            x=table["layer"],
            y=table["share"],
            customdata=table["neurons"],
            name=label,
            legendgroup=label,
            marker_color=colour(i),
            hovertemplate="layer %{x}: %{customdata} neurons, %{y:.1%}",
        )
    for i, (label, table) in enumerate(tables.items()):
        figure.add_scatter(
            x=table["layer"],
            y=table["cumulative"],
            name=f"{label}, cumulative",
            legendgroup=label,
            mode="lines+markers",
            line={"color": colour(i), "dash": DASHES[i % len(DASHES)]},
            marker={"symbol": SYMBOLS[i % len(SYMBOLS)]},
            hovertemplate="up to layer %{x}: %{y:.1%}",
        )
    figure.add_vrect(
        x0=n_layers - late - 0.5,
        x1=n_layers - 0.5,
        fillcolor=GREY,
        opacity=0.15,
        line_width=0,
        layer="below",
        annotation_text="last quarter" if late_layers is None else f"last {late}",
        annotation_position="top left",
    )
    figure.update_xaxes(
        title_text="layer",
        range=[-0.5, n_layers - 0.5],
        dtick=max(1, -(-n_layers // 12)),
        tickangle=0,
        showgrid=False,
    )
    figure.update_yaxes(
        title_text="share of circuit neurons", tickformat=".0%", range=[0, 1.08], dtick=0.25
    )
    figure.update_layout(barmode="group", bargap=0.25)
    return finish(figure, size=size, title=title, height=400)
