"""The streaming pass: right position, right numbers, whatever the batch; nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_tokenizer, write_gpt2
from transformer_lens import HookedTransformer, HookedTransformerConfig

import cna_lens as cl
from cna_lens.activations import ActivationStatistics, measure, neuron_count, stream
from cna_lens.errors import CircuitMismatch, InvalidInput, ModelError, NonFiniteActivations
from cna_lens.models import encode

SHAPE = (2, 3)  # layers, neurons


def values_at(model: HookedTransformer, prompts: list[str], **options: Any) -> torch.Tensor:
    """`stream` back in the order of the prompts."""
    found: dict[int, torch.Tensor] = {}
    for rows, values in stream(model, prompts, **options):
        assert values.dtype == torch.float32
        assert not set(rows) & set(found)
        found.update(zip(rows, values, strict=True))
    return torch.stack([found[row] for row in range(len(prompts))])


# --- statistics are a monoid -------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> list[np.ndarray]:
    """One to six batches of one to five prompts, at very different scales."""
    seed = draw(st.integers(0, 2**32 - 1))
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    offset = draw(st.sampled_from([0.0, 1.0, -300.0, 1e4]))
    random = np.random.default_rng(seed)
    return [(offset + random.normal(size=(n, *SHAPE))).astype(np.float32) for n in sizes]


def statistics(values: np.ndarray, top_fraction: float = 0.3) -> ActivationStatistics:
    return ActivationStatistics.of(torch.from_numpy(values), top_fraction)


def assert_same(one: ActivationStatistics, other: ActivationStatistics) -> None:
    assert one.count == other.count
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.m2, other.m2, rtol=1e-7, atol=1e-7)
    assert torch.equal(one.hits, other.hits)


@given(batches(), st.randoms(use_true_random=False))
def test_merged_batches_give_the_mean_and_variance_of_all_in_any_order(
    parts: list[np.ndarray], random: Any
) -> None:
    shuffled = random.sample(parts, len(parts))
    merged = ActivationStatistics.empty(*SHAPE, 0.3)
    for part in shuffled:
        merged = merged + statistics(part)
    whole = np.concatenate(parts).astype(np.float64)
    assert merged.count == len(whole)
    assert merged.mean.dtype == merged.m2.dtype == torch.float64
    np.testing.assert_allclose(merged.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    # Unit variance beside a mean of up to 1e4: eight of sixteen digits remain.
    np.testing.assert_allclose(merged.m2 / len(whole), whole.var(0), rtol=1e-7, atol=1e-7)


@given(batches())
def test_the_empty_statistics_are_the_identity(parts: list[np.ndarray]) -> None:
    one, empty = statistics(parts[0]), ActivationStatistics.empty(*SHAPE, 0.3)
    for same in (one + empty, empty + one):
        assert same.count == one.count
        for name in ("mean", "m2", "hits"):
            assert torch.equal(getattr(same, name), getattr(one, name))
    assert (empty + empty).count == 0


@given(batches(), batches(), batches())
def test_merging_is_associative_and_commutative(
    a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray]
) -> None:
    one, two, three = (statistics(np.concatenate(parts)) for parts in (a, b, c))
    assert_same((one + two) + three, one + (two + three))
    assert_same(one + two, two + one)


@given(batches(), st.floats(0.01, 1.0))
def test_hits_count_the_top_of_each_prompt(parts: list[np.ndarray], fraction: float) -> None:
    values = np.concatenate(parts)
    found = statistics(values, fraction)
    expected = np.zeros(6)
    for prompt in np.abs(values.reshape(len(values), 6)):
        expected[np.argsort(-prompt)[: neuron_count(fraction, 6)]] += 1
    assert found.hits.flatten().tolist() == expected.tolist()
    assert (found.hit_rate.flatten() == torch.from_numpy(expected / len(values))).all()


def test_statistics_worked_out_by_hand() -> None:
    # Neuron (0, 0) over three prompts: 1, 2, 6. Mean 3, squared deviations 4 + 1 + 9 = 14.
    values = np.zeros((3, *SHAPE), dtype=np.float32)
    values[:, 0, 0] = [1, 2, 6]
    values[:, 1, 2] = [0, -9, 0]
    found = statistics(values[:1]) + statistics(values[1:])
    assert (found.count, float(found.mean[0, 0]), float(found.m2[0, 0])) == (3, 3.0, 14.0)
    # The top 0.3 of 6 is 2 neurons: (0, 0) is always in it, (1, 2) when it is not silent.
    assert found.hits.tolist() == [[3, 0, 0], [0, 0, 1]]


def test_statistics_of_different_kinds_do_not_merge() -> None:
    one = ActivationStatistics.empty(2, 3, 0.3)
    with pytest.raises(CircuitMismatch):
        one + ActivationStatistics.empty(2, 4, 0.3)
    with pytest.raises(InvalidInput, match="top fractions"):
        one + ActivationStatistics.empty(2, 3, 0.2)


def test_a_fraction_is_rounded_and_at_least_one_neuron() -> None:
    assert neuron_count(0.001, 16 * 8192) == 131  # Llama-3.2-1B: 131.072
    assert neuron_count(0.001, 100) == 1
    assert neuron_count(0.5, 5) == 2
    assert neuron_count(1.0, 7) == 7
    for wrong in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(InvalidInput):
            neuron_count(wrong, 100)


# --- one pass over a model ---------------------------------------------------------------------


@pytest.fixture(params=["left", "right"])
def padding_side(request: pytest.FixtureRequest, model: HookedTransformer) -> Iterator[None]:
    """Our batches are padded on the left whatever TransformerLens' tokenizer says."""
    assert model.tokenizer is not None
    before = model.tokenizer.padding_side
    model.tokenizer.padding_side = request.param
    yield
    model.tokenizer.padding_side = before


