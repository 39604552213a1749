"""The `cna-lens` command. Results go to stdout, progress and messages to stderr.

Exit codes: 0 done, 1 something was wrong with the input, the model or a file (said in one line),
2 a wrong command line, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cna_lens.terminal import exit_codes, records, say, show_json, show_table

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from cna_lens.formatting import Style

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find, test and picture the neurons behind a model's behaviour.\n\n"
    "Start with: cna-lens demo",
)
organism_app = typer.Typer(
    no_args_is_help=True,
    help="The model organism: a tiny base + instruct pair that shows the whole method offline.",
)
app.add_typer(organism_app, name="organism")

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="organism/instruct, organism/base, a local Hugging Face folder, or a name such as "
        "meta-llama/Llama-3.2-1B-Instruct.",
    ),
]
SetOption = Annotated[
    str,
    typer.Option(
        "--contrast-set",
        "-c",
        help="A built-in set (`cna-lens info` lists them) or a CSV, JSON or JSONL file.",
    ),
]
FractionOption = Annotated[
    float, typer.Option(help="Share of all MLP neurons in the circuit; 0.001 is 0.1 %.")
]
StyleOption = Annotated[
    Literal["auto", "chat", "plain"],
    typer.Option(
        help="How prompts are written: by the chat template, plain, or auto: chat if there is one."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, mps. Default: the best there is.")
]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16. Default: bfloat16 on CUDA, else float32.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for scripts.")]
TokensOption = Annotated[
    int | None, typer.Option(help="New tokens a response, at most. Default: 150 if they fit.")
]
RemoteOption = Annotated[
    bool, typer.Option(help="Run Python code that comes with the checkpoint. Off by default.")
]


def main() -> None:
    """Entry point of the `cna-lens` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.suppress(BrokenPipeError):  # `cna-lens ... | head`
        app()


