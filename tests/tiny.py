"""Tiny random checkpoints in Hugging Face format, and the prompts that go with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PROMPTS = (
    "a b c",
    "d",
    "e f g h i j k l m n o p q r s t",
    "b a",
    "c c c c c c c",
    "z y x w v u t s r",
    "k i l",
)

CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> "
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(
    *, bos: bool = True, adds_bos: bool | None = None, chat: bool = True
) -> PreTrainedTokenizerFast:
    """A word tokenizer: one id a letter or special word.

    With `bos` it has a BOS token, <s>; with `adds_bos` (default: as `bos`) it begins texts with it.
    """
    words = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"]
    words += [chr(ord("a") + i) for i in range(26)]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos if adds_bos is None else adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|system|>", "<|assistant|>", "<|end|>"],
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_llama(folder: Path, *, seed: int = 0, chat: bool = True, **overrides: Any) -> Path:
    """A random Llama checkpoint: 3 layers, 40 neurons each."""
    settings: dict[str, Any] = {
        "vocab_size": 34,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))
    _vary_norms(model)
    model.save_pretrained(folder)
    make_tokenizer(chat=chat).save_pretrained(folder)
    return folder


def write_qwen2(folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """A random Qwen2 checkpoint: QKV biases that are not zero, untied embeddings, no BOS."""
    settings: dict[str, Any] = {
        "vocab_size": 34,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**{**settings, **overrides}))
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(projection.bias, std=0.3)
    _vary_norms(model)
    model.save_pretrained(folder)
    make_tokenizer(bos=False).save_pretrained(folder)
    return folder


def _vary_norms(model: torch.nn.Module) -> None:
    """Norms begin with weights of 1, which would hide a norm that is left out."""
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)


def write_gpt2(folder: Path, *, seed: int = 0) -> Path:
    """A random GPT-2: absolute positions, LayerNorm, a plain MLP with biases."""
    torch.manual_seed(seed)
    settings = {"vocab_size": 34, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    config = GPT2Config(**settings, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    make_tokenizer(bos=False, chat=False).save_pretrained(folder)
    return edit_config(folder, n_ctx=128)  # older files have both; TransformerLens reads this one


def edit_config(folder: Path, **values: Any) -> Path:
    """Change entries of a checkpoint's config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **values}), encoding="utf-8")
    return folder
