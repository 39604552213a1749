"""Loading: anything that names a model becomes a `HookedTransformer` with unprocessed weights.

Neurons are coordinates of the checkpoint's own MLPs, so nothing is folded or centred
(`from_pretrained_no_processing`). What the loaded model is, and how prompts are to be written for
it, is kept beside it and read back with `info(model)`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import pickle
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformer_lens import HookedTransformer
from transformer_lens import loading_from_pretrained as tl_loading

from cna_lens.errors import CnaLensError, InvalidInput, ModelError, TokenizerError
from cna_lens.formatting import PromptFormat, Style, template_hash, tokenise
from cna_lens.layout import lay_out
from cna_lens.provenance import Provenance

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

ORGANISM_PREFIX = "organism/"

# What a checkpoint that is damaged, foreign or incomplete raises in torch, transformers,
# safetensors and TransformerLens' converters.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    pickle.UnpicklingError,
    SafetensorError,
)


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
        ModelError: unknown name, no such folder, or an architecture that cannot be loaded exactly.
        TokenizerError: no tokenizer, or style `chat` without a chat template.
    """
    form = PromptFormat(style=style, system=system)
    if isinstance(source, HookedTransformer):
        return _register_built(source, tokenizer, form, device, dtype)
    device = torch.device(device) if device is not None else _default_device()
    dtype = _as_dtype(dtype) if dtype is not None else _default_dtype(device)
    loader, location = resolve(source)
    # False, not absent: where it is absent, transformers asks on the terminal.
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision

    config, own_tokenizer = _fetch_config_and_tokenizer(location, tokenizer, options)
    form.resolve(own_tokenizer)
    if loader == "transformer_lens" and not trust_remote_code:
        _check_code_stays_off(location, config)
    # TransformerLens prints what it has loaded; a script's output is its own.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # HookedTransformer is the documented choice here, and 3.9 announces its end in 4.0.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            if loader == "transformer_lens":
                model = HookedTransformer.from_pretrained_no_processing(
                    location,
                    device=device,
                    dtype=dtype,
                    tokenizer=_for_transformer_lens(own_tokenizer),
                    **options,
                )
            else:
                model = _convert(location, config, own_tokenizer, device, dtype, options)
        except CnaLensError:
            raise
        except _LOADING_ERRORS as error:
            raise ModelError(f"cannot load {source}: {type(error).__name__}: {error}") from error
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
            stop_tokens=_stop_tokens(location, config, own_tokenizer, revision),
            loader=loader,
            revision=_commit(location, revision) if loader in ("transformer_lens", "hub") else None,
        ),
    )


