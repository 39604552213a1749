"""`cna-lens sweep` and `demo`: whole experiments, with their tables and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cna_lens.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    RemoteOption,
    SetOption,
    StyleOption,
    TokensOption,
    load,
)
from cna_lens.cli.terminal import exit_codes, records, say, show_json, show_table


def sweep(
    model: ModelOption = "organism/instruct",
    contrast_set: SetOption = "organism",
    circuit: Annotated[
        Path | None, typer.Option(help="Sweep this circuit; needs --prompts.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts to answer (txt, CSV, JSON, JSONL). Default: the half of the contrast "
            "set that discovery does not see."
        ),
    ] = None,
    multipliers: Annotated[str, typer.Option(help="Strengths, with commas.")] = "0,0.5,1,1.5,2",
    fractions: Annotated[str, typer.Option(help="Circuit sizes, with commas.")] = "0.001",
    random_draws: Annotated[
        int, typer.Option(min=0, help="Matched random circuits beside each circuit, as control.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many prompts a group.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables.")] = Path(
        "runs/sweep"
    ),
    batch_size: Annotated[int, typer.Option(help="Rows that decode together.")] = 64,
    max_new_tokens: TokensOption = None,
    style: StyleOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: RemoteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Scale a circuit by several multipliers and see refusal and quality, with intervals.

    Finished responses are kept in the folder: the same command again goes on where it stopped.
    """
    with exit_codes():
        from cna_lens.circuit import Circuit
        from cna_lens.discovery import contrast
        from cna_lens.errors import InvalidInput
        from cna_lens.experiments import sweep as run_sweep
        from cna_lens.prompts import load_contrast_set, load_prompts

        strengths, sizes = _numbers(multipliers, "multipliers"), _numbers(fractions, "fractions")
        groups = {"prompts": load_prompts(prompts)} if prompts is not None else None
        if circuit is not None:
            what: Any = Circuit.load(circuit)
            if groups is None:
                raise InvalidInput("--circuit needs --prompts FILE: the prompts to answer")
            loaded = load(model, style, device, dtype, trust_remote_code)
        else:
            found_on = load_contrast_set(contrast_set)
            if groups is None:
                found_on, tested_on = found_on.split()
                groups = {
                    "positive": list(tested_on.positive),
                    "negative": list(tested_on.negative),
                }
            loaded = load(model, style, device, dtype, trust_remote_code)
            what = contrast(loaded, found_on)
        result = run_sweep(
            loaded,
            what,
            {group: members[:limit] for group, members in groups.items()},
            strengths,
            fractions=None if isinstance(what, Circuit) else sizes,
            random_draws=random_draws,
            seed=seed,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            journal=out / "journal.jsonl",
        )
        result.save(out)
        summary, controls = result.summary(), result.controls()
        if as_json:
            show_json(
                {
                    "folder": str(out),
                    "summary": records(summary),
                    "controls": records(controls),
                    "provenance": result.provenance.to_dict(),
                }
            )
            return
        show_table(
            summary[summary["intervention"] != "random"],
            ["group", "neurons", "multiplier", "n", "refusal_rate", "quality"],
            title="sweep, with 95 % intervals",
            intervals={
                "refusal_rate": ("refusal_low", "refusal_high"),
                "quality": ("quality_low", "quality_high"),
            },
        )
        if len(controls):
            show_table(
                controls,
                ["group", "neurons", "multiplier", "draws", "refusal_mean", "quality_mean"],
                title="random neurons, matched by layer: mean [least, greatest] draw",
                intervals={
                    "refusal_mean": ("refusal_min", "refusal_max"),
                    "quality_mean": ("quality_min", "quality_max"),
                },
            )
        say(f"responses and tables are in {out}")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")] = Path(
        "runs/demo"
    ),
    draws: Annotated[int, typer.Option(min=1, help="Random circuits in each control.")] = 20,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many prompts a group, for a quick look.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Also write the figures (SVG) and their tables here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The whole experiment on the model organism, offline: tables, files and a page to open."""
    with exit_codes():
        from transformers.utils import logging as hf_logging

        from cna_lens.experiments.demo import run_demo, save_demo
        from cna_lens.experiments.demo_report import write_demo_report, write_figures
        from cna_lens.files import check_writable

        check_writable(out / "report.html")
        hf_logging.disable_progress_bar()
        say("The model organism is a toy: a tiny base + instruct pair trained for this purpose.")
        result = run_demo(draws=draws, limit=limit)
        save_demo(result, out)
        page = write_demo_report(result, out / "report.html")
        if figures is not None:
            write_figures(result, figures)
        if as_json:
            show_json({"folder": str(out), "table": records(result.table)})
            return
        show_table(result.table, title="what was measured", intervals={"value": ("low", "high")})
        show_table(result.examples(), title="what the responses look like")
        say(f"tables and circuits are in {out}; open {page}")


def _numbers(text: str, what: str) -> list[float]:
    from cna_lens.errors import InvalidInput

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInput(f"--{what} must be numbers with commas, not {text!r}") from error
