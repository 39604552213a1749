"""Decoding under interventions, many rows at once, each row with its own strength.

The prompts are padded on the left, run once into a key-value cache (the last position alone is
unembedded), and decoded greedily until a row's end token. A row that has ended leaves the batch.
A batch gives the tokens that one prompt at a time gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from cna_lens.activations import pad_left
from cna_lens.circuit import Circuit
from cna_lens.errors import InvalidInput, TokenizerError
from cna_lens.formatting import PromptFormat
from cna_lens.interventions import Intervention, Strength, as_intervention, as_strengths
from cna_lens.models import encode, info
from cna_lens.progress import track

NEW_TOKENS = 150
"""The paper's response length."""

Interventions = Sequence[tuple[Circuit | Intervention, Strength]]


@dataclass(frozen=True)
class Sampling:
    """Sampling in place of greedy decoding.

    Row i of a call draws from its own random stream, made of `seed` and i, so a row's text does
    not depend on the batch that it is in.

    Args:
        temperature: above 0; logits are divided by it.
        top_p: keep the smallest set of tokens with at least this probability.
        seed: of the random streams.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InvalidInput(f"temperature must be above 0 and finite, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InvalidInput(f"top_p must be in (0, 1], not {self.top_p}")

    def uniforms(self, rows: Sequence[int], steps: int) -> Float[Tensor, "row step"]:
        """The random numbers of each row, one a decoding step."""
        draws = torch.empty(len(rows), steps)
        for i, row in enumerate(rows):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + row)
            draws[i] = torch.rand(steps, generator=generator)
        return draws

    def choose(
        self, logits: Float[Tensor, "row d_vocab"], uniform: Float[Tensor, "row"]
    ) -> Int[Tensor, "row"]:
        """A token for each row: the inverse of the cumulative distribution at `uniform`."""
        scaled = logits.float() / self.temperature
        probability, token = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = probability.cumsum(-1) - probability
        probability = probability.masked_fill(before >= self.top_p, 0.0)
        cumulative = probability.cumsum(-1)
        target = uniform[:, None] * cumulative[:, -1:]
        rank = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
        return token.gather(1, rank).squeeze(1)


@dataclass(frozen=True)
class Generation:
    """One response.

    Args:
        prompt: as given, before formatting.
        text: the response, special tokens left out.
        tokens: the response's token ids, without the end token.
        prompt_tokens: tokens of the formatted prompt.
        finished: the response ended by itself, within `max_new_tokens`.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finished: bool


def generate(
    model: HookedTransformer,
    prompts: Sequence[str],
    interventions: Interventions = (),
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    sampling: Sampling | None = None,
    stop_tokens: Sequence[int] | None = None,
    form: PromptFormat | None = None,
    progress: bool = True,
) -> list[Generation]:
    """Responses to `prompts`, in their order, under any number of interventions at once.

    Args:
        interventions: pairs of a circuit (or intervention) and its strength: one number, or one for
            each prompt. `[(circuit, 0.0)]` ablates the circuit; to sweep, repeat the prompt with
            several strengths.
        max_new_tokens: at most; a row stops earlier at its end token. Default: 150, as in the
            paper, or what the context has left after the longest prompt.
        sampling: None decodes greedily.
        stop_tokens: ids that end a response; default: the checkpoint's own.

    Raises:
        InvalidInput: no prompts, strengths that do not match the prompts, or prompt and response
            would not fit into the context.
        CircuitMismatch: an intervention is for a model of another shape.
        TokenizerError: the model has no tokenizer.
    """
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "sampling": sampling,
        "stop_tokens": stop_tokens,
        "form": form,
    }
    results: dict[int, Generation] = {}
    with track("responses", len(prompts), progress) as advance:
        for finished in stream_responses(model, prompts, interventions, **options):
            results |= finished
            advance(len(finished))
    return [results[row] for row in range(len(prompts))]


def stream_responses(
    model: HookedTransformer,
    prompts: Sequence[str],
    interventions: Interventions = (),
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    sampling: Sampling | None = None,
    stop_tokens: Sequence[int] | None = None,
    form: PromptFormat | None = None,
    skip: Collection[int] = (),
) -> Iterator[dict[int, Generation]]:
    """`generate`, batch by batch as they finish: index into `prompts` -> response.

    Args:
        skip: rows that are not decoded. The others come out as they would without it.
    """
    if isinstance(prompts, str):
        raise InvalidInput("prompts must be a list of strings, not one string")
    if not prompts or batch_size < 1:
        raise InvalidInput(f"nothing to generate: {len(prompts)} prompts, batch_size={batch_size}")
    about = info(model)
    if about.tokenizer is None:
        raise TokenizerError("the model has no tokenizer: load_model(model, tokenizer=...)")
    sequences = encode(model, prompts, form)
    max_new_tokens = _response_limit(model, sequences, max_new_tokens)
    pairs = _per_row(model, interventions, len(prompts))
    stop = set(about.stop_tokens if stop_tokens is None else stop_tokens)

    wanted = set(range(len(sequences))) - set(skip)
    order = sorted(wanted, key=lambda row: (len(sequences[row]), row))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        uniforms = sampling.uniforms(rows, max_new_tokens) if sampling else None
        decoded = _decode(
            model,
            [sequences[row] for row in rows],
            [(intervention, strengths[rows]) for intervention, strengths in pairs],
            max_new_tokens,
            stop,
            (sampling, uniforms) if sampling is not None and uniforms is not None else None,
        )
        yield {
            row: Generation(
                prompts[row],
                str(about.tokenizer.decode(tokens, skip_special_tokens=True)),
                tuple(tokens),
                len(sequences[row]),
                finished,
            )
            for row, (tokens, finished) in zip(rows, decoded, strict=True)
        }


