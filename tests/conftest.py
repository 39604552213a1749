"""Small models for every test: random checkpoints written to disk, and one built by hand."""

from __future__ import annotations

import os

# Before torch is imported: two threads that share two cores with other work stall each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from oracle import build_oracle, words_tokenizer
from tiny import PROMPTS, write_llama, write_qwen2
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM, PreTrainedModel

import cna_lens as cl

# Every annotation of these modules, shapes included, is checked at run time in the whole suite
# (JAXTYPING_DISABLE=1 switches that off). Left out: the command line, the figures and the report,
# which hold no tensors and whose tests pass wrong values to see what they say. The package imports
# its modules late, so the hook stays.
CHECKED = (
    "activations circuit discovery experiments files formatting generation interventions layout "
    "models organism.evaluation organism.group_lasso organism.pair organism.stages "
    "organism.training prompts provenance scoring statistics"
)
install_import_hook([f"cna_lens.{module}" for module in CHECKED.split()], "shape_check.check")

torch.set_num_threads(1)

# The same examples on every run, and no deadline: the machine may be busy with other work.
settings.register_profile("seeded", derandomize=True, deadline=None, database=None)
settings.load_profile("seeded")


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
def hf_model(folder: Path) -> PreTrainedModel:
    """The same checkpoint as `model`, in Hugging Face's own implementation."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> HookedTransformer:
    return cl.load_model(llama_folder, device="cpu")


@pytest.fixture(scope="session")
def qwen(qwen_folder: Path) -> HookedTransformer:
    return cl.load_model(qwen_folder, device="cpu")


@pytest.fixture(scope="session", params=["plain", "gated"])
def oracle(request: pytest.FixtureRequest) -> HookedTransformer:
    """The model built by hand (see `oracle.py`), with a plain ReLU MLP and with a gated one."""
    bare = build_oracle(gated=request.param == "gated")
    return cl.load_model(bare, tokenizer=words_tokenizer())


@pytest.fixture
def prompts() -> list[str]:
    return list(PROMPTS)


@pytest.fixture
def as_called_by_users() -> Iterator[None]:
    """The run-time checker off, for tests of what the package itself says to wrong arguments."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
