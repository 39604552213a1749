"""Decoding: what one prompt at a time gives, whatever the batch, the cache and the neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import random_circuit, scaled_logits, slow_decode
from scipy.stats import chisquare
from tiny import write_gpt2, write_qwen2
from transformer_lens import HookedTransformer
from transformer_lens.components.abstract_attention import AbstractAttention
from transformers import AutoModelForCausalLM

import cna_lens as cl
from cna_lens.errors import InvalidInput, TokenizerError
from cna_lens.generation import stream_responses
from cna_lens.interventions import ScaleNeurons
from cna_lens.models import encode, info

N_NEW = 10


def tokens_of(model: HookedTransformer, prompts: list[str], *steering: Any, **options: Any) -> Any:
    options = {"max_new_tokens": N_NEW, "stop_tokens": [], **options}
    return [list(g.tokens) for g in cl.generate(model, prompts, list(steering), **options)]


@pytest.fixture(scope="module")
def circuit(model: HookedTransformer) -> cl.Circuit:
    return random_circuit(model, 25)


# --- greedy ------------------------------------------------------------------------------------


def test_greedy_is_the_argmax_of_the_whole_sequence_every_time(
    model: HookedTransformer, prompts: list[str]
) -> None:
    expected = [slow_decode(model, ids, N_NEW) for ids in encode(model, prompts)]
    assert tokens_of(model, prompts) == expected
    assert len({tuple(response) for response in expected}) > 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 6, 7, 64])
def test_a_batch_gives_what_one_prompt_at_a_time_gives(
    model: HookedTransformer, circuit: cl.Circuit, prompts: list[str], batch_size: int
) -> None:
    strengths = [0.0, 1.0, 3.0, -1.0, 0.5, 2.0, 0.0]
    alone = [
        tokens_of(model, [prompt], (circuit, strength))[0]
        for prompt, strength in zip(prompts, strengths, strict=True)
    ]
    assert tokens_of(model, prompts, (circuit, strengths), batch_size=batch_size) == alone


def test_hugging_face_generates_the_same(
    model: HookedTransformer, hf_model: Any, prompts: list[str]
) -> None:
    theirs = []
    for ids in encode(model, prompts):
        given = torch.tensor([ids])
        made = hf_model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=N_NEW,
            eos_token_id=None,
            pad_token_id=0,
        )
        theirs.append(made[0, len(ids) :].tolist())
    assert tokens_of(model, prompts) == theirs


def test_absolute_positions_are_decoded_right_too(tmp_path: Path, prompts: list[str]) -> None:
    folder = write_gpt2(tmp_path / "gpt2")
    model = cl.load_model(folder, device="cpu")
    hf_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, ours in zip(prompts, tokens_of(model, prompts), strict=True):
        ids = torch.tensor(encode(model, [prompt]))
        made = hf_model.generate(
            ids, do_sample=False, max_new_tokens=N_NEW, eos_token_id=None, pad_token_id=0
        )
        assert ours == made[0, ids.shape[1] :].tolist()


def test_the_last_position_alone_is_unembedded(model: HookedTransformer) -> None:
    shapes = []
    hook = ("unembed.hook_in", lambda residual, hook: shapes.append(tuple(residual.shape[:2])))
    with model.hooks(fwd_hooks=[hook]):
        tokens_of(model, ["a b c d", "e"], max_new_tokens=3)
    assert shapes == [(2, 1)] * 3


def test_responses_come_in_the_order_of_the_prompts(
    model: HookedTransformer, prompts: list[str]
) -> None:
    found = cl.generate(model, prompts, max_new_tokens=2, batch_size=2)
    assert [generation.prompt for generation in found] == prompts
    assert [g.prompt_tokens for g in found] == [len(ids) for ids in encode(model, prompts)]
    tokenizer = info(model).tokenizer
    assert tokenizer is not None
    for generation in found:
        text = tokenizer.decode(generation.tokens, skip_special_tokens=True)
        assert generation.text == text


# --- the end -----------------------------------------------------------------------------------


def test_a_response_ends_before_its_stop_token(
    model: HookedTransformer, prompts: list[str]
) -> None:
    free = tokens_of(model, prompts)
    stop = sorted({free[0][3], free[2][6], free[4][0]})
    found = cl.generate(model, prompts, max_new_tokens=N_NEW, stop_tokens=stop, batch_size=4)
    for generation, unstopped in zip(found, free, strict=True):
        ends = [at for at, token in enumerate(unstopped) if token in stop]
        expected = unstopped[: ends[0]] if ends else unstopped
        assert list(generation.tokens) == expected
        assert generation.finished == bool(ends)
    assert found[4].tokens == () and found[4].text == ""
    assert len({len(generation.tokens) for generation in found}) > 2


def test_rows_that_stay_keep_their_strength_when_others_leave(
    model: HookedTransformer, circuit: cl.Circuit, prompts: list[str]
) -> None:
    strengths = [0.0, 4.0, -1.0, 1.0, 0.5, 2.0, 3.0]
    ids = encode(model, prompts)
    free = [
        slow_decode(model, row, N_NEW, [(circuit, strength, "all")])
        for row, strength in zip(ids, strengths, strict=True)
    ]
    stop = sorted({free[1][1], free[3][2], free[5][4]})
    expected = [
        slow_decode(model, row, N_NEW, [(circuit, strength, "all")], stop)
        for row, strength in zip(ids, strengths, strict=True)
    ]
    assert tokens_of(model, prompts, (circuit, strengths), stop_tokens=stop) == expected
    assert len({len(row) for row in expected}) > 2


def test_the_checkpoints_own_stop_tokens_are_the_default(
    model: HookedTransformer, prompts: list[str]
) -> None:
    circuit = random_circuit(model, 40, seed=2)
    free = tokens_of(model, prompts, (circuit, 0.0), max_new_tokens=60)
    found = cl.generate(model, prompts, [(circuit, 0.0)], max_new_tokens=60)
    for generation, unstopped in zip(found, free, strict=True):
        expected = unstopped[: unstopped.index(2)] if 2 in unstopped else unstopped
        assert list(generation.tokens) == expected


def test_max_new_tokens_is_the_most(model: HookedTransformer, prompts: list[str]) -> None:
    long = tokens_of(model, prompts, max_new_tokens=7)
    for most in (1, 3):
        short = cl.generate(model, prompts, max_new_tokens=most, stop_tokens=[])
        assert [list(g.tokens) for g in short] == [row[:most] for row in long]
        assert not any(generation.finished for generation in short)


def test_prompt_and_response_must_fit_the_context(model: HookedTransformer) -> None:
    prompt = "a " * 20
    room = model.cfg.n_ctx - len(encode(model, [prompt])[0])
    assert len(tokens_of(model, [prompt], max_new_tokens=room)[0]) == room
    with pytest.raises(InvalidInput, match="would not fit into the context of 128"):
        tokens_of(model, ["b", prompt], max_new_tokens=room + 1)


def test_the_default_length_is_the_papers_or_what_fits(
    model: HookedTransformer, tmp_path: Path
) -> None:
    prompts = ["a", "a b c d e"]
    room = model.cfg.n_ctx - len(encode(model, prompts)[1])
    found = cl.generate(model, prompts, stop_tokens=[])
    assert [len(generation.tokens) for generation in found] == [room, room]
    folder = write_qwen2(tmp_path / "long", max_position_embeddings=400)
    long = cl.load_model(folder, device="cpu")
    assert len(cl.generate(long, ["a"], stop_tokens=[])[0].tokens) == 150


def test_rows_left_out_do_not_change_the_others(
    model: HookedTransformer, circuit: cl.Circuit, prompts: list[str]
) -> None:
    strengths = [0.0, 1.0, 3.0, -1.0, 0.5, 2.0, 0.0]
    options: dict[str, Any] = {"max_new_tokens": 4, "sampling": cl.Sampling(seed=1)}
    whole = cl.generate(model, prompts, [(circuit, strengths)], **options)
    found: dict[int, cl.Generation] = {}
    for part in stream_responses(
        model, prompts, [(circuit, strengths)], skip={0, 3, 4}, batch_size=2, **options
    ):
        found |= part
    assert found == {row: whole[row] for row in (1, 2, 5, 6)}


# --- steering ----------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last"])
def test_every_position_window_is_the_explicit_one(
    model: HookedTransformer, circuit: cl.Circuit, prompts: list[str], positions: Any
) -> None:
    strengths = [0.0, 4.0, -1.0, 1.0, 0.5, 2.0, 3.0]
    expected = [
        slow_decode(model, ids, N_NEW, [(circuit, strength, positions)])
        for ids, strength in zip(encode(model, prompts), strengths, strict=True)
    ]
    steering = (ScaleNeurons(circuit, positions), strengths)
    assert tokens_of(model, prompts, steering, batch_size=3) == expected
    # The same under a `steer` block, where the prompt's length has to be found out.
    with cl.steer(model, circuit, 4.0, positions=positions):
        found = tokens_of(model, prompts, batch_size=3)
    for ids, response in zip(encode(model, prompts), found, strict=True):
        assert response == slow_decode(model, ids, N_NEW, [(circuit, 4.0, positions)])


def test_several_interventions_act_at_once_row_by_row(
    model: HookedTransformer, circuit: cl.Circuit
) -> None:
    other = random_circuit(model, 25, seed=9)
    prompts = ["a b c"] * 4 + ["d e"] * 4
    ones, others = [0.0, 1.0, 1.0, 0.0] * 2, [1.0, 3.0, 1.0, 3.0] * 2
    steering = (circuit, ones), (ScaleNeurons(other, "generated"), others)
    found = tokens_of(model, prompts, *steering, batch_size=3)
    for row, ids in enumerate(encode(model, prompts)):
        scalings = [(circuit, ones[row], "all"), (other, others[row], "generated")]
        assert found[row] == slow_decode(model, ids, N_NEW, scalings)
    # A neutral strength is as if the intervention were not there.
    assert found[::4] == tokens_of(model, ["a b c", "d e"], (circuit, 0.0))
    assert found[1::4] == tokens_of(
        model, ["a b c", "d e"], (ScaleNeurons(other, "generated"), 3.0)
    )
    assert found[2::4] == tokens_of(model, ["a b c", "d e"])
    assert len({tuple(row) for row in found[:4]}) > 2


def test_one_strength_is_for_all_rows(model: HookedTransformer, circuit: cl.Circuit) -> None:
    prompts = ["a b", "c", "d e f"]
    one = tokens_of(model, prompts, (circuit, 0.0))
    assert one == tokens_of(model, prompts, (circuit, [0.0] * 3))
    assert one == tokens_of(model, prompts, (circuit, torch.zeros(3)))


@pytest.mark.parametrize(
    ("prompts", "options", "problem"),
    [
        ([], {}, "nothing to generate"),
        ("a b", {}, "not one string"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        (["a"], {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_decoded_is_refused(
    llama: HookedTransformer, prompts: Any, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidInput, match=problem):
        cl.generate(llama, prompts, **options)


def test_strengths_must_match_the_prompts(llama: HookedTransformer) -> None:
    circuit = random_circuit(llama, 3)
    with pytest.raises(InvalidInput, match="2 strengths were given for 3 prompts"):
        tokens_of(llama, ["a", "b", "c"], (circuit, [0.0, 1.0]))


def test_without_a_tokenizer_there_is_no_text(qwen_folder: Path) -> None:
    model = cl.load_model(qwen_folder, device="cpu")
    del model.__dict__["_cna_lens_info"]
    model.tokenizer = None
    with pytest.raises(TokenizerError, match="no tokenizer"):
        cl.generate(model, ["a"])


def test_a_model_can_be_differentiated_after_decoding(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rotary tables grow with the longest sequence seen, here while decoding.
    monkeypatch.setattr(AbstractAttention, "ROTARY_INITIAL_CACHE_SIZE", 4)
    model = cl.load_model(llama_folder, device="cpu")
    cl.generate(model, ["a b c d e f"], max_new_tokens=3)
    tokens = torch.tensor([[8, 9, 10, 11, 12, 13]])
    model(tokens).logsumexp(-1).sum().backward()
    assert model.W_E.grad is not None and model.W_E.grad.abs().sum() > 0


# --- sampling ----------------------------------------------------------------------------------

SAMPLING = cl.Sampling(temperature=1.5, seed=3)


def test_a_seed_fixes_every_response(model: HookedTransformer, prompts: list[str]) -> None:
    first = tokens_of(model, prompts, sampling=SAMPLING)
    assert tokens_of(model, prompts, sampling=SAMPLING) == first
    assert tokens_of(model, prompts, sampling=cl.Sampling(temperature=1.5, seed=4)) != first
    assert tokens_of(model, prompts) != first


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_rows_draw_does_not_depend_on_its_batch(
    model: HookedTransformer, prompts: list[str], batch_size: int
) -> None:
    whole = tokens_of(model, prompts, sampling=SAMPLING)
    assert tokens_of(model, prompts, sampling=SAMPLING, batch_size=batch_size) == whole
    assert tokens_of(model, prompts[:3], sampling=SAMPLING) == whole[:3]
    longer = tokens_of(model, prompts, sampling=SAMPLING, max_new_tokens=N_NEW + 3)
    assert [row[:N_NEW] for row in longer] == whole


def test_rows_of_the_same_prompt_differ(model: HookedTransformer) -> None:
    found = tokens_of(model, ["a b"] * 8, sampling=SAMPLING)
    assert len({tuple(row) for row in found}) > 4


def test_a_low_temperature_is_greedy(model: HookedTransformer, prompts: list[str]) -> None:
    cold = cl.Sampling(temperature=1e-4)
    assert tokens_of(model, prompts, sampling=cold) == tokens_of(model, prompts)
    narrow = cl.Sampling(temperature=1.0, top_p=1e-6)
    assert tokens_of(model, prompts, sampling=narrow) == tokens_of(model, prompts)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_tokens_are_drawn_with_their_probabilities(llama: HookedTransformer, top_p: float) -> None:
    n = 1000
    ids = encode(llama, ["a b"])[0]
    p = (scaled_logits(llama, ids, len(ids), [])[-1] / 1.5).softmax(-1).double().numpy()
    order = np.argsort(-p)
    kept = order[: int((np.cumsum(p[order]) < top_p).sum()) + 1]
    expected = np.zeros_like(p)
    expected[kept] = p[kept] / p[kept].sum()

    sampling = cl.Sampling(temperature=1.5, top_p=top_p, seed=0)
    drawn = tokens_of(llama, ["a b"] * n, sampling=sampling, max_new_tokens=1, batch_size=n)
    counts = np.bincount([row[0] for row in drawn], minlength=len(p))
    assert counts[expected == 0].sum() == 0
    often = n * expected >= 5  # the rest in one bin, as the test wants it
    observed = [*counts[often], counts[~often].sum()]
    wanted = [*(n * expected[often]), n * expected[~often].sum()]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert len(wanted) > 3
    assert chisquare(observed, wanted).pvalue > 0.01


def choose(p: list[float], uniform: float, **options: Any) -> int:
    logits = torch.tensor([p]).log()
    return int(cl.Sampling(**options).choose(logits, torch.tensor([uniform])))


def test_the_inverse_of_the_cumulative_distribution_by_hand() -> None:
    # Sorted by probability: token 1 (0.5), 0 (0.3), 2 (0.2).
    p = [0.3, 0.5, 0.2]
    assert [choose(p, u) for u in (0.0, 0.49, 0.51, 0.79, 0.81, 0.999)] == [1, 1, 0, 0, 2, 2]
    # top_p 0.6 keeps the smallest set with at least 0.6: 0.5 and 0.3, so 0.625 and 0.375.
    assert [choose(p, u, top_p=0.6) for u in (0.0, 0.62, 0.63, 0.999)] == [1, 1, 0, 0]
    # top_p 0.4: the first alone.
    assert [choose(p, u, top_p=0.4) for u in (0.0, 0.999)] == [1, 1]
    # Temperature 0.5 squares: 0.25, 0.09, 0.04 of 0.38, so 0.658, 0.895, 1.
    assert [choose(p, u, temperature=0.5) for u in (0.65, 0.67, 0.89, 0.90)] == [1, 0, 0, 2]


@given(st.integers(0, 2**24 - 1), st.integers(0, 10**6), st.floats(0.05, 1.0))
def test_no_token_outside_the_nucleus_is_ever_drawn(step: int, seed: int, top_p: float) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 50, generator=random) * 3
    uniform = step / 2**24  # every value that torch.rand gives
    token = int(cl.Sampling(top_p=top_p).choose(logits, torch.tensor([uniform])))
    p = logits[0].double().softmax(-1)
    above = p[p > p[token]].sum()  # what comes before the token
    assert above < top_p + 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_sampling_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        cl.Sampling(**wrong)
