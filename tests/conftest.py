"""Small models for every test: random checkpoints written to disk, and one built by hand."""

from __future__ import annotations

import os

# Before torch is imported: two threads that share two cores with other work stall each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from tiny import PROMPTS, write_llama, write_qwen2
from transformer_lens import HookedTransformer

import cna_lens as cl

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama: grouped-query attention, tied embeddings, Llama 3 RoPE scaling."""
    return write_llama(tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2: QKV biases, untied embeddings, no BOS."""
    return write_qwen2(tmp_path_factory.mktemp("qwen") / "tiny-qwen2")


@pytest.fixture(scope="session", params=["llama", "qwen2"])
def folder(request: pytest.FixtureRequest, llama_folder: Path, qwen_folder: Path) -> Path:
    return {"llama": llama_folder, "qwen2": qwen_folder}[request.param]


@pytest.fixture(scope="session")
def model(folder: Path) -> HookedTransformer:
    return cl.load_model(folder, device="cpu")


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> HookedTransformer:
    return cl.load_model(llama_folder, device="cpu")


@pytest.fixture
def prompts() -> list[str]:
    return list(PROMPTS)