def _load(
    name: str, style: Style, device: str | None, dtype: str | None, trust_remote_code: bool = False
) -> HookedTransformer:
    from transformers.utils import logging as hf_logging

    from cna_lens.models import load_model

    hf_logging.disable_progress_bar()
    say(f"loading {name}")
    return load_model(
        name,
        device=device,
        dtype=dtype,
        style=style,
        trust_remote_code=trust_remote_code,
    )


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="A model; without one: what is here.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Show the tokens that the model sees for this prompt.")
    ] = None,
    style: StyleOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: RemoteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Versions and built-in contrast sets; or what a model is and how it reads a prompt."""
    import pandas as pd

    with exit_codes():
        if model is None:
            from cna_lens.prompts import contrast_set_names, load_contrast_set
            from cna_lens.provenance import package_versions

            sets = [load_contrast_set(name) for name in contrast_set_names()]
            facts: dict[str, Any] = {
                "versions": package_versions(),
                "contrast_sets": [
                    {"name": s.name, "positive": len(s.positive), "negative": len(s.negative)}
                    for s in sets
                ],
                "models": ["organism/base", "organism/instruct"],
            }
            if as_json:
                show_json(facts)
                return
            show_table(pd.DataFrame(facts["contrast_sets"]), title="built-in contrast sets")
            show_table(pd.DataFrame(facts["versions"].items(), columns=["package", "version"]))
            return

        from cna_lens.formatting import show_tokens
        from cna_lens.models import describe
        from cna_lens.models import info as model_info

        loaded = _load(model, style, device, dtype, trust_remote_code)
        about = model_info(loaded)
        facts = {
            "n_layers": loaded.cfg.n_layers,
            "d_model": loaded.cfg.d_model,
            "d_mlp": loaded.cfg.d_mlp,
            "neurons": loaded.cfg.n_layers * (loaded.cfg.d_mlp or 0),
            "n_ctx": loaded.cfg.n_ctx,
            "d_vocab": loaded.cfg.d_vocab,
            "stop_tokens": list(about.stop_tokens),
            **describe(loaded).to_dict(),
        }
        tokens = None
        if prompt is not None and about.tokenizer is not None:
            tokens = show_tokens(about.tokenizer, prompt, about.form)
        if as_json:
            show_json({**facts, "tokens": None if tokens is None else records(tokens)})
            return
        shown = [(key, str(value)) for key, value in facts.items() if key != "versions"]
        show_table(pd.DataFrame(shown, columns=["what", "value"]), title=model)
        if tokens is not None:
            tokens["token"] = [repr(token) for token in tokens["token"]]
            show_table(tokens, title="what the model sees; neurons are read at the last token")


@app.command()
def discover(
    model: ModelOption = "organism/instruct",
    contrast_set: SetOption = "organism",
    fraction: FractionOption = 0.001,
    out: Annotated[Path, typer.Option("--out", "-o", help="The circuit file.")] = Path(
        "circuit.json"
    ),
    measured: Annotated[
        Path | None,
        typer.Option(help="Also keep every neuron's statistic (safetensors), for other sizes."),
    ] = None,
    by: Annotated[
        Literal["delta", "effect_size"],
        typer.Option(help="Rank by delta (the paper) or its size in standard deviations."),
    ] = "delta",
    position: Annotated[
        str, typer.Option(help="Where neurons are read: last, mean, or -2, -3 ... from the end.")
    ] = "last",
    universal_filter: Annotated[
        bool, typer.Option(help="Leave out neurons that fire for nearly every prompt.")
    ] = True,
    batch_size: Annotated[int, typer.Option(help="Prompts in a forward pass.")] = 32,
    style: StyleOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: RemoteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the neurons that most separate the two sides of a contrast set."""
    with exit_codes():
        from cna_lens.activations import neuron_count
        from cna_lens.discovery import contrast
        from cna_lens.prompts import load_contrast_set

        neuron_count(fraction, 1)
        prompts = load_contrast_set(contrast_set)
        loaded = _load(model, style, device, dtype, trust_remote_code)
        found = contrast(
            loaded,
            prompts,
            position=_position(position),
            universal_prompts="diverse" if universal_filter else None,
            batch_size=batch_size,
        )
        circuit = found.select(fraction, by=by)
        circuit.save(out)
        if measured is not None:
            found.save(measured)
        if as_json:
            show_json(
                {
                    "circuit": str(out),
                    "neurons": records(circuit.table()),
                    "provenance": circuit.provenance.to_dict(),
                }
            )
            return
        show_table(circuit.table().head(20), title=f"top of {circuit.name}, all in {out}")
        counts = circuit.layer_table()
        show_table(counts[counts["neurons"] > 0], title="by layer")


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts, each in quotes.")] = None,
    prompts_file: Annotated[
        str | None, typer.Option("--prompts", help="Prompts from a txt, CSV, JSON or JSONL file.")
    ] = None,
    model: ModelOption = "organism/instruct",
    circuit: Annotated[
        Path | None, typer.Option(help="A circuit file from `cna-lens discover`.")
    ] = None,
    multiplier: Annotated[
        float, typer.Option(help="0 ablates the circuit, 1 changes nothing, above 1 amplifies.")
    ] = 0.0,
    positions: Annotated[
        Literal["all", "prompt", "generated", "last"],
        typer.Option(help="Where in the sequence the circuit is scaled."),
    ] = "all",
    max_new_tokens: TokensOption = None,
    temperature: Annotated[float, typer.Option(help="0 decodes greedily; above 0 samples.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    style: StyleOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    trust_remote_code: RemoteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer prompts, with a circuit scaled if one is given, and without beside it."""
    import pandas as pd

    with exit_codes():
        from cna_lens.circuit import Circuit
        from cna_lens.errors import InvalidInput
        from cna_lens.generation import Sampling
        from cna_lens.generation import generate as respond
        from cna_lens.interventions import ScaleNeurons
        from cna_lens.prompts import load_prompts

        texts = [*(prompts or []), *(load_prompts(prompts_file) if prompts_file else [])]
        if not texts:
            raise InvalidInput("no prompts: give some in quotes, or --prompts FILE")
        neurons = Circuit.load(circuit) if circuit is not None else None
        strengths = [1.0] if neurons is None else [1.0, multiplier]
        loaded = _load(model, style, device, dtype, trust_remote_code)
        rows = [(m, text) for m in dict.fromkeys(strengths) for text in texts]
        steering: Any = []
        if neurons is not None:
            steering = [(ScaleNeurons(neurons, positions), [m for m, _ in rows])]
        answers = respond(
            loaded,
            [text for _, text in rows],
            steering,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, seed=seed) if temperature else None,
        )
        table = pd.DataFrame(
            [
                {"prompt": text, "multiplier": m, "response": a.text, "finished": a.finished}
                for (m, text), a in zip(rows, answers, strict=True)
            ]
        ).sort_values("prompt", kind="stable", key=lambda s: s.map(texts.index))
        if as_json:
            show_json(records(table))
        else:
            show_table(table, ["prompt", "multiplier", "response"])


@app.command()
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
        int, typer.Option(help="Matched random circuits beside each circuit, as control.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many prompts a group.")] = None,
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
            loaded = _load(model, style, device, dtype, trust_remote_code)
        else:
            found_on = load_contrast_set(contrast_set)
            if groups is None:
                found_on, tested_on = found_on.split()
                groups = {
                    "positive": list(tested_on.positive),
                    "negative": list(tested_on.negative),
                }
            loaded = _load(model, style, device, dtype, trust_remote_code)
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
                intervals={"refusal_mean": ("refusal_min", "refusal_max")},
            )
        say(f"responses and tables are in {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")] = Path(
        "runs/demo"
    ),
    draws: Annotated[int, typer.Option(help="Random circuits in each control.")] = 20,
    limit: Annotated[
        int | None, typer.Option(help="At most so many prompts a group, for a quick look.")
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


@organism_app.command("train")
def organism_train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pair.")],
    seed: Annotated[int, typer.Option(help="Of documents, weights and batch order.")] = 0,
    threads: Annotated[
        int, typer.Option(help="torch threads; the same number, the same pair.")
    ] = 1,
) -> None:
    """Train a base + instruct pair from nothing. Finished stages are kept and used again."""
    with exit_codes():
        from cna_lens.organism.pair import train_pair

        def report(stage: str, step: int, steps: int, loss: float) -> None:
            say(f"{stage}: step {step} of {steps}, loss {loss:.3f}")

        pair = train_pair(out, seed, threads=threads, progress=report)
        say(f"base: {pair.base}\ninstruct: {pair.instruct} (group lasso {pair.group_lasso:g})")


@organism_app.command("evaluate")
def organism_evaluate(
    folder: Annotated[
        Path | None, typer.Option(help="A trained pair (base/ and instruct/); default: shipped.")
    ] = None,
    split: Annotated[
        Literal["test", "validation"], typer.Option(help="Which held-out families.")
    ] = "test",
    draws: Annotated[int, typer.Option(help="Random circuits in each control.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the table here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a pair on held-out families: refusal, quality, controls, base against instruct."""
    with exit_codes():
        from cna_lens.files import write_text
        from cna_lens.organism import path
        from cna_lens.organism.evaluation import evaluate_pair

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


def _numbers(text: str, what: str) -> list[float]:
    from cna_lens.errors import InvalidInput

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInput(f"--{what} must be numbers with commas, not {text!r}") from error


def _position(text: str) -> Any:
    return int(text) if text.lstrip("-").isdigit() else text
