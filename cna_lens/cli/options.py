"""Options that several commands share, and loading the model that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cna_lens.cli.terminal import say

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from cna_lens.formatting import Style

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


def load(
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
