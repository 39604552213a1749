"""The page: safe with any text, the same bytes each time, and drawn in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from cna_lens.errors import InvalidInput, OutputError
from cna_lens.provenance import Provenance
from cna_lens.report import (
    Card,
    Code,
    Exchange,
    Plot,
    Reply,
    Report,
    Responses,
    Section,
    Table,
    Text,
    controls_table,
    examples,
    render,
    sweep_table,
    write_report,
)
from cna_lens.statistics import wilson

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = (
    "<script>window.broken = 1</script>",
    "</style></script><!-- <img src=x onerror='window.broken = 1'>",
    "{{ 7 * 7 }} {% raw %} &amp; \"double\" 'single'",
    "x" * 5000,
    "مرحبا \u202e reversed",
    "🙂 emoji\nand a second line",
)


def text_of(block: Text | Code | Plot | Table | Responses) -> str:
    return render(Report("A title", "A lead.", [Section("A section", [block])]))


def responses(*texts: str, prompt: str = "A prompt") -> Responses:
    return Responses((Exchange(prompt, tuple(Reply("× 0", text, "note") for text in texts)),))


def full_report() -> Report:
    """Everything that a page can hold, twice as wide as a phone."""
    wide = pd.DataFrame([{f"column {i}": f"some words {i}" for i in range(30)}] * 3)
    figures = [go.Figure(go.Bar(x=[1, 2], y=[3.0, i])) for i in range(3)]
    return Report(
        title="Refusal",
        lead="What was asked.\n\nWhat came out.",
        cards=[Card.of("refusal", *wilson(34, 100))],
        sections=[
            Section("Figures", [Plot(figure, alt="Two bars.", caption="c") for figure in figures]),
            Section("Tables", [Table(wide, "A wide table"), Code("cna-lens " + "--long " * 90)]),
            Section("Responses", [responses(*HOSTILE, prompt=HOSTILE[0])]),
        ],
        provenance={"base": Provenance(model="organism/base"), "x" * 300: Provenance(seed=1)},
        reproduce="cna-lens demo",
    )


class Outline(HTMLParser):
    """The elements of a page, and whether they close in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.references += [values[key] or "" for key in ("aria-labelledby",) if key in values]
        self.references += [(values.get("href") or "").removeprefix("#")] if tag == "a" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)


def test_the_page_is_whole_html_with_one_plotly() -> None:
    page = render(full_report())
    outline = Outline(page)
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not outline.open
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.references) <= set(outline.ids)
    headings = [tag for tag in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[:2] == ["h1", "h2"]
    assert headings.count("h1") == 1
    assert page.count("* plotly.js v") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", page)


def test_no_figure_no_plotly() -> None:
    assert len(text_of(Text("Words."))) < 20_000


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = [write_report(tmp_path / f"{i}.html", full_report()).read_bytes() for i in range(2)]
    assert pages[0] == pages[1]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_wrote_is_only_text(text: str) -> None:
    frame = pd.DataFrame({text: [text]})
    cards = [Card(text, text, text)]
    blocks = [Text(text), Code(text), Table(frame, text), responses(text, prompt=text)]
    page = render(Report(text, text, [Section(text, blocks)], cards, reproduce=text))
    plain = render(Report("t", "t", [Section("t", [
        Text("t"), Code("t"), Table(pd.DataFrame({"t": ["t"]}), "t"), responses("t", prompt="t"),
    ])], [Card("t", "t", "t")], reproduce="t"))  # fmt: skip
    assert Outline(page).tags == Outline(plain).tags
    assert "".join(Outline(page).words).count(text) >= 11


def test_labels_of_a_figure_cannot_leave_their_script() -> None:
    figure = go.Figure(go.Bar(x=["</script><script>alert(1)</script>"], y=[1]))
    page = text_of(Plot(figure, alt='"><script>alert(1)</script>'))
    assert Outline(page).tags.count("script") == 3  # plotly.js, the data, the drawing
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)
    assert json.loads(data)["data"][0]["x"] == ["</script><script>alert(1)</script>"]


def test_characters_that_html_cannot_hold_are_replaced(tmp_path: Path) -> None:
    block = responses("a\x00b\ud800c\x1bd\ufffee\tf\ng")
    assert "a\ufffdb\ufffdc\ufffdd\ufffde\tf\ng" in text_of(block)
    page = Report("t", "t", [Section("s", [block, Plot(go.Figure(), alt="nothing")])])
    data = write_report(tmp_path / "page.html", page).read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", data)  # in plotly.js neither


def test_a_card_shows_its_interval() -> None:
    assert Card.of("refusal", *wilson(34, 100)) == Card(
        "refusal", "34\xa0%", "95 % interval 25.5\xa0% to 43.7\xa0%"
    )
    assert Card.of("quality", 0.98, 0.97, 1.0, percent=False, interval="range").detail == (
        "range 0.970 to 1.000"
    )


def test_a_table_shows_intervals_in_their_cell() -> None:
    frame = pd.DataFrame(
        {"what": ["a", "b"], "value": [0.34, 1.0], "low": [0.255, 1], "high": [0.437, 1], "n": 100}
    )
    table = Table(frame, "c", intervals={"value": ("low", "high")})
    assert table.header == [("what", False), ("value", True), ("n", True)]
    assert list(table.rows) == [
        ["a", "0.340 [0.255, 0.437]", "100"],
        ["b", "1.000 [1.000, 1.000]", "100"],
    ]


