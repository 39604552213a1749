"""Loading: anything that names a model becomes a `HookedTransformer` with unprocessed weights.

Neurons are coordinates of the checkpoint's own MLPs, so nothing is folded or centred
(`from_pretrained_no_processing`). What the loaded model is, and how prompts are to be written for
it, is kept beside it and read back with `info(model)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformer_lens import HookedTransformer

from cna_lens.checkpoints import (
    commit,
    end_token,
    fetch_config_and_tokenizer,
    load_weights,
    resolve,
    stop_tokens,
)
from cna_lens.errors import InvalidInput, ModelError, TokenizerError
from cna_lens.formatting import PromptFormat, Style, template_hash, tokenise
from cna_lens.layout import lay_out
from cna_lens.provenance import Provenance

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a loaded model.

    Args:
        name: what it was loaded as.
        tokenizer: the checkpoint's own tokenizer (TransformerLens' copy is made to add a BOS).
        form: how prompts are written for it unless a call says otherwise.
        stop_tokens: ids that end a response.
        loader: `organism`, `transformer_lens`, `hub`, `folder` or `built`.
        weight_processing: `none`, or `unknown` for a model built elsewhere.
        revision: the hub commit, where the hub gave one.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase | None = field(repr=False)
    form: PromptFormat
    stop_tokens: tuple[int, ...]
    loader: str
    weight_processing: str = "none"
    revision: str | None = None


def load_model(
    source: str | Path | HookedTransformer,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    style: Style = "auto",
    system: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> HookedTransformer:
    """Load a model as a `HookedTransformer`, weights unprocessed and laid out for speed.

    Args:
        source: a name TransformerLens knows (`meta-llama/Llama-3.2-1B-Instruct`, `gpt2`), a hub
            repository of a supported architecture, a local Hugging Face folder, an already built
            `HookedTransformer`, or `organism/base` and `organism/instruct`.
        device: default: CUDA where there is one, else MPS, else the CPU.
        dtype: default: bfloat16 on CUDA, float32 elsewhere.
        tokenizer: used in place of the checkpoint's own (needed for a model built by hand).
        style: `chat`, `plain` or `auto`: how prompts are written (see `PromptFormat`).
        system: a system message for chat prompts.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run Python code that comes with the checkpoint. Never by default.

    Raises:
        ModelError: unknown name, no such folder, a device that is not there, or an architecture
            that cannot be loaded exactly.
        TokenizerError: no tokenizer, or style `chat` without a chat template.
    """
    form = PromptFormat(style=style, system=system)
    if isinstance(source, HookedTransformer):
        return _register_built(source, tokenizer, form, device, dtype)
    device = _as_device(device) if device is not None else _default_device()
    dtype = _as_dtype(dtype) if dtype is not None else _default_dtype(device)
    loader, location = resolve(source)
    # False, not absent: where it is absent, transformers asks on the terminal.
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision

    config, own_tokenizer = fetch_config_and_tokenizer(location, tokenizer, options)
    form.resolve(own_tokenizer)
    model = load_weights(loader, location, config, own_tokenizer, device, dtype, options)
    model.eval()
    lay_out(model)
    check_hooks(model)
    name = str(source) if loader != "folder" else Path(location).resolve().name
    return _register(
        model,
        ModelInfo(
            name=name,
            tokenizer=own_tokenizer,
            form=form,
            stop_tokens=stop_tokens(location, config, own_tokenizer, revision),
            loader=loader,
            revision=commit(location, revision) if loader in ("transformer_lens", "hub") else None,
        ),
    )


def info(model: HookedTransformer) -> ModelInfo:
    """What is known about `model`; a model that `load_model` has not seen is described as found."""
    known = model.__dict__.get("_cna_lens_info")
    if isinstance(known, ModelInfo):
        return known
    return _describe(model)


def describe(model: HookedTransformer, form: PromptFormat | None = None) -> Provenance:
    """The model's part of a result's provenance, with the prompt format in use."""
    about = info(model)
    form = form or about.form
    chat = about.tokenizer is not None and form.resolve(about.tokenizer) == "chat"
    return Provenance(
        model=about.name,
        revision=about.revision,
        weights=weights_digest(model),
        loader=about.loader,
        weight_processing=about.weight_processing,
        dtype=str(model.cfg.dtype).removeprefix("torch."),
        prompt_style="chat" if chat else "plain",
        system_prompt=form.system,
        answer_prefix=form.answer_prefix or None,
        prepend_bos=form.prepend_bos,
        chat_template=template_hash(about.tokenizer) if chat and about.tokenizer else None,
    )


def encode(
    model: HookedTransformer, prompts: Sequence[str], form: PromptFormat | None = None
) -> list[list[int]]:
    """Token ids of formatted prompts, checked against the model's context length.

    Raises:
        InvalidInput: a prompt is longer than the context, or `prompts` is one string.
        TokenizerError: the model has no tokenizer.
    """
    about = info(model)
    sequences = tokenise(about.tokenizer, prompts, form or about.form)
    for prompt, ids in zip(prompts, sequences, strict=True):
        if len(ids) > model.cfg.n_ctx:
            raise InvalidInput(
                f"a prompt has {len(ids)} tokens, more than the context of {model.cfg.n_ctx}: "
                f"{prompt[:60]!r}... Shorten it or leave it out."
            )
    return sequences


def hook_post(layer: int) -> str:
    """The hook point of a layer's neurons, `[batch, pos, d_mlp]`."""
    return f"blocks.{layer}.mlp.hook_post"