def response_limit(
    model: HookedTransformer,
    prompts: Sequence[str],
    max_new_tokens: int | None = None,
    form: PromptFormat | None = None,
) -> int:
    """The most tokens that `generate` gives a response to these prompts.

    Raises:
        InvalidInput: prompt and response would not fit into the context.
    """
    return _response_limit(model, encode(model, prompts, form), max_new_tokens)


def _response_limit(
    model: HookedTransformer, sequences: list[list[int]], max_new_tokens: int | None
) -> int:
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InvalidInput(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    longest = max(len(sequence) for sequence in sequences)
    limit = max_new_tokens or max(1, min(NEW_TOKENS, model.cfg.n_ctx - longest))
    if longest + limit > model.cfg.n_ctx:
        raise InvalidInput(
            f"the longest prompt has {longest} tokens; with max_new_tokens={limit} it would not "
            f"fit into the context of {model.cfg.n_ctx}. Lower max_new_tokens."
        )
    return limit


def _per_row(
    model: HookedTransformer, interventions: Interventions, n_rows: int
) -> list[tuple[Intervention, Float[Tensor, "row"]]]:
    """Interventions with a strength for each row."""
    pairs = []
    for what, strength in interventions:
        intervention = as_intervention(what)
        intervention.check_fits(model)
        strengths = as_strengths(strength, model.cfg.device)
        if len(strengths) not in (1, n_rows):
            raise InvalidInput(f"{len(strengths)} strengths were given for {n_rows} prompts")
        pairs.append((intervention, strengths.expand(n_rows)))
    return pairs


# Not inference_mode: TransformerLens' rotary tables may grow in here, and a model that keeps
# inference tensors cannot be differentiated any more.
@torch.no_grad()
def _decode(
    model: HookedTransformer,
    sequences: list[list[int]],
    pairs: list[tuple[Intervention, Float[Tensor, "row"]]],
    max_new_tokens: int,
    stop: set[int],
    random: tuple[Sampling, Float[Tensor, "row step"]] | None,
) -> list[tuple[list[int], bool]]:
    """(tokens, finished) of each row of one batch."""
    device = model.cfg.device
    tokens, mask = pad_left(sequences, device)
    prompt_length = tokens.shape[1]
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, device, len(sequences))
    responses: list[list[int]] = [[] for _ in sequences]
    finished = [False] * len(sequences)
    alive = list(range(len(sequences)))  # rows of the batch that are still in it

    for step in range(max_new_tokens):
        hooks = [
            hook
            for intervention, strengths in pairs
            for hook in intervention.hooks(strengths[alive], prompt_length)
        ]
        with model.hooks(fwd_hooks=hooks):
            residual = model(
                tokens,
                attention_mask=mask,
                past_kv_cache=cache,
                stop_at_layer=model.cfg.n_layers,
            )
            logits = _last_logits(model, residual)
        if random is None:
            chosen = logits.argmax(-1)
        else:
            sampling, uniforms = random
            chosen = sampling.choose(logits, uniforms[alive, step].to(logits.device))
        keep = []
        for i, token in enumerate(chosen.tolist()):
            if token in stop:
                finished[alive[i]] = True
            else:
                responses[alive[i]].append(token)
                keep.append(i)
        if not keep:
            break
        if len(keep) < len(alive):
            alive = [alive[i] for i in keep]
            chosen = chosen[keep]
            _keep_rows(cache, keep)
        tokens = chosen[:, None]
        mask = torch.ones_like(tokens)
    return list(zip(responses, finished, strict=True))


def _last_logits(
    model: HookedTransformer, residual: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the last position alone: final norm, unembedding, soft cap."""
    last = residual[:, -1:]
    if model.cfg.normalization_type is not None:
        last = model.ln_final(last)
    logits = model.unembed(last)[:, 0]
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap and cap > 0 else logits


def _keep_rows(cache: TransformerLensKeyValueCache, rows: list[int]) -> None:
    """Drop the other rows from a key-value cache."""
    cache.previous_attention_mask = cache.previous_attention_mask[rows]
    for entry in cache.entries:
        entry.past_keys = entry.past_keys[rows]
        entry.past_values = entry.past_values[rows]
