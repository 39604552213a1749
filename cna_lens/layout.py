"""Weights stored the way TransformerLens reads them, so that no call copies them.

`HookedTransformer` computes a gated MLP as `F.linear(x, W.T.contiguous())` and rearranges the
attention matrices to two dimensions; with the storage that it is loaded in, each of those copies
the whole matrix on every call. `lay_out` keeps every shape and every value and changes only the
order in memory, so that `.contiguous()` and the rearranging become views.

Measured on transformer-lens 3.9; logits are bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedTransformer


def _transposed(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The same matrix, stored column by column."""
    return matrix.T.contiguous().T


def _per_head(weight: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "head d_model d_head"]:
    """The same W_Q, W_K or W_V, stored as [head, d_head, d_model]."""
    stored = rearrange(weight, "head d_model d_head -> head d_head d_model").contiguous()
    return rearrange(stored, "head d_head d_model -> head d_model d_head")


def _output(weight: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, "head d_head d_model"]:
    """The same W_O, stored as [d_model, head, d_head]."""
    stored = rearrange(weight, "head d_head d_model -> d_model head d_head").contiguous()
    return rearrange(stored, "d_model head d_head -> head d_head d_model")


@torch.no_grad()
def lay_out(model: HookedTransformer) -> HookedTransformer:
    """Reorder the storage of `model`'s weights in place; returns the same model.

    Only floating-point weights of gated MLPs, attention and unembedding are touched: those are
    the ones that TransformerLens transposes at each call.
    """
    for block in model.blocks:
        attention = block.attn
        for name in ("W_Q", "W_K", "W_V", "_W_K", "_W_V"):
            _reorder(attention, name, _per_head, dims=3)
        _reorder(attention, "W_O", _output, dims=3)
        if model.cfg.gated_mlp:
            for name in ("W_gate", "W_in", "W_out"):
                _reorder(block.mlp, name, _transposed, dims=2)
    _reorder(model.unembed, "W_U", _transposed, dims=2)
    return model


def _reorder(module: nn.Module, name: str, order: Callable[[Tensor], Tensor], dims: int) -> None:
    # _parameters, not getattr: grouped-query attention's W_K is a computed property
    parameter = module._parameters.get(name)
    if parameter is not None and parameter.dim() == dims and parameter.is_floating_point():
        parameter.data = order(parameter.data)