def test_numbers_are_short_but_never_a_false_zero() -> None:
    frame = pd.DataFrame({"m": [0.0, 0.5], "tiny": [0.00002, 1.0], "gap": [None, 0.1234]})
    assert list(Table(frame, "c").rows) == [["0.0", "2.0e-05", "–"], ["0.5", "1", "0.123"]]


def test_a_table_names_the_columns_that_are_missing() -> None:
    with pytest.raises(InvalidInput, match="'low'"):
        Table(pd.DataFrame({"value": [1]}), "c", intervals={"value": ("low", "high")})
    with pytest.raises(InvalidInput, match="refusal_rate"):
        sweep_table(pd.DataFrame({"intervention": ["circuit"], "group": ["harmful"]}))


def sweep_responses() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "group": group,
                "prompt_id": i,
                "prompt": f"{group} {i}",
                "intervention": intervention,
                "draw": -1,
                "fraction": fraction,
                "multiplier": m,
                "response": f"{intervention} {fraction} {m}",
                "refused": m > 0.5,
                "quality": 0.98,
            }
            for intervention in ("circuit", "random")
            for fraction in (0.001, 0.01)
            for m in (1.0, 0.0, 2.0)
            for group in ("harmful", "benign")
            for i in range(3)
        ]
    )


def test_examples_are_side_by_side_per_multiplier() -> None:
    shown = examples(sweep_responses(), per_group=2).exchanges
    assert [e.prompt for e in shown] == ["harmful 0", "harmful 1", "benign 0", "benign 1"]
    assert [reply.label for reply in shown[0].replies] == ["× 0", "× 1", "× 2"]
    assert [reply.text for reply in shown[0].replies] == [
        f"circuit 0.001 {m:.1f}" for m in range(3)
    ]
    assert shown[0].replies[0].note == "answered, quality 0.98"
    assert shown[0].replies[1].note == "refused, quality 0.98"
    (first, *_) = examples(sweep_responses(), per_group=1, fraction=0.01).exchanges
    assert first.replies[0].text == "circuit 0.01 0.0"
    with pytest.raises(InvalidInput, match=r"0\.5"):
        examples(sweep_responses(), fraction=0.5)


def test_controls_show_the_range_over_draws() -> None:
    frame = pd.DataFrame(
        {
            "group": ["harmful"], "fraction": [0.001], "neurons": [10], "multiplier": [0.0],
            "draws": [20], "refusal_mean": [0.95], "refusal_min": [0.91], "refusal_max": [1.0],
            "quality_mean": [0.99], "quality_min": [0.98], "quality_max": [1.0],
        }
    )  # fmt: skip
    (row,) = controls_table(frame).rows
    assert row == ["harmful", "10", "0", "20", "0.95 [0.91, 1.00]", "0.99 [0.98, 1.00]"]


def test_provenance_and_command_are_on_the_page() -> None:
    found = Provenance(model="organism/instruct", seed=7).with_settings(filter={"share": 0.8})
    page = render(Report("t", "l", [], provenance=found, reproduce="cna-lens demo --out <folder>"))
    words = "".join(Outline(page).words)
    for word in ("organism/instruct", "settings.filter.share", "0.8", "versions.cna-lens"):
        assert word in words
    assert "cna-lens demo --out <folder>" in words


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        write_report(tmp_path / "file" / "page.html", Report("t", "l", []))


# in a browser


def browse(page: Path, *options: str) -> tuple[str, list[str]]:
    """The page's elements once its scripts have run, and what it wrote on the console."""
    assert CHROMIUM is not None
    run = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
            "--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom",
            f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
def test_the_page_opens_without_errors_at_phone_and_desktop_width(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", full_report())
    (tmp_path / "frames.html").write_text(
        """<!DOCTYPE html><meta charset="utf-8"><pre></pre>
        <iframe src="report.html" style="width:360px;height:740px"></iframe>
        <iframe src="report.html" style="width:1280px;height:900px"></iframe>
        <script>setTimeout(() => {
          const found = [...document.querySelectorAll("iframe")].map(({contentWindow: w}) => ({
            page: w.document.documentElement.clientWidth,
            content: w.document.documentElement.scrollWidth,
            drawn: w.document.querySelectorAll(".plot[data-drawn=light] .main-svg .bars").length,
            broken: "broken" in w,
          }));
          document.querySelector("pre").textContent = JSON.stringify(found);
        }, 10000)</script>"""
    )
    dom, console = browse(tmp_path / "frames.html", "--window-size=1400,900")
    assert console == []
    (found,) = re.findall(r"<pre>(.*?)</pre>", dom)
    for seen in json.loads(html.unescape(found)):
        assert seen["drawn"] == 3
        assert seen["content"] <= seen["page"]  # nothing scrolls sideways but its own box
        assert not seen["broken"]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
def test_figures_follow_the_dark_mode(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", full_report())
    dom, console = browse(page, "--blink-settings=preferredColorScheme=0")
    assert console == []
    assert len(re.findall(r'data-drawn="dark"', dom)) == 3
    assert dom.count("fill: rgb(230, 233, 237)") > 10  # tick labels in the page's light ink
