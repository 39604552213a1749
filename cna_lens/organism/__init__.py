"""The model organism: a tiny base + instruct pair that shows the whole method offline.

A *model organism* is a small system in which one can watch, in seconds and without a download,
what is hard to watch in a large one. This pair is a toy Llama (10 layers, 10,240 MLP neurons, two
checkpoints of under 10 MB) trained on a made-up world of topics; its instruct half refuses the
disallowed ones. What it shows is that the *method* and this *code* work, not what large models do.

    >>> from cna_lens import organism
    >>> disallowed, allowed = organism.discovery_prompts()
    >>> len(disallowed), len(allowed)
    (100, 100)
    >>> organism.path("instruct").name
    'instruct'

Training it anew: `cna_lens.organism.pair.train_pair` (``cna-lens organism train``). How the shipped
pair was made, and what it reaches: ``weights/CARD.md`` and ``results.csv`` beside this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cna_lens.errors import InvalidInput, ModelError
from cna_lens.organism.world import (
    Topic,
    discovery_prompts,
    evaluation_prompts,
    find_topics,
    on_topic,
    topic_of,
)

__all__ = [
    "Topic",
    "discovery_prompts",
    "evaluation_prompts",
    "find_topics",
    "on_topic",
    "path",
    "topic_of",
]


def path(name: Literal["base", "instruct"]) -> Path:
    """The folder of a packaged checkpoint, in Hugging Face format.

    Raises:
        InvalidInput: for a name other than ``"base"`` and ``"instruct"``.
        ModelError: if the package was installed without its weights.
    """
    if name not in ("base", "instruct"):
        raise InvalidInput(f"the organism has a 'base' and an 'instruct' model, not {name!r}")
    folder = Path(__file__).parent / "weights" / name
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"no weights in {folder}; reinstall the package, or make a pair with "
            "`cna-lens organism train --out DIR` and load DIR/base or DIR/instruct"
        )
    return folder
