"""From a checkpoint to a `HookedTransformer`: names, folders and hub repositories.

TransformerLens loads the names that it knows. For folders and fine-tunes its converters are used
one by one, and what they would drop in silence is refused. No code that comes with a checkpoint
runs unless that was asked for.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformer_lens import HookedTransformer
from transformer_lens import loading_from_pretrained as tl_loading

from cna_lens.errors import CnaLensError, ModelError, TokenizerError

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


def fetch_config_and_tokenizer(
    location: str, tokenizer: PreTrainedTokenizerBase | None, options: dict[str, Any]
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The checkpoint's configuration, and its own tokenizer unless another is given.

    Raises:
        ModelError: there is no configuration to be had.
        TokenizerError: there is no tokenizer that loads.
    """
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


def stop_tokens(
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
        return end_token(tokenizer)
    return tuple(stop) if isinstance(stop, list | tuple) else (int(stop),)


def end_token(tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """The tokenizer's own end token, if it has one."""
    stop = tokenizer.eos_token_id if tokenizer is not None else None
    return () if stop is None else (stop,)


def load_weights(
    loader: str,
    location: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> HookedTransformer:
    """The checkpoint as a `HookedTransformer`, weights unprocessed.

    Args:
        loader, location: what `resolve` found.
        options: `trust_remote_code` and `revision`, for Hugging Face.

    Raises:
        ModelError: the checkpoint is damaged, incomplete, or cannot be converted exactly.
    """
    if loader == "transformer_lens" and not options["trust_remote_code"]:
        _check_code_stays_off(location, config)
    # TransformerLens prints what it has loaded; a script's output is its own.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # HookedTransformer is the documented choice here, and 3.9 announces its end in 4.0.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            if loader != "transformer_lens":
                return _convert(location, config, tokenizer, device, dtype, options)
            model: HookedTransformer = HookedTransformer.from_pretrained_no_processing(
                location,
                device=device,
                dtype=dtype,
                tokenizer=_for_transformer_lens(tokenizer),
                **options,
            )
            return model
        except CnaLensError:
            raise
        except _LOADING_ERRORS as error:
            raise ModelError(f"cannot load {location}: {type(error).__name__}: {error}") from error


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


def commit(location: str, revision: str | None) -> str | None:
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