def resolve(source: str | Path) -> tuple[str, str]:
    """How a source will be loaded: (loader, location).

    A name that exists as a folder is that folder; then come TransformerLens' own names and
    aliases; then anything of the form `owner/name` is a hub repository.

    Raises:
        ModelError: it is none of these.

    >>> resolve("meta-llama/Llama-3.2-1B-Instruct")
    ('transformer_lens', 'meta-llama/Llama-3.2-1B-Instruct')
    """
    name = str(source)
    if name.startswith(ORGANISM_PREFIX):
        from cna_lens.organism import path

        which = name.removeprefix(ORGANISM_PREFIX)
        if which in ("base", "instruct"):
            return "organism", str(path("base" if which == "base" else "instruct"))
        raise ModelError(f"no organism {which!r}: there are organism/base, organism/instruct")
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise ModelError(f"{name} is a folder without config.json: not a checkpoint")
        return "folder", name
    known = tl_loading.make_model_alias_map().get(name.lower())
    if known is not None:
        return "transformer_lens", known
    if name.count("/") == 1 and all(name.split("/")) and not name.startswith((".", "~")):
        return "hub", name
    raise ModelError(
        f"no model {name!r}: it is not a folder, not a name that TransformerLens knows, and not "
        "of the form owner/name. Try organism/instruct or meta-llama/Llama-3.2-1B-Instruct."
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


def _convert(
    location: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> HookedTransformer:
    """Load a folder or repository that TransformerLens has no name for, with its converters."""
    from transformers import AutoModelForCausalLM

    _check_convertible(location, config)
    hf_model = AutoModelForCausalLM.from_pretrained(location, dtype=dtype, **options)
    with tempfile.TemporaryDirectory(prefix="cna-") as folder:
        # TransformerLens reads the architecture off the path's *name* ("llama" in the path wins
        # over config.json), so it is shown the configuration under a neutral one.
        neutral = Path(folder).resolve()
        if any(word in str(neutral).lower() for word in ("llama", "gemma", "santacoder")):
            raise ModelError(
                f"the temporary folder {neutral.parent} has a model's name in it, which misleads "
                "TransformerLens. Set TMPDIR to another folder."
            )
        config.save_pretrained(neutral)
        cfg = tl_loading.get_pretrained_model_config(str(neutral), device=device, dtype=dtype)
        state = tl_loading.get_pretrained_state_dict(str(neutral), cfg, hf_model, dtype=dtype)
    cfg.model_name = Path(location).resolve().name
    cfg.tokenizer_name = location
    model = HookedTransformer(cfg, _for_transformer_lens(tokenizer))
    model.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model


def _for_transformer_lens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that TransformerLens may change: it gives its tokenizer a BOS and a pad token."""
    theirs = copy.deepcopy(tokenizer)
    if "name_or_path" not in theirs.init_kwargs:
        # TransformerLens reloads a tokenizer that adds no BOS from where it came from; one that
        # was made by hand came from nowhere, and says here that there is nothing to reload.
        theirs.init_kwargs.update(name_or_path="", add_bos_token=True)
    return theirs


def _check_code_stays_off(location: str, config: PretrainedConfig) -> None:
    """TransformerLens switches `trust_remote_code` on by itself for some names; not here."""
    if location.startswith(tl_loading.NEED_REMOTE_CODE_MODELS) and getattr(
        config, "auto_map", None
    ):
        raise ModelError(
            f"{location} comes with Python code, which TransformerLens would run. Read that code, "
            "then pass trust_remote_code=True."
        )


def _commit(location: str, revision: str | None) -> str | None:
    """The hub commit that a repository's files came from; the cache knows it."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(location, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def _check_convertible(location: str, config: PretrainedConfig) -> None:
    """Refuse what TransformerLens' converters would drop in silence."""
    if not config.architectures:
        raise ModelError(f"the config.json of {location} names no architecture. Add it.")
    architecture = config.architectures[0]
    if architecture not in ("LlamaForCausalLM", "Qwen2ForCausalLM"):
        return  # TransformerLens raises on those that it does not know
    width, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None)
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    problems = {
        f"head_dim {head_dim} is not hidden_size / num_attention_heads ({width // heads})": (
            head_dim is not None and head_dim != width // heads
        ),
        "it has attention biases": (
            architecture == "LlamaForCausalLM" and getattr(config, "attention_bias", False)
        ),
        "it has MLP biases": getattr(config, "mlp_bias", False),
        f"its RoPE scaling is {kind!r}": kind not in ("default", "llama3")
        or (kind == "llama3" and architecture != "LlamaForCausalLM"),
        "it uses sliding-window attention": getattr(config, "use_sliding_window", False),
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise ModelError(
            f"{location} cannot be converted exactly: {'; '.join(found)}. TransformerLens 3.9 "
            "would drop this in silence and compute something else."
        )


def _fetch_config_and_tokenizer(
    location: str, tokenizer: PreTrainedTokenizerBase | None, options: dict[str, Any]
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(location, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot read the configuration of {location}: {error} Check the name, the network "
            "and, for gated models, that you are logged in (hf auth login)."
        ) from error
    if tokenizer is None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(location, **options)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TokenizerError(
                f"{location} has no tokenizer that loads: {error} Pass tokenizer=..."
            ) from error
    return config, tokenizer


def _stop_tokens(
    location: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    revision: str | None,
) -> tuple[int, ...]:
    """Ids that end a response: generation_config.json, then config.json, then the tokenizer."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(location, revision=revision or "main")
        stop: Any = found.eos_token_id
    except OSError:  # many checkpoints have no generation_config.json
        stop = None
    if stop is None:
        stop = getattr(config, "eos_token_id", None)
    if stop is None:
        return _end_of(tokenizer)
    return tuple(stop) if isinstance(stop, list | tuple) else (int(stop),)


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
        model.to(device, print_details=False)
    if dtype is not None:
        model.to(_as_dtype(dtype), print_details=False)
    about = info(model)
    if tokenizer is not None:
        about = replace(about, tokenizer=tokenizer, stop_tokens=_end_of(tokenizer))
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
        stop_tokens=_end_of(model.tokenizer),
        loader="built",
        weight_processing="unknown",
    )


def _end_of(tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    stop = tokenizer.eos_token_id if tokenizer is not None else None
    return () if stop is None else (stop,)


def _register(model: HookedTransformer, about: ModelInfo) -> HookedTransformer:
    model.__dict__["_cna_lens_info"] = about
    return model


def _default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _default_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"dtype {dtype!r} is not one of float32, bfloat16, float16")
    return found