@pytest.mark.usefixtures("padding_side")
@pytest.mark.parametrize("position", ["last", -2, "mean"])
@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_a_batch_gives_what_one_prompt_at_a_time_gives(
    model: HookedTransformer, prompts: list[str], position: Any, batch_size: int
) -> None:
    alone = values_at(model, prompts, position=position, batch_size=1)
    together = values_at(model, prompts, position=position, batch_size=batch_size)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_absolute_positions_are_padded_right_too(tmp_path: Path, prompts: list[str]) -> None:
    gpt2 = cl.load_model(write_gpt2(tmp_path / "gpt2"), device="cpu")
    alone = values_at(gpt2, prompts, batch_size=1)
    torch.testing.assert_close(values_at(gpt2, prompts, batch_size=7), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("padding_side")
def test_positions_are_those_of_hugging_face(
    model: HookedTransformer, hf_model: Any, prompts: list[str]
) -> None:
    seen: dict[int, torch.Tensor] = {}
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda module, inputs, i=i: seen.__setitem__(i, inputs[0])
        )
        for i, layer in enumerate(hf_model.model.layers)
    ]
    expected: dict[Any, list[torch.Tensor]] = {"last": [], -1: [], -2: [], "mean": []}
    for ids in encode(model, prompts):
        with torch.no_grad():
            hf_model(torch.tensor([ids]))
        neurons = torch.cat([seen[layer] for layer in sorted(seen)])  # [layer, pos, neuron]
        expected["last"].append(neurons[:, -1])
        expected[-1].append(neurons[:, -1])
        expected[-2].append(neurons[:, -2])
        expected["mean"].append(neurons.mean(dim=1))
    for handle in handles:
        handle.remove()
    for position, values in expected.items():
        ours = values_at(model, prompts, position=position, batch_size=3)
        torch.testing.assert_close(ours, torch.stack(values), rtol=1e-4, atol=1e-5)


