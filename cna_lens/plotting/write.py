"""Figures to files: a page that holds everything it needs, or a picture for a paper."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from cna_lens.errors import InvalidInput, MissingExtra
from cna_lens.files import write_bytes, write_text

_STATIC = (".png", ".svg", ".pdf")
_ELSE = "Or write .html, which needs neither."


def write_figure(figure: go.Figure, path: str | Path, *, scale: float = 3.0) -> Path:
    """Write `figure` in the format that the name's ending says, whole or not at all.

    Args:
        path: .html (interactive, plotly.js inside, no network), .png, .svg or .pdf.
        scale: of .png: pixels for one CSS pixel; 3 is 288 dots an inch.

    Raises:
        InvalidInput: another ending.
        MissingExtra: a picture needs kaleido and a Chrome or Chromium.
        OutputError: the place cannot be written.

    Example:
        write_figure(figure, "figures/layers.html")
        write_figure(layer_concentration(circuit, size="one-column"), "figures/layers.pdf")
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".html":
        # a fixed id, or every call would write other bytes
        return write_text(path, figure.to_html(include_plotlyjs=True, div_id="figure"))
    if suffix not in _STATIC:
        raise InvalidInput(f"cannot write {path}: the name must end in .html, .png, .svg or .pdf")
    return write_bytes(path, _picture(figure, suffix[1:], scale))


def _picture(figure: go.Figure, form: str, scale: float) -> bytes:
    try:
        import kaleido
        from choreographer.errors import BrowserFailedError, ChromeNotFoundError
    except ImportError as error:
        raise MissingExtra(
            f"writing {form.upper()} needs kaleido: pip install 'cna-lens[static]'. {_ELSE}"
        ) from error
    layout = figure.layout
    options = {
        "format": form,
        "width": layout.width or 800,
        "height": layout.height or 500,
        "scale": scale if form == "png" else 1,
    }
    try:
        # Not figure.to_image, which lets the browser fetch MathJax from the network.
        picture: bytes = kaleido.calc_fig_sync(
            figure.to_dict(), opts=options, kopts={"mathjax": False}
        )
    except (ChromeNotFoundError, BrowserFailedError) as error:
        raise MissingExtra(
            f"writing {form.upper()} needs a Chrome or Chromium that starts: "
            f"apt-get install chromium, or plotly_get_chrome. {_ELSE}"
        ) from error
    return picture
