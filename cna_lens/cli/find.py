"""`cna-lens info`, `discover` and `generate`: look at a model, find a circuit, try it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cna_lens.cli.options import (
    DeviceOption,
    DtypeOption,
    FractionOption,
    JsonOption,
    ModelOption,
    RemoteOption,
    SetOption,
    StyleOption,
    TokensOption,
    load,
)
from cna_lens.cli.terminal import exit_codes, records, show_json, show_table


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

        loaded = load(model, style, device, dtype, trust_remote_code)
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
        from cna_lens.files import check_writable
        from cna_lens.prompts import load_contrast_set

        neuron_count(fraction, 1)
        for file in filter(None, (out, measured)):
            check_writable(file)
        prompts = load_contrast_set(contrast_set)
        loaded = load(model, style, device, dtype, trust_remote_code)
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
        loaded = load(model, style, device, dtype, trust_remote_code)
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


def _position(text: str) -> Any:
    return int(text) if text.lstrip("-").isdigit() else text
