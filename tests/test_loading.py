"""Loading: what is loaded computes what Hugging Face computes, and the rest is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import einops
import pytest
import torch
from tiny import edit_config, make_tokenizer, write_gpt2, write_llama, write_qwen2
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.supported_models import MODEL_ALIASES
from transformers import AutoModelForCausalLM, GenerationConfig

import cna_lens as cl
from cna_lens.checkpoints import resolve
from cna_lens.errors import ModelError, TokenizerError
from cna_lens.formatting import adds_bos
from cna_lens.layout import lay_out
from cna_lens.models import describe, info

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "llama, grouped heads, tied, llama3 RoPE": write_llama,
    "llama, all heads, untied": lambda folder: write_llama(
        folder, num_key_value_heads=4, tie_word_embeddings=False, rope_parameters=DEFAULT_ROPE
    ),
    "llama, one key-value head": lambda folder: write_llama(folder, num_key_value_heads=1),
    "llama, RoPE base 5e6": lambda folder: write_llama(
        folder, rope_parameters={"rope_type": "default", "rope_theta": 5e6}
    ),
    "qwen2, QKV biases, untied": write_qwen2,
    "qwen2, tied, RoPE base 1e6": lambda folder: write_qwen2(
        folder,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "gpt2, absolute positions": write_gpt2,
}
# METHOD: the paper's models.
PAPER_MODELS = [
    f"{family}-{size}{kind}"
    for family, sizes, kinds in (
        ("meta-llama/Llama-3.2", ("1B", "3B"), ("", "-Instruct")),
        ("meta-llama/Llama-3.1", ("8B", "70B"), ("", "-Instruct")),
        ("Qwen/Qwen2.5", ("1.5B", "3B", "7B", "72B"), ("", "-Instruct")),
    )
    for size in sizes
    for kind in kinds
]


def some_tokens(rows: int = 3, length: int = 100) -> torch.Tensor:
    return torch.randint(3, 34, (rows, length), generator=torch.Generator().manual_seed(0))


def hf_logits(folder: Path, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return model(tokens).logits.float()


def tl_logits(model: HookedTransformer, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).float()


# --- what is loaded is the checkpoint ----------------------------------------------------------


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda name: name.replace(" ", "_"))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CHECKPOINTS[request.param](tmp_path_factory.mktemp("checkpoint") / "model")


def test_logits_equal_those_of_hugging_face(checkpoint: Path) -> None:
    ours = tl_logits(cl.load_model(checkpoint, device="cpu", dtype="float32"), some_tokens())
    theirs = hf_logits(checkpoint, some_tokens(), torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.std()))


def test_bfloat16_is_as_near_to_float32_as_hugging_face_is(checkpoint: Path) -> None:
    exact = hf_logits(checkpoint, some_tokens(), torch.float32)
    theirs = hf_logits(checkpoint, some_tokens(), torch.bfloat16)
    model = cl.load_model(checkpoint, device="cpu", dtype="bfloat16")
    ours = tl_logits(model, some_tokens())
    assert model.W_E.dtype == torch.bfloat16
    assert describe(model).dtype == "bfloat16"
    assert (ours - exact).square().mean() < 1.5 * (theirs - exact).square().mean()


def test_neurons_are_the_input_of_down_proj(model: HookedTransformer, hf_model: Any) -> None:
    seen: dict[int, torch.Tensor] = {}
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda module, inputs, i=i: seen.__setitem__(i, inputs[0])
        )
        for i, layer in enumerate(hf_model.model.layers)
    ]
    tokens = some_tokens(length=12)
    with torch.no_grad():
        hf_model(tokens)
        _, cache = model.run_with_cache(tokens)
    for handle in handles:
        handle.remove()
    for layer in range(model.cfg.n_layers):
        neurons = cache[f"blocks.{layer}.mlp.hook_post"]
        torch.testing.assert_close(neurons, seen[layer], rtol=1e-4, atol=1e-5)


def test_a_misleading_path_changes_nothing(
    tmp_path: Path, llama_folder: Path, qwen_folder: Path
) -> None:
    # TransformerLens reads "llama" and "gemma" in a path as the architecture, even as the size.
    for source, place in ((qwen_folder, "llama-30b-gemma/qwen"), (llama_folder, "Qwen-gemma-2/x")):
        folder = shutil.copytree(source, tmp_path / place)
        ours = tl_logits(cl.load_model(folder, device="cpu"), some_tokens())
        theirs = hf_logits(source, some_tokens(), torch.float32)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_relative_path_and_a_trailing_slash_name_the_folder(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama_folder)
    assert info(cl.load_model(".", device="cpu")).name == "tiny-llama"
    assert info(cl.load_model(f"{llama_folder}/", device="cpu")).name == "tiny-llama"


def test_a_checkpoint_of_pickled_tensors_loads(tmp_path: Path, llama_folder: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "pickled")
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    ours = tl_logits(cl.load_model(folder, device="cpu"), some_tokens())
    torch.testing.assert_close(ours, hf_logits(llama_folder, some_tokens(), torch.float32))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    tmp_path: Path, llama_folder: Path
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "evil")
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(marker), "w"))

    torch.save({"lm_head.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="evil"):
        cl.load_model(folder, device="cpu")
    assert not marker.exists()


def test_stop_tokens_come_from_the_generation_config_first(
    tmp_path: Path, llama_folder: Path
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    GenerationConfig(eos_token_id=[2, 7]).save_pretrained(folder)
    assert info(cl.load_model(folder, device="cpu")).stop_tokens == (2, 7)
    (folder / "generation_config.json").unlink()
    edit_config(folder, eos_token_id=7)
    assert info(cl.load_model(folder, device="cpu")).stop_tokens == (7,)
    edit_config(folder, eos_token_id=None)
    assert info(cl.load_model(folder, device="cpu")).stop_tokens == (2,)  # the tokenizer's </s>


# --- memory layout -----------------------------------------------------------------------------


@pytest.fixture(params=["gated, grouped heads", "gated, all heads", "plain MLP"])
def fresh(request: pytest.FixtureRequest) -> HookedTransformer:
    """A random model as TransformerLens lays it out."""
    torch.manual_seed(0)
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=2,
            d_model=24,
            n_ctx=32,
            d_head=6,
            n_heads=4,
            n_key_value_heads=2 if "grouped" in request.param else None,
            d_mlp=40,
            d_vocab=34,
            act_fn="silu",
            gated_mlp="gated" in request.param,
            normalization_type="RMS",
            positional_embedding_type="rotary",
            rotary_dim=6,
            device="cpu",
        )
    )


def test_lay_out_keeps_every_weight_and_every_logit_bit(fresh: HookedTransformer) -> None:
    tokens = some_tokens(length=20)
    logits = tl_logits(fresh, tokens)
    weights = {name: weight.clone() for name, weight in fresh.state_dict().items()}
    assert lay_out(fresh) is fresh
    assert torch.equal(tl_logits(fresh, tokens), logits)
    assert fresh.state_dict().keys() == weights.keys()
    for name, weight in fresh.state_dict().items():
        assert weight.shape == weights[name].shape
        assert torch.equal(weight, weights[name])


def is_view(made: torch.Tensor, of: torch.Tensor) -> bool:
    """No copy was made."""
    return made.is_contiguous() and made.data_ptr() == of.data_ptr()


def test_after_lay_out_what_transformer_lens_transposes_is_a_view(model: HookedTransformer) -> None:
    assert is_view(model.W_U.T.contiguous(), model.W_U)
    for block in model.blocks:
        for weight in (block.mlp.W_gate, block.mlp.W_in, block.mlp.W_out):
            assert is_view(weight.T.contiguous(), weight)
        for weight in (block.attn.W_Q, block.attn._W_K, block.attn._W_V):
            pattern = "head_index d_model d_head -> (head_index d_head) d_model"
            assert is_view(einops.rearrange(weight, pattern), weight)
        pattern = "head_index d_head d_model -> d_model (head_index d_head)"
        assert is_view(einops.rearrange(block.attn.W_O, pattern), block.attn.W_O)


# --- names -------------------------------------------------------------------------------------


def test_the_paper_has_sixteen_models() -> None:
    assert len(set(PAPER_MODELS)) == 16


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_the_papers_models_are_known_by_name_and_alias(name: str) -> None:
    for spelling in (name, name.lower(), *MODEL_ALIASES.get(name, [])):
        assert resolve(spelling) == ("transformer_lens", name)


def test_other_repositories_go_to_the_hub() -> None:
    assert resolve("someone/my-llama-chat") == ("hub", "someone/my-llama-chat")


@pytest.mark.parametrize(
    "name", ["no-such-model", "", "a/b/c", "./somewhere/else", "/", "organism/neither", "x/"]
)
def test_unknown_names_are_refused(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        cl.load_model(name, device="cpu")


def test_a_folder_without_config_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        cl.load_model(tmp_path, device="cpu")


# --- the hub, offline --------------------------------------------------------------------------

COMMIT, OLD_COMMIT = "0123456789abcdef0123456789abcdef01234567", "f" * 40
OFFICIAL, FINE_TUNE = "Qwen/Qwen2.5-0.5B-Instruct", "someone/my-llama-chat"
WITH_CODE, OFFICIAL_WITH_CODE = "someone/with-code", "microsoft/phi-4"


def put(cache: Path, name: str, source: Path, branch: str = "main", commit: str = COMMIT) -> Path:
    """Lay a checkpoint into a hub cache, as `hf download` would."""
    repository = cache / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / branch).write_text(commit)
    return shutil.copytree(source, repository / "snapshots" / commit)


@pytest.fixture(scope="module")
def hub(
    tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, qwen_folder: Path
) -> dict[str, Any]:
    """What a fresh process loads from a hand-made cache, with the network switched off."""
    home = tmp_path_factory.mktemp("hub")
    put(home, OFFICIAL, qwen_folder)
    put(home, FINE_TUNE, llama_folder)
    old = write_llama(tmp_path_factory.mktemp("old") / "model", seed=1)
    GenerationConfig(eos_token_id=[2, 7]).save_pretrained(old)
    put(home, FINE_TUNE, old, "old", OLD_COMMIT)
    for name, model_type in ((WITH_CODE, "unknown"), (OFFICIAL_WITH_CODE, "llama")):
        folder = put(home, name, llama_folder)
        code = f"open({str(home / 'executed')!r}, 'w')\n"
        code += "from transformers import LlamaConfig as Config\n"
        code += "from transformers import LlamaForCausalLM as Model\n"
        (folder / "code.py").write_text(code)
        auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
        edit_config(folder, auto_map=auto_map, model_type=model_type)
    names = [
        OFFICIAL,
        OFFICIAL.lower(),
        FINE_TUNE,
        f"{FINE_TUNE}@{COMMIT}",
        f"{FINE_TUNE}@old",
        f"{FINE_TUNE}@no-such-branch",
        WITH_CODE,
        OFFICIAL_WITH_CODE,
        "someone/not-there",
    ]
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "hf_secret",
        "OMP_NUM_THREADS": "1",
    }
    for inherited in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(inherited, None)
    session = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hub_session.py")), home / "found", *names],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads((home / "found").read_text())
    return {**found, "executed": (home / "executed").exists(), "stdout": session.stdout}


def test_an_official_name_loads_what_its_repository_holds(
    hub: dict[str, Any], qwen_folder: Path
) -> None:
    tokens = torch.tensor([[8, 9, 10, 11, 12, 13, 14, 15]])
    expected = hf_logits(qwen_folder, tokens, torch.float32)[0, -1]
    for name in (OFFICIAL, OFFICIAL.lower()):
        assert hub[name]["loader"] == "transformer_lens"
        torch.testing.assert_close(torch.tensor(hub[name]["logits"]), expected)
        assert hub[name]["stop_tokens"] == [2]
        assert hub[name]["bos"] is None
        assert hub[name]["revision"] == COMMIT


def test_an_unknown_fine_tune_loads_by_its_architecture(
    hub: dict[str, Any], llama_folder: Path
) -> None:
    tokens = torch.tensor([[8, 9, 10, 11, 12, 13, 14, 15]])
    expected = hf_logits(llama_folder, tokens, torch.float32)[0, -1]
    for name in (FINE_TUNE, f"{FINE_TUNE}@{COMMIT}"):
        assert hub[name]["loader"] == "hub"
        assert hub[name]["name"] == FINE_TUNE
        assert hub[name]["revision"] == COMMIT
        torch.testing.assert_close(torch.tensor(hub[name]["logits"]), expected)


def test_a_revision_is_loaded_whole(hub: dict[str, Any]) -> None:
    new, old = hub[FINE_TUNE], hub[f"{FINE_TUNE}@old"]
    assert (old["revision"], old["stop_tokens"]) == (OLD_COMMIT, [2, 7])
    assert new["stop_tokens"] == [2]
    assert old["provenance"]["weights"] != new["provenance"]["weights"]
    assert old["logits"] != new["logits"]


def test_a_model_is_the_same_from_the_hub_and_from_a_folder(
    hub: dict[str, Any], llama: HookedTransformer
) -> None:
    from_hub, from_folder = hub[FINE_TUNE]["provenance"], describe(llama).to_dict()
    differing = {key for key in from_hub if from_hub[key] != from_folder.get(key)}
    assert differing == {"model", "loader", "revision"}
    response = cl.generate(llama, ["a b c"], max_new_tokens=4)[0]
    assert hub[FINE_TUNE]["response"] == list(response.tokens)


def test_a_token_in_the_environment_stays_there(hub: dict[str, Any]) -> None:
    assert "hf_secret" not in json.dumps(hub)


def test_loading_prints_nothing(hub: dict[str, Any]) -> None:
    assert hub["stdout"] == ""  # TransformerLens would: what a script prints is its own


def test_what_is_not_on_the_hub_is_a_model_error(hub: dict[str, Any]) -> None:
    for name in ("someone/not-there", f"{FINE_TUNE}@no-such-branch"):
        assert hub[name]["error"] == "ModelError"
    assert "someone/not-there" in hub["someone/not-there"]["message"]


def test_code_that_comes_with_a_checkpoint_is_not_run_unasked(hub: dict[str, Any]) -> None:
    # TransformerLens itself would switch it on for names such as microsoft/phi-4.
    for name in (WITH_CODE, OFFICIAL_WITH_CODE):
        assert hub[name]["error"] == "ModelError"
        assert "trust_remote_code" in hub[name]["message"]
    assert not hub["executed"]


# --- what would load wrong is refused ----------------------------------------------------------

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("write", "overrides", "problem"),
    [
        (write_llama, {"attention_bias": True}, "attention bias"),
        (write_llama, {"mlp_bias": True}, "MLP bias"),
        (write_llama, {"head_dim": 16}, "head_dim 16"),
        (write_llama, {"rope_parameters": YARN}, "yarn"),
        (write_llama, {"rope_parameters": LINEAR}, "linear"),
        (write_qwen2, {"rope_parameters": YARN}, "yarn"),
        (write_qwen2, {"use_sliding_window": True, "sliding_window": 8}, "sliding-window"),
    ],
)
def test_what_the_converters_would_drop_is_refused(
    tmp_path: Path, write: Callable[..., Path], overrides: dict[str, Any], problem: str
) -> None:
    folder = write(tmp_path / "model", **overrides)
    with pytest.raises(ModelError, match=problem):
        cl.load_model(folder, device="cpu")


@pytest.mark.parametrize("architectures", [["SomethingForCausalLM"], [], None])
def test_an_unknown_architecture_is_refused(
    tmp_path: Path, llama_folder: Path, architectures: list[str] | None
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    edit_config(folder, architectures=architectures)
    with pytest.raises(ModelError):
        cl.load_model(folder, device="cpu")


def test_damaged_checkpoints_are_model_errors(tmp_path: Path, llama_folder: Path) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(llama_folder, tmp_path / name)

    truncated = copy("truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    missing = copy("missing")
    (missing / "model.safetensors").unlink()
    no_json = copy("no-json")
    (no_json / "config.json").write_text("{")
    other_shape = edit_config(copy("other-shape"), intermediate_size=44)
    for folder in (truncated, missing, no_json, other_shape):
        with pytest.raises(ModelError, match=folder.name):
            cl.load_model(folder, device="cpu")


def test_a_missing_tokenizer_is_an_error_and_can_be_given(
    tmp_path: Path, llama_folder: Path
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(TokenizerError, match="tokenizer"):
        cl.load_model(folder, device="cpu")
    model = cl.load_model(folder, device="cpu", tokenizer=make_tokenizer())
    assert cl.generate(model, ["a b"], max_new_tokens=2)[0].prompt_tokens > 2


def test_style_chat_needs_a_template(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "base", chat=False)
    with pytest.raises(TokenizerError, match="chat template"):
        cl.load_model(folder, device="cpu", style="chat")
    assert describe(cl.load_model(folder, device="cpu")).prompt_style == "plain"


@pytest.mark.parametrize("dtype", ["int8", "nonsense", "load", torch.int8, ""])
def test_a_dtype_that_weights_cannot_have_is_refused(llama_folder: Path, dtype: Any) -> None:
    with pytest.raises(ModelError, match="dtype"):
        cl.load_model(llama_folder, device="cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_dtype_is_a_torch_dtype_or_its_name(llama_folder: Path, dtype: Any) -> None:
    assert cl.load_model(llama_folder, device="cpu", dtype=dtype).W_E.dtype == torch.bfloat16


# --- models built elsewhere --------------------------------------------------------------------


def test_a_model_built_elsewhere_takes_a_tokenizer(fresh: HookedTransformer) -> None:
    with pytest.raises(TokenizerError, match="tokenizer"):
        cl.load_model(fresh)
    logits = tl_logits(fresh, some_tokens(length=20))
    tokenizer = make_tokenizer()
    assert cl.load_model(fresh, tokenizer=tokenizer, dtype="float32") is fresh
    about = info(fresh)
    assert (about.loader, about.weight_processing) == ("built", "unknown")
    assert about.tokenizer is tokenizer
    assert about.stop_tokens == (tokenizer.eos_token_id,)
    assert torch.equal(tl_logits(fresh, some_tokens(length=20)), logits)


def test_a_model_built_elsewhere_moves_only_where_asked(fresh: HookedTransformer) -> None:
    cl.load_model(fresh, tokenizer=make_tokenizer(), dtype="bfloat16", device="cpu")
    assert {weight.dtype for weight in fresh.parameters()} == {torch.bfloat16}
    assert describe(fresh).dtype == "bfloat16"


def test_loading_a_loaded_model_changes_its_format_only(qwen_folder: Path) -> None:
    model = cl.load_model(qwen_folder, device="cpu")
    before = info(model)
    assert cl.load_model(model, style="plain") is model
    after = info(model)
    assert (after.form.style, before.form.style) == ("plain", "auto")
    assert (after.name, after.loader, after.stop_tokens) == (
        before.name,
        before.loader,
        before.stop_tokens,
    )
    assert after.tokenizer is before.tokenizer


def test_transformer_lens_does_not_change_the_checkpoints_tokenizer(
    qwen: HookedTransformer, llama: HookedTransformer
) -> None:
    ours = info(qwen).tokenizer
    assert ours is not qwen.tokenizer
    assert ours.bos_token is None  # TransformerLens gives its own copy one
    assert not adds_bos(ours)
    assert adds_bos(info(llama).tokenizer)


def test_weights_digests_tell_checkpoints_apart(
    tmp_path: Path, llama: HookedTransformer, llama_folder: Path
) -> None:
    again = cl.load_model(llama_folder, device="cpu")
    assert describe(again) == describe(llama)
    other = cl.load_model(write_llama(tmp_path / "tiny-llama", seed=1), device="cpu")
    assert describe(other).weights != describe(llama).weights
