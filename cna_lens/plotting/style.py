"""One look for every figure: palette, template and sizes.

The palette is Okabe and Ito's (2008), made to be told apart by colour-blind readers; yellow and
black are left out because one fades on white and the other on a dark page. Where several lines
share a figure they differ in dash or marker too, so a grey print still reads.
"""

from __future__ import annotations

from typing import Literal, get_args

import plotly.graph_objects as go

from cna_lens.errors import InvalidInput

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
GREY = "#7F7F7F"
INK = "#1b1f24"

Size = Literal["screen", "one-column", "two-column"]

# Width in CSS pixels (96 an inch), None where the page decides, and font size. 3.35 and 6.9 inches
# fit the columns of the usual conference and journal classes.
_WIDTHS: dict[Size, tuple[int | None, int]] = {
    "screen": (None, 14),
    "one-column": (322, 9),
    "two-column": (662, 11),
}


def colour(i: int) -> str:
    """The i-th colour of the palette, from the start again after the last."""
    return PALETTE[i % len(PALETTE)]


def translucent(hex_colour: str, alpha: float) -> str:
    """`#RRGGBB` as an `rgba(...)` that lets what is behind it through."""
    red, green, blue = (int(hex_colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def template(font_size: int = 14) -> go.layout.Template:
    """A fresh template of the house: never registered in `plotly.io.templates`."""
    grid = "#dfe3e8"
    line = {"line": {"width": font_size / 7}, "marker": {"size": font_size / 2}}
    axis = {
        "automargin": True,
        "gridcolor": grid,
        "linecolor": GREY,
        "showline": True,
        "ticks": "outside",
        "tickcolor": GREY,
        "title": {"standoff": round(0.6 * font_size)},
        "zeroline": False,
    }
    return go.layout.Template(
        data={"scatter": [line]},
        layout={
            "colorway": PALETTE,
            "font": {"color": INK, "family": "Arial, Helvetica, sans-serif", "size": font_size},
            "hoverlabel": {"align": "left"},
            # above the plot, where it cannot cover data and wraps on a narrow screen
            "legend": {
                "orientation": "h",
                "tracegroupgap": 0,
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
            },
            "margin": {"b": 8, "l": 8, "r": 12, "t": 16},
            "paper_bgcolor": "#ffffff",
            "plot_bgcolor": "#ffffff",
            "xaxis": axis,
            "yaxis": axis,
        },
    )


def finish(figure: go.Figure, *, size: Size, title: str | None, height: float) -> go.Figure:
    """Give `figure` the template, the size and, where one is wanted, a title.

    Args:
        height: of the figure on the screen, in pixels; a paper size scales it with its font.

    Raises:
        InvalidInput: an unknown size.
    """
    if size not in _WIDTHS:
        raise InvalidInput(f"size must be one of {', '.join(get_args(Size))}, not {size!r}")
    width, font_size = _WIDTHS[size]
    figure.layout.template = template(font_size)
    figure.update_layout(width=width, height=round(height * font_size / 14))
    if title is not None:
        pad = {"b": font_size, "t": font_size}
        place = {"automargin": True, "pad": pad, "x": 0, "xref": "paper", "yref": "container"}
        figure.update_layout(title={"text": title, **place})
    return figure
