"""The `cna-lens` command. Results go to stdout, progress and messages to stderr.

Exit codes: 0 done, 1 something was wrong with the input, the model or a file (said in one line),
2 a wrong command line, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os

import typer

from cna_lens.cli import find, organism, run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find, test and picture the neurons behind a model's behaviour.\n\n"
    "Start with: cna-lens demo",
)
for command in (find.info, find.discover, find.generate, run.sweep, run.demo):
    app.command()(command)

organism_app = typer.Typer(
    no_args_is_help=True,
    help="The model organism: a tiny base + instruct pair that shows the whole method offline.",
)
organism_app.command()(organism.train)
organism_app.command()(organism.evaluate)
app.add_typer(organism_app, name="organism")


def main() -> None:
    """Entry point of the `cna-lens` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.suppress(BrokenPipeError):  # `cna-lens ... | head`
        app()
