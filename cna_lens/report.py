"""Results as one page: a single HTML file that opens from disk, on any screen, with no network.

A `Report` is plain data: a title, a lead in plain words, the key numbers as cards, and sections of
blocks (`Text`, `Plot`, `Table`, `Responses`, `Code`). `write_report` renders it. Every number that
has an interval shows it, and the same report gives the same bytes: there is no time stamp.

What a model wrote is only ever text here: jinja2 escapes every value, and what HTML cannot hold
(control characters, lone surrogates) shows as U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cna_lens.errors import InvalidInput
from cna_lens.files import write_text
from cna_lens.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Card:
    """A key number: what it is, the value, and its interval or what it stands beside."""

    label: str
    value: str
    detail: str = ""

    @classmethod
    def of(
        cls,
        label: str,
        value: float,
        low: float,
        high: float,
        *,
        percent: bool = True,
        interval: str = "95 % interval",
    ) -> Card:
        """A card of a number and its interval: `Card.of("refusal", *wilson(34, 100))`."""
        shown = [_percent(x) if percent else _number(x) for x in (value, low, high)]
        return cls(label, shown[0], f"{interval} {shown[1]} to {shown[2]}")


@dataclass(frozen=True)
class Text:
    """Paragraphs, with an empty line between them."""

    kind: ClassVar[str] = "text"
    text: str

    @property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]


@dataclass(frozen=True)
class Code:
    """Command lines or code, as they are typed."""

    kind: ClassVar[str] = "code"
    code: str


@dataclass(frozen=True, eq=False)
class Plot:
    """A plotly figure. It takes the page's width, and its colours in light and dark.

    Args:
        alt: what the figure shows, for those who do not see it.
        caption: the line under it.
    """

    kind: ClassVar[str] = "plot"
    figure: go.Figure
    alt: str
    caption: str = ""

    @property
    def json(self) -> Markup:
        """The figure as JSON that a <script> element can hold, whatever its labels say."""
        from plotly.io import to_json

        # Python's json, not orjson where that happens to be installed: the bytes stay the same.
        return Markup(to_json(self.figure, engine="json").replace("<", "\\u003c"))


@dataclass(frozen=True, eq=False)
class Table:
    """A data frame with a caption. It scrolls in its own box where it is too wide.

    Args:
        columns: which columns, in order, under which headings; all as they are by default.
        intervals: column -> (low column, high column), shown in its cell: `0.34 [0.25, 0.44]`.
        digits: after the point, at most; a column that needs fewer shows fewer.
    """

    kind: ClassVar[str] = "table"
    frame: pd.DataFrame
    caption: str
    columns: Mapping[str, str] | None = None
    intervals: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    digits: int = 3

    def __post_init__(self) -> None:
        needed = [*(self.columns or {}), *self.intervals, *self._bounds]
        missing = [name for name in needed if name not in self.frame.columns]
        if missing:
            raise InvalidInput(
                f"the table {self.caption!r} lacks the columns {missing}; "
                f"it has {list(self.frame.columns)}"
            )

    @property
    def _bounds(self) -> list[str]:
        return [name for pair in self.intervals.values() for name in pair]

    @property
    def header(self) -> list[tuple[str, bool]]:
        """(heading, whether its cells are numbers) of each shown column."""
        return [(title, self.frame[name].dtype.kind in "iuf") for name, title in self._shown()]

    @property
    def rows(self) -> Iterator[list[str]]:
        present = self.frame.astype(object).where(self.frame.notna(), None)
        digits = {name: self._digits(name) for name, _ in self._shown()}
        for row in present.to_dict("records"):
            cells = [
                [_number(row[part], digits[name]) for part in (name, *self.intervals.get(name, ()))]
                for name, _ in self._shown()
            ]
            yield [each[0] + (f" [{each[1]}, {each[2]}]" if each[1:] else "") for each in cells]

    def _shown(self) -> list[tuple[Any, str]]:
        if self.columns is not None:
            return list(self.columns.items())
        return [(name, str(name)) for name in self.frame.columns if name not in self._bounds]

    def _digits(self, name: str) -> int:
        """The least number of digits that shows the column, and its interval, as exactly."""
        shown = self.frame[[name, *self.intervals.get(name, ())]]
        values = shown.astype(object).to_numpy().ravel()
        texts = [f"{x:.{self.digits}f}" for x in values if isinstance(x, float) and x == x]
        ends = [text.rstrip("0").partition(".")[2] for text in texts]
        return max(map(len, ends), default=0)


@dataclass(frozen=True)
class Reply:
    """One response: what was done to the model, what it wrote, what the scorers say."""

    label: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Exchange:
    """A prompt and its responses, side by side."""

    prompt: str
    replies: tuple[Reply, ...]
    group: str = ""


@dataclass(frozen=True)
class Responses:
    """Example responses, a row a prompt."""

    kind: ClassVar[str] = "responses"
    exchanges: tuple[Exchange, ...]


Block: TypeAlias = Text | Code | Plot | Table | Responses


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A whole page, as data.

    Args:
        title: the page's heading.
        lead: what was asked and what came out, in plain words.
        cards: the key numbers.
        sections: the rest, in order.
        provenance: what each result came from: one, or several by label.
        reproduce: command lines that give this report again.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    cards: Sequence[Card] = ()
    provenance: Provenance | Mapping[str, Provenance] | None = None
    reproduce: str = ""

    @property
    def origins(self) -> dict[str, list[tuple[str, str]]]:
        """label -> (what, value) pairs, nested settings as `settings.position`."""
        found = self.provenance
        if found is None:
            return {}
        named = {"": found} if isinstance(found, Provenance) else found
        return {label: list(_flat(each.to_dict())) for label, each in named.items()}


def render(report: Report) -> str:
    """The page as HTML text."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = files("cna_lens").joinpath("report_template.html").read_text(encoding="utf-8")
    drawn = any(block.kind == "plot" for section in report.sections for block in section.blocks)
    return environment.from_string(source).render(
        report=report,
        lead=Text(report.lead).paragraphs,
        plotly_js=_plotly_js() if drawn else None,
    )


