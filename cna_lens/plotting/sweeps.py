"""What a multiplier does: refusal rate, and the quality that it must never be read without.

Text that has fallen apart can trip a refusal classifier (in the paper, steering baselines "refuse"
98 to 100 % at a quality near 0.4), so the two measures always come as two stacked panels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from cna_lens.errors import InvalidInput
from cna_lens.plotting.style import DASHES, GREY, SYMBOLS, Size, colour, finish, translucent

if TYPE_CHECKING:
    import pandas as pd

_LINE = ["intervention", "group", "fraction"]
_NEEDED = [
    *_LINE, "neurons", "multiplier",
    "refusal_rate", "refusal_low", "refusal_high", "quality", "quality_low", "quality_high",
]  # fmt: skip
_CONTROL = [
    "group", "fraction", "neurons", "multiplier",
    "refusal_mean", "refusal_min", "refusal_max", "quality_mean",
]  # fmt: skip


def sweep_curves(
    summary: pd.DataFrame,
    controls: pd.DataFrame | None = None,
    *,
    size: Size = "screen",
    title: str | None = None,
) -> go.Figure:
    """Refusal rate and quality against the multiplier, with 95 % intervals as bands.

    One line a group and fraction. Colour tells groups apart, dash the fractions (and, where the
    table has several, the interventions). The mean of the random controls is dotted, between the
    least and the greatest of their draws. A single multiplier is a point with its interval.

    Args:
        summary: `Sweep.summary()`, or rows of it; its `random` rows are left to `controls`.
        controls: `Sweep.controls()`; only those of the summary's groups and sizes are drawn.
        size, title: see `cna_lens.plotting`.

    Raises:
        InvalidInput: a column is missing, or there are no rows to draw.

    Example:
        figure = sweep_curves(found.summary(), found.controls())
        figure = sweep_curves(found.summary().query("group == 'harmful'"))  # fractions compared
    """
    _check(summary, _NEEDED, "summary")
    summary = summary[summary["intervention"] != "random"]
    if not len(summary):
        raise InvalidInput("the summary has no rows to draw (random controls go in `controls`)")
    groups = list(dict.fromkeys(summary["group"]))
    fractions = list(dict.fromkeys(summary["fraction"]))
    methods = list(dict.fromkeys(summary["intervention"]))
    lines = list(dict.fromkeys(zip(summary["intervention"], summary["fraction"], strict=True)))

    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for (method, group, fraction), part in summary.groupby(_LINE, sort=False):
        neurons = int(part["neurons"].iloc[0])  # 0 where an intervention is not of neurons
        labels = [str(group)] if len(groups) > 1 or len(lines) == 1 else []
        labels += [str(method)] * (len(methods) > 1)
        labels += [f"{neurons} neurons"] * (len(fractions) > 1 and neurons > 0)
        line = lines.index((method, fraction))
        i = groups.index(group) if len(groups) > 1 else line
        look = _Look(", ".join(labels), colour(i), _symbol(i), DASHES[line % len(DASHES)], 0.15)
        rows = part.sort_values("multiplier")
        look.draw(figure, 1, rows, "refusal_rate", ("refusal_low", "refusal_high"))
        look.draw(figure, 2, rows, "quality", ("quality_low", "quality_high"))

    if controls is not None and len(controls):
        _check(controls, _CONTROL, "controls")
        beside = controls["group"].isin(groups) & controls["neurons"].isin(summary["neurons"])
        for (group, size_), part in controls[beside].groupby(["group", "neurons"], sort=False):
            i = groups.index(group)
            hue = colour(i) if len(groups) > 1 else GREY  # where colours tell fractions apart
            name = f"{group}, random" + f" {size_}" * (len(fractions) > 1)
            look = _Look(name, hue, f"{_symbol(i)}-open", "dot", 0.08)
            rows = part.sort_values("multiplier")
            look.draw(figure, 1, rows, "refusal_mean", ("refusal_min", "refusal_max"))
            look.draw(figure, 2, rows, "quality_mean", None)

    scaled = methods == ["circuit"]  # then 1 changes nothing, and is where all lines meet
    if scaled:
        figure.add_vline(x=1, line={"color": GREY, "dash": "dot", "width": 1})
    axis = "multiplier (0 ablates, 1 changes nothing)" if scaled else "strength"
    figure.update_xaxes(title_text=axis, row=2, col=1)
    figure.update_yaxes(title_text="refusal rate", tickformat=".0%", row=1, col=1)
    figure.update_yaxes(title_text="quality", row=2, col=1)
    figure.update_yaxes(range=[-0.04, 1.04], dtick=0.25)
    return finish(figure, size=size, title=title, height=560)


@dataclass(frozen=True)
class _Look:
    """How one line looks, with its band, in both panels."""

    name: str
    hue: str
    symbol: str
    dash: str
    opacity: float  # of the band

    def draw(
        self, figure: go.Figure, panel: int, rows: pd.DataFrame, value: str,
        bounds: tuple[str, str] | None,
    ) -> None:  # fmt: skip
        """Add the line to a panel; a single point has an interval bar in place of a band."""
        x, y = rows["multiplier"].tolist(), rows[value]
        low, high = (rows[bound].tolist() for bound in bounds or (value, value))
        shared = {"legendgroup": self.name, "row": panel, "col": 1}
        if bounds and len(x) > 1:
            figure.add_scatter(
                x=[*x, *reversed(x)],
                y=[*high, *reversed(low)],
                fill="toself",
                fillcolor=translucent(self.hue, self.opacity),
                line_width=0,
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                name=f"{self.name}, interval",
                **shared,
            )
        bar = {"type": "data", "symmetric": False, "array": high - y, "arrayminus": y - low}
        figure.add_scatter(
            x=x,
            y=y,
            customdata=list(zip(low, high, strict=True)),
            error_y=bar if bounds and len(x) == 1 else None,
            mode="lines+markers",
            line={"color": self.hue, "dash": self.dash},
            marker_symbol=self.symbol,
            hovertemplate="× %{x:g}: %{y:.3f}" + _INTERVAL * (bounds is not None),
            showlegend=panel == 1,
            name=self.name,
            **shared,
        )


def _symbol(i: int) -> str:
    return SYMBOLS[i % len(SYMBOLS)]


_INTERVAL = " [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"


def _check(frame: pd.DataFrame, columns: list[str], what: str) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InvalidInput(f"the {what} lacks the columns {missing}; give Sweep.{what}()")