def test_measuring_is_streaming_and_merging(model: HookedTransformer, prompts: list[str]) -> None:
    whole = values_at(model, prompts, batch_size=1).double().numpy()
    found = measure(model, prompts, batch_size=3, top_fraction=0.05)
    assert found.count == len(prompts)
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.m2 / len(prompts), whole.var(0), rtol=1e-3, atol=1e-5)
    k = neuron_count(0.05, whole[0].size)
    assert found.hits.sum() == k * len(prompts)


def test_a_bfloat16_model_is_averaged_in_full_precision(
    llama_folder: Path, prompts: list[str]
) -> None:
    model = cl.load_model(llama_folder, device="cpu", dtype="bfloat16")
    values = values_at(model, prompts, batch_size=1)
    assert torch.equal(values, values.bfloat16().float())  # the model's own numbers, exactly
    found = measure(model, prompts, batch_size=1)
    np.testing.assert_allclose(found.mean, values.double().numpy().mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        found.m2 / len(prompts), values.double().numpy().var(0), rtol=1e-9, atol=1e-15
    )


def test_no_logits_are_computed(model: HookedTransformer, prompts: list[str]) -> None:
    def refuse(residual: Any, hook: Any) -> None:
        raise AssertionError("the unembedding ran")

    with model.hooks(fwd_hooks=[("unembed.hook_in", refuse)]):
        measure(model, prompts)


def hooks_on(model: HookedTransformer) -> int:
    return sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in model.hook_points())


def test_no_hook_is_left(model: HookedTransformer, prompts: list[str]) -> None:
    measure(model, prompts)
    half_way = stream(model, prompts, batch_size=1)
    next(half_way)
    assert hooks_on(model) == 0
    assert model.context_level == 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_found_and_named(llama_folder: Path, wrong: float) -> None:
    model = cl.load_model(llama_folder, device="cpu")
    with torch.no_grad():
        model.blocks[1].mlp.W_in[3, 5] = wrong
    with pytest.raises(NonFiniteActivations, match=r"layer 1 gave NaN or infinite.*'a b'"):
        measure(model, ["a b"])
    with pytest.raises(NonFiniteActivations):
        cl.discover(model, cl.ContrastSet(["a"], ["b"]), universal_prompts=None)
    assert hooks_on(model) == 0


@pytest.mark.usefixtures("as_called_by_users")
@pytest.mark.parametrize(
    ("prompts", "options", "problem"),
    [
        ([], {}, "no prompts"),
        (["a " * 200], {}, "context of 128"),
        (["a"], {"batch_size": 0}, "batch_size"),
        (["a"], {"top_fraction": 0.0}, "top_fraction"),
        (["a"], {"top_fraction": 1.5}, "top_fraction"),
        (["a"], {"position": 0}, "position 0"),
        (["a"], {"position": 1}, "position 1"),
        (["a"], {"position": "first"}, "'first'"),
        (["a", "b c d e"], {"position": -7}, "shortest prompt"),
        ("abc", {}, "not one string"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    llama: HookedTransformer, prompts: Any, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidInput, match=problem):
        measure(llama, prompts, **options)


def test_the_first_token_is_a_position(llama: HookedTransformer) -> None:
    ids = encode(llama, ["a"])[0]
    first = values_at(llama, ["a"], position=-len(ids))
    with torch.no_grad():
        _, cache = llama.run_with_cache(torch.tensor([ids]))
    assert torch.allclose(first[0, 0], cache["blocks.0.mlp.hook_post"][0, 0], atol=1e-5)


@pytest.mark.parametrize("kind", [{"num_experts": 4, "experts_per_token": 2}, {"attn_only": True}])
def test_a_model_without_a_row_of_neurons_is_refused(kind: dict[str, Any]) -> None:
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=2,
            d_model=16,
            n_ctx=32,
            d_head=4,
            n_heads=4,
            d_mlp=24,
            d_vocab=34,
            act_fn="silu",
            gated_mlp=True,
            normalization_type="RMS",
            device="cpu",
            **kind,
        )
    )
    with pytest.raises(ModelError, match="mixture of experts or attention only"):
        cl.load_model(model, tokenizer=make_tokenizer())
