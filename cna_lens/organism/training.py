"""Training the organism: a base model from nothing, then an instruct model from the base.

Plain PyTorch loops over short documents. Documents of similar length share a batch, the loss of a
chat used for fine-tuning covers the reply only, and matrix products may run in bfloat16 under
autocast (weights, optimiser and group lasso stay in float32). Everything random comes from the
seeds in the settings, so a second run on the same machine, with the same number of threads, gives
the same weights.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cna_lens.organism.documents import Document, base_documents, chat_documents
from cna_lens.organism.group_lasso import NeuronLasso
from cna_lens.organism.settings import BaseSettings, Shape, TuneSettings
from cna_lens.organism.tokenizer import ASSISTANT, BOS, EOS, USER

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int, float], None]
"""``progress(stage, step, steps, loss)``, called every few steps."""


@dataclass(frozen=True)
class Tokens:
    """A tokenised document; positions before ``scored_from`` carry no loss."""

    ids: list[int]
    scored_from: int


# --- models ------------------------------------------------------------------------------------


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights that depend on the seed alone."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_key_value_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def mlps_of(model: LlamaForCausalLM) -> list[nn.Module]:
    """The gated MLPs of all layers, in order."""
    return [layer.mlp for layer in model.model.layers]


# --- documents into batches --------------------------------------------------------------------


def tokenise(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, replies_only: bool
) -> list[Tokens]:
    """Turn documents into token ids, chats in the layout of the chat template.

    Args:
        replies_only: score a chat's reply only, not the question (plain pages are scored whole).
    """
    heads = [f"{BOS}{USER}{d.prompt}{EOS}{ASSISTANT}" if d.prompt else BOS for d in documents]
    tails = [f"{d.text}{EOS}" for d in documents]
    head_ids = tokenizer(heads, add_special_tokens=False)["input_ids"]
    tail_ids = tokenizer(tails, add_special_tokens=False)["input_ids"]
    return [
        Tokens(head + tail, len(head) if replies_only else 1)
        for head, tail in zip(head_ids, tail_ids, strict=True)
    ]


def batches(sequences: Sequence[Tokens], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled ``(ids, labels)`` batches, padded on the right.

    Sequences are shuffled, sorted by length inside groups of twenty batches, and the batches of a
    group are shuffled again: hardly any padding, and still a mixture in every stretch of training.
    Unscored positions and padding have the label -100.
    """
    rng = random.Random(f"batches {seed}")
    while True:
        order = rng.sample(range(len(sequences)), len(sequences))
        for start in range(0, len(order), 20 * size):
            group = sorted(order[start : start + 20 * size], key=lambda i: len(sequences[i].ids))
            cuts = [group[i : i + size] for i in range(0, len(group), size)]
            rng.shuffle(cuts)
            for cut in cuts:
                yield _pad([sequences[i] for i in cut])


def _pad(batch: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    longest = max(len(sequence.ids) for sequence in batch)
    # A multiple of 8: oneDNN compiles its kernels for each shape that it meets.
    longest = 8 * math.ceil(longest / 8)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, sequence in enumerate(batch):
        length = len(sequence.ids)
        ids[row, :length] = torch.tensor(sequence.ids)
        labels[row, sequence.scored_from : length] = ids[row, sequence.scored_from : length]
    return ids, labels


# --- training ----------------------------------------------------------------------------------


def train_base(
    settings: BaseSettings,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[Document],
    *,
    bfloat16: bool = False,
    progress: Progress | None = None,
) -> LlamaForCausalLM:
    """Pretrain a new model on ``documents`` (see `base_documents`); float32 weights."""
    model = new_model(settings.shape, tokenizer, settings.seed)
    _use_fast_attention(model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    stream = batches(
        tokenise(documents, tokenizer, replies_only=False), settings.batch, settings.seed
    )
    model.train()
    with _mlp_activations(mlps_of(model)[: settings.sparse_layers]) as activations:
        for step in range(settings.steps):
            rate = _cosine(step, settings.steps, settings.warmup, settings.learning_rate)
            ids, labels = next(stream)
            activations.clear()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                loss = _loss(model, ids, labels)
                size = torch.stack([a.float().abs().mean() for a in activations]).sum()
            strength = settings.activation_l1 * min(1.0, 2 * step / settings.steps)
            (loss + strength * size).backward()
            _step(model, optimiser, rate)
            _report(progress, "base", step, settings.steps, loss)
    model.eval()
    return model


def fine_tune(
    model: LlamaForCausalLM,
    settings: TuneSettings,
    tokenizer: PreTrainedTokenizerFast,
    *,
    base_seed: int = 0,
    bfloat16: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """Make ``model`` (a base, float32, changed in place) refuse the disallowed topics.

    Returns:
        The norm of the change of every neuron in the trained layers, ``[layer, neuron]``.
    """
    chats = chat_documents(settings.chats, settings.seed, settings.disallowed_share)
    pages = base_documents(settings.replay, base_seed)
    sequences = tokenise(chats, tokenizer, replies_only=True)
    sequences += tokenise(pages, tokenizer, replies_only=False)
    stream = batches(sequences, settings.batch, settings.seed)

    _use_fast_attention(model)
    trained = mlps_of(model)[-settings.trained_layers :]
    lasso = NeuronLasso(trained)
    model.requires_grad_(False)
    for mlp in trained:
        mlp.requires_grad_(True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    stage = f"instruct, group lasso {settings.group_lasso:g}"
    model.train()
    for step in range(settings.steps):
        rate = _cosine(step, settings.steps, settings.warmup, settings.learning_rate)
        ids, labels = next(stream)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = _loss(model, ids, labels)
        loss.backward()
        _step(model, optimiser, rate)
        lasso.shrink(rate * settings.group_lasso)
        _report(progress, stage, step, settings.steps, loss)
    model.requires_grad_(True)
    model.eval()
    return lasso.change()


def _use_fast_attention(model: LlamaForCausalLM) -> None:
    """On such short documents plain attention takes 60 % of the time that SDPA's backward does."""
    model.set_attn_implementation("eager")


def _loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the scored next tokens."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def _step(model: LlamaForCausalLM, optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _cosine(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to 5 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _report(progress: Progress | None, stage: str, step: int, steps: int, loss: Tensor) -> None:
    if (step + 1) % 50 and step + 1 != steps:
        return
    value = float(loss.detach())
    logger.info("%s: step %d of %d, loss %.3f", stage, step + 1, steps, value)
    if progress is not None:
        progress(stage, step + 1, steps, value)


@contextmanager
def _mlp_activations(mlps: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the neurons' activations (the inputs of ``down_proj``) of each forward pass."""
    kept: list[Tensor] = []
    handles = [
        mlp.get_submodule("down_proj").register_forward_pre_hook(
            lambda _module, inputs: kept.append(inputs[0])
        )
        for mlp in mlps
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