def write_report(path: str | Path, report: Report) -> Path:
    """Write `report` as one HTML file, whole or not at all.

    Raises:
        OutputError: the place cannot be written.

    Example:
        report = Report(
            title="Refusal in organism/instruct",
            lead="Ten neurons of 10,240 decide whether the model refuses.",
            cards=[Card.of("harmful refusal, ablated", *wilson(8, 100))],
            sections=[
                Section("Sweep", [
                    Plot(sweep_curves(found.summary(), found.controls()), alt="Refusal falls ..."),
                    sweep_table(found.summary()),
                ]),
                Section("Controls", [controls_table(found.controls())]),
                Section("Responses", [examples(found.table)]),
            ],
            provenance=found.provenance,
            reproduce="cna-lens demo",
        )
        write_report("runs/report.html", report)
    """
    return write_text(path, render(report))


def sweep_table(summary: pd.DataFrame, caption: str = "Every condition") -> Table:
    """`Sweep.summary()` without its random controls, rates and qualities with 95 % intervals."""
    return Table(
        summary[summary["intervention"] != "random"],
        f"{caption}: refusal rate with its Wilson 95 % interval, quality with its bootstrap "
        "95 % interval over prompts",
        columns={
            "group": "group",
            "neurons": "neurons",
            "multiplier": "multiplier",
            "n": "prompts",
            "refusal_rate": "refusal rate",
            "quality": "quality",
            "response_tokens": "tokens",
            "finished": "finished",
        },
        intervals={
            "refusal_rate": ("refusal_low", "refusal_high"),
            "quality": ("quality_low", "quality_high"),
        },
    )


def controls_table(controls: pd.DataFrame, caption: str = "Random neurons") -> Table:
    """`Sweep.controls()`: the mean over the draws, between the least and the greatest."""
    return Table(
        controls,
        f"{caption}, as many in each layer as the circuit has: mean refusal rate and quality over "
        "the draws [least, greatest]",
        columns={
            "group": "group",
            "neurons": "neurons",
            "multiplier": "multiplier",
            "draws": "draws",
            "refusal_mean": "refusal rate",
            "quality_mean": "quality",
        },
        intervals={
            "refusal_mean": ("refusal_min", "refusal_max"),
            "quality_mean": ("quality_min", "quality_max"),
        },
    )


def examples(table: pd.DataFrame, per_group: int = 2, fraction: float | None = None) -> Responses:
    """The first prompts of each group of `Sweep.table`, with the response at each multiplier.

    Args:
        fraction: the circuit size to show, as in the table; the smallest by default.

    Raises:
        InvalidInput: no rows at that fraction.
    """
    found = table[table["intervention"] != "random"]
    found = found[found["fraction"] == (found["fraction"].min() if fraction is None else fraction)]
    if not len(found):
        raise InvalidInput(f"the table has no responses to show at fraction {fraction}")
    found = found[found["intervention"] == found["intervention"].iloc[0]]
    found = found[found["prompt_id"] < per_group].sort_values("multiplier", kind="stable")
    order = {group: i for i, group in enumerate(dict.fromkeys(table["group"]))}
    exchanges = sorted(
        found.groupby(["group", "prompt_id"], sort=False), key=lambda e: (order[e[0][0]], e[0][1])
    )
    return Responses(
        tuple(
            Exchange(
                str(rows["prompt"].iloc[0]),
                tuple(
                    Reply(
                        f"× {row['multiplier']:g}",
                        str(row["response"]),
                        f"{'refused' if row['refused'] else 'answered'}, "
                        f"quality {row['quality']:.2f}",
                    )
                    for row in rows.to_dict("records")
                ),
                str(group),
            )
            for (group, _), rows in exchanges
        )
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)


def _percent(x: float) -> str:
    return f"{100 * x:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"


def _number(x: Any, digits: int = 3) -> str:
    """A cell: floats short but never a false zero, whole numbers plain, nothing as a dash."""
    if x is None:
        return "–"
    if not isinstance(x, float):
        return str(x)
    text = f"{x:.{digits}f}"
    return f"{x:.1e}" if abs(x) > 1e-9 and float(text) == 0 else text


# What may not stand in an HTML document even as a character reference, and lone surrogates, which
# UTF-8 cannot hold.
_NOT_HTML = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def _clean(value: Any) -> Any:
    """A value that jinja2 is about to escape and print, with those characters as U+FFFD."""
    return value if isinstance(value, Markup) else _NOT_HTML.sub("\ufffd", str(value))


def _plotly_js() -> Markup:
    """plotly.js as the content of a <script>; it has a few such characters in string literals."""
    from plotly.offline import get_plotlyjs

    return Markup(_NOT_HTML.sub(lambda found: f"\\u{ord(found[0]):04x}", get_plotlyjs()))