def check_hooks(model: HookedTransformer) -> None:
    """Raises ModelError where the model has no per-layer `mlp.hook_post` (mixtures of experts)."""
    missing = [
        layer for layer in range(model.cfg.n_layers) if hook_post(layer) not in model.hook_dict
    ]
    if missing or not model.cfg.d_mlp:
        raise ModelError(
            f"{model.cfg.model_name} has no {hook_post(missing[0] if missing else 0)}: its MLPs "
            "are not one row of neurons (mixture of experts or attention only), which CNA needs."
        )


def weights_digest(model: HookedTransformer) -> str:
    """A short digest of one row of each layer's `W_out`, which any fine-tuning changes."""
    sha = hashlib.sha256()
    for block in model.blocks:
        weight = getattr(block.mlp, "W_out", None)
        if weight is not None:
            ends = weight.detach()[[0, -1]].float().cpu().contiguous()
            sha.update(ends.numpy().tobytes())
    return sha.hexdigest()[:16]


def _register_built(
    model: HookedTransformer,
    tokenizer: PreTrainedTokenizerBase | None,
    form: PromptFormat,
    device: str | torch.device | None,
    dtype: torch.dtype | str | None,
) -> HookedTransformer:
    """Take an already built model as it is; its weights are moved only where that was asked for."""
    check_hooks(model)
    if device is not None:
        model.to(_as_device(device), print_details=False)
    if dtype is not None:
        model.to(_as_dtype(dtype), print_details=False)
    about = info(model)
    if tokenizer is not None:
        about = replace(about, tokenizer=tokenizer, stop_tokens=end_token(tokenizer))
    if about.tokenizer is None:
        raise TokenizerError("the model has no tokenizer: load_model(model, tokenizer=...)")
    form.resolve(about.tokenizer)
    return _register(lay_out(model), replace(about, form=form))


def _describe(model: HookedTransformer) -> ModelInfo:
    """What can be seen of a model that was built elsewhere."""
    return ModelInfo(
        name=model.cfg.model_name,
        tokenizer=model.tokenizer,
        form=PromptFormat(),
        stop_tokens=end_token(model.tokenizer),
        loader="built",
        weight_processing="unknown",
    )


def _register(model: HookedTransformer, about: ModelInfo) -> HookedTransformer:
    model.__dict__["_cna_lens_info"] = about
    return model


def _default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _as_device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without CUDA
        raise ModelError(
            f"device {device!r} cannot be used here: {str(error).splitlines()[0]} Use 'cpu', or a "
            "device that torch sees."
        ) from error


def _default_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"dtype {dtype!r} is not one of float32, bfloat16, float16")
    return found
