"""Figures show the numbers of their tables, and leave plotly as it was."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from cna_lens import plotting
from cna_lens.circuit import Circuit
from cna_lens.errors import CircuitMismatch, InvalidInput, MissingExtra
from cna_lens.plotting.style import PALETTE

needs_browser = pytest.mark.skipif(
    importlib.util.find_spec("kaleido") is None or shutil.which("chromium") is None,
    reason="pictures need kaleido and chromium",
)


def circuit(*neurons: tuple[int, int], n_layers: int = 8) -> Circuit:
    layers, indices = zip(*neurons, strict=True)
    ones = (1.0,) * len(neurons)
    return Circuit(n_layers, 16, layers, indices, delta=ones, pooled_std=ones)


BASE = circuit((7, 0), (7, 1), (6, 2), (3, 3))
INSTRUCT = circuit((7, 0), (7, 5), (7, 6), (6, 2), (5, 1))


def summary(
    groups: tuple[str, ...] = ("harmful", "benign"),
    neurons: tuple[int, ...] = (10,),
    multipliers: tuple[float, ...] = (2.0, 0.0, 1.0),
    intervention: str = "circuit",
) -> pd.DataFrame:
    rows = []
    for group in groups:
        for size in neurons:
            for m in multipliers:
                rate = 0.4 * m + 0.05 * groups.index(group)
                rows.append(
                    {
                        "group": group,
                        "intervention": intervention,
                        "draw": -1,
                        "fraction": size / 10_000,
                        "neurons": size,
                        "multiplier": m,
                        "n": 40,
                        "refusal_rate": rate,
                        "refusal_low": rate * 0.8,
                        "refusal_high": min(1.0, rate + 0.1),
                        "quality": 0.9,
                        "quality_low": 0.85,
                        "quality_high": 0.95,
                        "response_tokens": 20.5,
                        "finished": 1.0,
                    }
                )
    return pd.DataFrame(rows)


def controls(groups: tuple[str, ...] = ("harmful", "benign"), neurons: int = 10) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "group": group,
                "fraction": neurons / 10_000,
                "neurons": neurons,
                "multiplier": m,
                "draws": 5,
                "refusal_mean": 0.8,
                "refusal_min": 0.75,
                "refusal_max": 0.9,
                "quality_mean": 0.97,
            }
            for group in groups
            for m in (0.0, 1.0, 2.0)
        ]
    )


def drawn(figure: go.Figure, panel: int, name: str) -> Any:
    """The trace of a line: panel 1 is refusal, 2 quality."""
    axis = {1: "y", 2: "y2"}[panel]
    (found,) = [t for t in figure.data if t.name == name and t.yaxis == axis]
    return found


# layer_concentration


def test_bars_are_the_share_of_each_layer_and_the_line_their_sum() -> None:
    figure = plotting.layer_concentration({"base": BASE, "instruct": INSTRUCT})
    bars = [trace for trace in figure.data if trace.type == "bar"]
    lines = [trace for trace in figure.data if trace.type == "scatter"]
    assert [bar.name for bar in bars] == ["base", "instruct"]
    assert list(bars[0].y) == [0, 0, 0, 0.25, 0, 0, 0.25, 0.5]
    assert list(bars[1].customdata) == [0, 0, 0, 0, 0, 1, 1, 3]
    assert list(lines[0].y) == [0, 0, 0, 0.25, 0.25, 0.25, 0.5, 1]
    assert figure.layout.xaxis.title.text == "layer"
    assert figure.layout.yaxis.title.text == "share of circuit neurons"


@pytest.mark.parametrize(
    ("n_layers", "late_layers", "first"),
    [(8, None, 6), (10, None, 7), (16, None, 12), (1, None, 0), (16, 3, 13)],
)
def test_the_last_quarter_of_layers_is_shaded(
    n_layers: int, late_layers: int | None, first: int
) -> None:
    figure = plotting.layer_concentration(
        circuit((0, 0), n_layers=n_layers), late_layers=late_layers
    )
    (shade,) = figure.layout.shapes
    assert (shade.x0, shade.x1) == (first - 0.5, n_layers - 0.5)


def test_layers_of_models_of_different_depth_do_not_share_an_axis() -> None:
    with pytest.raises(CircuitMismatch, match="depth"):
        plotting.layer_concentration({"a": BASE, "b": circuit((0, 0), n_layers=4)})
    with pytest.raises(InvalidInput, match="no circuits"):
        plotting.layer_concentration({})
    with pytest.raises(InvalidInput, match="between 1 and 8"):
        plotting.layer_concentration(BASE, late_layers=9)


# sweep_curves


def test_refusal_is_never_drawn_without_quality() -> None:
    table = summary()
    figure = plotting.sweep_curves(table)
    for group in ("harmful", "benign"):
        rows = table[table["group"] == group].sort_values("multiplier")
        for panel, column in ((1, "refusal_rate"), (2, "quality")):
            line = drawn(figure, panel, group)
            assert list(line.x) == [0.0, 1.0, 2.0]
            assert list(line.y) == rows[column].tolist()
    assert figure.layout.yaxis.title.text == "refusal rate"
    assert figure.layout.yaxis2.title.text == "quality"
    assert "multiplier" in figure.layout.xaxis2.title.text
    assert figure.layout.xaxis.matches == "x2"


def test_bands_are_the_intervals() -> None:
    table = summary()
    band = drawn(plotting.sweep_curves(table), 1, "harmful, interval")
    rows = table[table["group"] == "harmful"].sort_values("multiplier")
    low, high = rows["refusal_low"].tolist(), rows["refusal_high"].tolist()
    assert list(band.x) == [0, 1, 2, 2, 1, 0]
    assert list(band.y) == [*high, *reversed(low)]
    assert band.fill == "toself"


def test_a_single_multiplier_shows_its_interval_as_a_bar() -> None:
    figure = plotting.sweep_curves(summary(groups=("harmful",), multipliers=(0.5,)))
    point = drawn(figure, 1, "harmful")
    assert point.error_y.array[0] == pytest.approx(0.1)
    assert point.error_y.arrayminus[0] == pytest.approx(0.04)
    assert len(figure.data) == 2


def test_random_controls_stand_beside_the_circuit_with_their_range() -> None:
    figure = plotting.sweep_curves(summary(), controls())
    line, band = drawn(figure, 1, "benign, random"), drawn(figure, 1, "benign, random, interval")
    assert (line.line.dash, list(line.y)) == ("dot", [0.8] * 3)
    assert list(band.y) == [0.9] * 3 + [0.75] * 3
    assert list(drawn(figure, 2, "benign, random").y) == [0.97] * 3
    assert line.line.color == drawn(figure, 1, "benign").line.color


def test_only_controls_of_what_is_shown_are_drawn() -> None:
    figure = plotting.sweep_curves(summary(groups=("harmful",)), controls())
    assert {trace.name for trace in figure.data if trace.showlegend} == {
        "harmful",
        "harmful, random",
    }
    assert len(plotting.sweep_curves(summary(), controls(neurons=99)).data) == 8


def test_random_rows_of_the_summary_are_not_lines() -> None:
    both = pd.concat([summary(), summary(intervention="random")])
    assert len(plotting.sweep_curves(both).data) == len(plotting.sweep_curves(summary()).data)


def test_fractions_differ_in_dash_and_say_how_many_neurons() -> None:
    figure = plotting.sweep_curves(summary(groups=("harmful",), neurons=(10, 50)))
    lines = [drawn(figure, 1, f"{n} neurons") for n in (10, 50)]
    assert len({line.line.dash for line in lines}) == len({line.line.color for line in lines}) == 2


def test_groups_and_fractions_differ_in_colour_and_dash() -> None:
    figure = plotting.sweep_curves(summary(neurons=(10, 50)))
    looks = {
        (line.line.color, line.line.dash)
        for line in figure.data
        if line.showlegend and line.yaxis == "y"
    }
    assert len(looks) == 4


def test_only_a_circuit_has_one_as_its_neutral_multiplier() -> None:
    assert len(plotting.sweep_curves(summary()).layout.shapes) == 2  # one a panel
    other = plotting.sweep_curves(summary(intervention="add direction"))
    assert not other.layout.shapes
    assert other.layout.xaxis2.title.text == "strength"


def test_a_table_that_is_no_summary_is_refused() -> None:
    with pytest.raises(InvalidInput, match="quality_low"):
        plotting.sweep_curves(summary().drop(columns="quality_low"))
    with pytest.raises(InvalidInput, match="refusal_max"):
        plotting.sweep_curves(summary(), controls().drop(columns="refusal_max"))
    with pytest.raises(InvalidInput, match="no rows"):
        plotting.sweep_curves(summary(intervention="random"))


# overlap_heatmap


def test_overlap_counts_each_neuron_once() -> None:
    (heat,) = plotting.overlap_heatmap(BASE, INSTRUCT).data
    assert heat.y == ("only base (2)", "shared (2)", "only instruct (3)")
    assert [list(row) for row in heat.z] == [
        [0, 0, 0, 1, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 1, 0, 2],
    ]


def test_overlap_is_of_one_model_shape() -> None:
    with pytest.raises(CircuitMismatch, match="shape"):
        plotting.overlap_heatmap(BASE, circuit((0, 0), n_layers=4))


# every figure

FIGURES = {
    "layers": lambda **options: plotting.layer_concentration(BASE, **options),
    "sweep": lambda **options: plotting.sweep_curves(summary(), controls(), **options),
    "overlap": lambda **options: plotting.overlap_heatmap(BASE, INSTRUCT, **options),
}


@pytest.mark.parametrize("name", FIGURES)
def test_plotly_is_left_as_it_was(name: str) -> None:
    before = (pio.templates.default, sorted(pio.templates), pio.renderers.default)
    figure = FIGURES[name]()
    assert figure.layout.template.layout.colorway == PALETTE
    assert (pio.templates.default, sorted(pio.templates), pio.renderers.default) == before
    assert go.Figure().layout.template.layout.colorway != PALETTE


@pytest.mark.parametrize("name", FIGURES)
def test_sizes_fit_the_columns_of_a_paper(name: str) -> None:
    figures = {size: FIGURES[name](size=size) for size in ("screen", "one-column", "two-column")}
    widths = {size: figure.layout.width for size, figure in figures.items()}
    assert widths == {"screen": None, "one-column": 322, "two-column": 662}  # 3.35 and 6.9 inches
    assert figures["one-column"].layout.template.layout.font.size == 9
    assert figures["screen"].layout.title.text is None
    assert FIGURES[name](title="A title").layout.title.text == "A title"
    with pytest.raises(InvalidInput, match="three-column"):
        FIGURES[name](size="three-column")


# write_figure


def test_a_page_holds_plotly_and_is_the_same_each_time(tmp_path: Path) -> None:
    pages = [
        plotting.write_figure(plotting.layer_concentration(BASE), tmp_path / name).read_bytes()
        for name in ("a.html", "b.HTML")
    ]
    assert pages[0] == pages[1]
    assert len(pages[0]) > 1_000_000
    assert b"<script src" not in pages[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.HTML"]


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.html, \.png"):
        plotting.write_figure(go.Figure(), tmp_path / "figure.docx")


def test_a_picture_without_kaleido_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(MissingExtra, match=r"cna-lens\[static\]"):
        plotting.write_figure(go.Figure(), tmp_path / "figure.svg")
    assert not list(tmp_path.iterdir())
    plotting.write_figure(go.Figure(), tmp_path / "figure.html")


def test_a_picture_without_a_browser_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    with pytest.raises(MissingExtra, match="chromium"):
        plotting.write_figure(go.Figure(), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


@needs_browser
@pytest.mark.parametrize(
    ("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<svg"), (".pdf", b"%PDF")]
)
def test_pictures_for_a_paper(tmp_path: Path, suffix: str, begins: bytes) -> None:
    figure = plotting.layer_concentration(BASE, size="one-column")
    written = plotting.write_figure(figure, tmp_path / f"layers{suffix}")
    data = written.read_bytes()
    assert data.startswith(begins)
    if suffix == ".png":  # width in the PNG header: three pixels for one of the figure
        assert int.from_bytes(data[16:20], "big") == 3 * 322
    assert list(tmp_path.iterdir()) == [written]
