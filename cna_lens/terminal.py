"""What the command line prints: tables for people, JSON for scripts, errors on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
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


def show_table(frame: pd.DataFrame, columns: Sequence[str] | None = None, title: str = "") -> None:
    """A data frame as a terminal table; numbers short, text wrapped."""
    table = Table(title=title or None, title_justify="left")
    columns = list(columns or frame.columns)
    for name in columns:
        numeric = frame[name].dtype.kind in "ifb"
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in frame[columns].itertuples(index=False):
        table.add_row(*[_cell(value) for value in row])
    console = Console(highlight=False)
    if not console.is_terminal:  # piped: do not squeeze the table into 80 columns
        console = Console(highlight=False, width=200)
    console.print(table)


def _cell(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
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
