"""The numbers of the recipe, in one place.

Three frozen dataclasses: the shape of the model, how the base is trained, how the instruct model
is trained. Their JSON (with the digest of the world) is the *fingerprint* of a finished stage:
`cna_lens.organism.pair` reuses a stage only when the fingerprints agree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """A Llama small enough to train on a laptop; wide MLPs, so that 0.1 % is ten neurons."""

    n_layers: int = 10
    d_model: int = 128
    d_mlp: int = 1024
    n_heads: int = 4
    n_key_value_heads: int = 2
    vocab_size: int = 2048
    context: int = 512


@dataclass(frozen=True)
class BaseSettings:
    """Pretraining: AdamW, cosine schedule, an L1 on the early layers' MLP activations.

    Without the L1 (``activation_l1``, on the first ``sparse_layers`` layers, rising to its full
    strength over the first half of training) most neurons that tell the classes apart sit in
    layer 0, where they only read the verb.
    """

    shape: Shape = field(default_factory=Shape)
    seed: int = 0
    documents: int = 80_000
    steps: int = 3_000
    batch: int = 32
    learning_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.1
    activation_l1: float = 0.2
    sparse_layers: int = 7


@dataclass(frozen=True)
class TuneSettings:
    """Instruct fine-tuning: only the last layers' MLPs, under a group lasso on every neuron.

    ``group_lasso`` is the strength of the penalty; each step shrinks the change of every neuron
    by ``learning_rate * group_lasso`` (see `cna_lens.organism.group_lasso`).
    """

    seed: int = 0
    chats: int = 16_000
    disallowed_share: float = 0.6
    replay: int = 4_000
    steps: int = 600
    batch: int = 40
    learning_rate: float = 1e-3
    warmup: int = 20
    trained_layers: int = 3
    group_lasso: float = 8.0


def as_record(settings: BaseSettings | TuneSettings) -> dict[str, object]:
    """The settings as plain JSON values."""
    return dataclasses.asdict(settings)
