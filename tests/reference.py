"""Decoding the slow way: one prompt at a time, the whole sequence again for every token.

No padding, no cache, and an explicit mask of the positions that are scaled; what the package does
in batches and with a cache must give the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformer_lens import HookedTransformer

import cna_lens as cl

COVERED: dict[str, Callable[[int, int], bool]] = {
    "all": lambda at, prompt_length: True,
    "prompt": lambda at, prompt_length: at < prompt_length,
    "generated": lambda at, prompt_length: at >= prompt_length,
    "last": lambda at, prompt_length: at == prompt_length - 1,
}
Scaling = tuple[cl.Circuit, float, str]  # circuit, multiplier, positions


def scaled_logits(
    model: HookedTransformer, ids: Sequence[int], prompt_length: int, scalings: Sequence[Scaling]
) -> torch.Tensor:
    """Logits of every position, `[pos, d_vocab]`."""
    hooks = []
    for circuit, multiplier, positions in scalings:
        covered = [at for at in range(len(ids)) if COVERED[positions](at, prompt_length)]
        for layer, neuron in circuit:

            def scale(
                activation: torch.Tensor,
                hook: object,
                neuron: int = neuron,
                covered: list[int] = covered,
                multiplier: float = multiplier,
            ) -> torch.Tensor:
                changed = activation.clone()
                changed[:, covered, neuron] *= multiplier
                return changed

            hooks.append((f"blocks.{layer}.mlp.hook_post", scale))
    with torch.no_grad():
        return model.run_with_hooks(torch.tensor([list(ids)]), fwd_hooks=hooks)[0]


def slow_decode(
    model: HookedTransformer,
    ids: Sequence[int],
    max_new_tokens: int,
    scalings: Sequence[Scaling] = (),
    stop: Sequence[int] = (),
) -> list[int]:
    """The response's tokens, greedily, without the end token."""
    response: list[int] = []
    for _ in range(max_new_tokens):
        logits = scaled_logits(model, [*ids, *response], len(ids), scalings)
        token = int(logits[-1].argmax())
        if token in stop:
            break
        response.append(token)
    return response


def random_circuit(model: HookedTransformer, n: int, seed: int = 0) -> cl.Circuit:
    """`n` neurons anywhere in the model."""
    n_layers, d_mlp = model.cfg.n_layers, model.cfg.d_mlp
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(n_layers * d_mlp, generator=random)[:n].tolist()
    return cl.Circuit(
        n_layers,
        d_mlp,
        tuple(at // d_mlp for at in chosen),
        tuple(at % d_mlp for at in chosen),
        (1.0,) * n,
        (0.0,) * n,
    )
