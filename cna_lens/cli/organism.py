"""`cna-lens organism`: train the model organism anew, and measure a pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cna_lens.cli.options import JsonOption
from cna_lens.cli.terminal import exit_codes, records, say, show_json, show_table


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pair.")],
    seed: Annotated[int, typer.Option(help="Of documents, weights and batch order.")] = 0,
    bfloat16: Annotated[
        bool, typer.Option(help="Matrix products in bfloat16; turn off on older processors.")
    ] = True,
    threads: Annotated[
        int, typer.Option(help="torch threads; the same number, the same pair.")
    ] = 1,
) -> None:
    """Train a base + instruct pair from nothing: about 20 minutes on one core.

    Finished stages are kept and used again, so a run that was stopped goes on.
    """
    with exit_codes():
        from cna_lens.organism.pair import train_pair

        def report(stage: str, step: int, steps: int, loss: float) -> None:
            say(f"{stage}: step {step} of {steps}, loss {loss:.3f}")

        pair = train_pair(out, seed, bfloat16=bfloat16, threads=threads, progress=report)
        say(f"base: {pair.base}\ninstruct: {pair.instruct} (group lasso {pair.group_lasso:g})")


def evaluate(
    folder: Annotated[
        Path | None, typer.Option(help="A trained pair (base/ and instruct/); default: shipped.")
    ] = None,
    split: Annotated[
        Literal["test", "validation"], typer.Option(help="Which held-out families.")
    ] = "test",
    draws: Annotated[int, typer.Option(min=1, help="Random circuits in each control.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the table here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a pair on held-out families: refusal, quality, controls, base against instruct."""
    with exit_codes():
        from cna_lens.files import check_writable, write_text
        from cna_lens.organism import path
        from cna_lens.organism.evaluation import evaluate_pair

        if out is not None:
            check_writable(out)
        base, instruct = (
            (path("base"), path("instruct"))
            if folder is None
            else (folder / "base", folder / "instruct")
        )
        table = evaluate_pair(
            base,
            instruct,
            split,
            random_draws=draws,
        )
        if out is not None:
            write_text(out, table.to_csv(index=False))
        if as_json:
            show_json(records(table))
        else:
            show_table(table[table["draw"].isna()].drop(columns="draw"))
