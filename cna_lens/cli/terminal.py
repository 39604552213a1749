"""What the command line prints: tables for people, JSON for scripts, errors on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cna_lens.errors import CnaLensError

if TYPE_CHECKING:
    import pandas as pd

FAILED = 1  # 2 is a wrong command line (typer), 130 an interruption


def say(text: str) -> None:
    """A line for people, on stderr: never part of what a script reads."""
    Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)


def show_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A data frame as JSON-ready rows; missing and infinite numbers become null."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return rows


def show_table(
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    title: str = "",
    intervals: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """A data frame as a terminal table; numbers short, text wrapped.

    `intervals` names the columns of the bounds that a number is shown with: `0.34 [0.25, 0.44]`.
    """
    intervals = intervals or {}
    bounds = {name for pair in intervals.values() for name in pair}
    columns = [name for name in columns or frame.columns if name not in bounds]
    table = Table(title=escape(title) or None, title_justify="left")
    for name in columns:
        numeric = frame[name].dtype.kind in "ifb"
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in frame.to_dict("records"):
        cells = [
            [_cell(row[part]) for part in (name, *intervals.get(name, ()))] for name in columns
        ]
        table.add_row(*[c[0] + (rf" \[{c[1]}, {c[2]}]" if any(c[1:]) else "") for c in cells])
    console = Console(highlight=False)
    if not console.is_terminal:  # piped: do not squeeze the table into 80 columns
        console = Console(highlight=False, width=200)
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3g}"
    return escape(str(value))


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the package's errors into one line on stderr and exit code 1, Ctrl-C into 130."""
    try:
        yield
    except CnaLensError as error:
        say(f"error: {error}")
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as error:
        say("interrupted")
        raise typer.Exit(130) from error
