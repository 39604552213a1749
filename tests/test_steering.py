"""Steering: the function that was asked for, where it was asked for, and no trace of it after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import random_circuit, scaled_logits, slow_decode
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

import cna_lens as cl
from cna_lens.activations import pad_left
from cna_lens.errors import InvalidInput
from cna_lens.interventions import Intervention, ScaleNeurons, as_strengths

POSITIONS = ["all", "prompt", "generated", "last"]
N_NEW = 6


@pytest.fixture(scope="module")
def circuit(model: HookedTransformer) -> cl.Circuit:
    """A fifth of the neurons, so that scaling them changes every response."""
    return random_circuit(model, model.cfg.n_layers * model.cfg.d_mlp // 5)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(3, 34, (4, 9), generator=torch.Generator().manual_seed(1))


def logits_of(model: HookedTransformer, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens)


@contextmanager
def left_as_it_was(model: HookedTransformer) -> Iterator[None]:
    """Weights, their place in memory, hooks and context level are the same afterwards."""

    def hooks() -> dict[str | None, tuple[list[Any], list[Any], list[Any]]]:
        return {
            point.name: (
                list(point.fwd_hooks),
                list(point.bwd_hooks),
                list(point._forward_hooks.values()),
            )
            for point in model.hook_points()
        }

    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    places = {name: weight.data_ptr() for name, weight in model.state_dict().items()}
    before, level = hooks(), model.context_level
    yield
    assert hooks() == before
    assert model.context_level == level
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])
        assert weight.data_ptr() == places[name]


@pytest.fixture(autouse=True)
def every_test_leaves_the_model_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    if "model" in request.fixturenames:
        with left_as_it_was(request.getfixturevalue("model")):
            yield
    else:
        yield


# --- the function ------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
def test_multiplier_one_changes_no_bit(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor, positions: Any
) -> None:
    before = logits_of(model, tokens)
    with cl.steer(model, circuit, 1.0, positions=positions):
        assert torch.equal(logits_of(model, tokens), before)
    with cl.fold(model, circuit, 1.0):
        assert torch.equal(logits_of(model, tokens), before)


@pytest.mark.parametrize("positions", ["all", "prompt", "last"])
@pytest.mark.parametrize("multiplier", [0.0, -1.5, 3.0])
def test_steering_is_the_explicit_scaling(
    model: HookedTransformer,
    circuit: cl.Circuit,
    tokens: torch.Tensor,
    positions: Any,
    multiplier: float,
) -> None:
    with cl.steer(model, circuit, multiplier, positions=positions):
        steered = logits_of(model, tokens)
    for row, ids in enumerate(tokens.tolist()):
        expected = scaled_logits(model, ids, len(ids), [(circuit, multiplier, positions)])
        torch.testing.assert_close(steered[row], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(steered, logits_of(model, tokens), atol=1e-2)


@pytest.mark.parametrize("multiplier", [0.0, 0.5, -1.0, 4.0])
def test_folding_equals_hooking(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor, multiplier: float
) -> None:
    with cl.steer(model, circuit, multiplier):
        hooked = logits_of(model, tokens)
        responses = cl.generate(model, ["a b", "c d e f"], max_new_tokens=N_NEW)
    with cl.fold(model, circuit, multiplier):
        torch.testing.assert_close(logits_of(model, tokens), hooked, rtol=1e-4, atol=1e-4)
        assert cl.generate(model, ["a b", "c d e f"], max_new_tokens=N_NEW) == responses


def test_nested_multipliers_multiply(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor
) -> None:
    with cl.steer(model, circuit, 0.5):
        half = logits_of(model, tokens)
    # Powers of two are exact, so the product is the same to the bit.
    with cl.steer(model, circuit, 2.0), cl.steer(model, circuit, 0.25):
        assert torch.equal(logits_of(model, tokens), half)
    with cl.fold(model, circuit, 2.0), cl.fold(model, circuit, 0.25):
        folded = logits_of(model, tokens)
    with cl.fold(model, circuit, 2.0), cl.steer(model, circuit, 0.25):
        mixed = logits_of(model, tokens)
    torch.testing.assert_close(folded, half, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed, half, rtol=1e-4, atol=1e-4)


def test_nested_circuits_act_side_by_side(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor
) -> None:
    other = random_circuit(model, 9, seed=5)
    with cl.steer(model, circuit, 0.0), cl.steer(model, other, 3.0, positions="last"):
        both = logits_of(model, tokens)
        inside = logits_of(model, tokens[:2])
    for row, ids in enumerate(tokens.tolist()):
        scalings = [(circuit, 0.0, "all"), (other, 3.0, "last")]
        expected = scaled_logits(model, ids, len(ids), scalings)
        torch.testing.assert_close(both[row], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inside, both[:2], rtol=1e-4, atol=1e-4)


def test_the_same_block_twice_gives_the_same(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor
) -> None:
    found = []
    for _ in range(2):
        with cl.steer(model, circuit, 0.0, positions="last"):
            found += [logits_of(model, tokens), logits_of(model, tokens)]
    assert all(torch.equal(one, found[0]) for one in found)


def test_each_row_has_its_own_strength(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor
) -> None:
    strengths = [0.0, 1.0, 2.5, -1.0]
    for given_as in (strengths, torch.tensor(strengths)):
        with cl.steer(model, circuit, given_as, positions="prompt"):
            together = logits_of(model, tokens)
        for row, strength in enumerate(strengths):
            with cl.steer(model, circuit, strength, positions="prompt"):
                alone = logits_of(model, tokens[row : row + 1])
            torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(together[1], logits_of(model, tokens)[1])


def test_a_bfloat16_model_is_steered_in_bfloat16(llama_folder: Path, tokens: torch.Tensor) -> None:
    model = cl.load_model(llama_folder, device="cpu", dtype="bfloat16")
    circuit = random_circuit(model, 20)
    before = logits_of(model, tokens)
    with cl.steer(model, circuit, 1.0):
        assert torch.equal(logits_of(model, tokens), before)
    with cl.steer(model, circuit, 2.0):
        hooked = logits_of(model, tokens)
    with cl.fold(model, circuit, 2.0):  # doubling is exact, also in bfloat16
        torch.testing.assert_close(logits_of(model, tokens), hooked)


# --- positions, with a cache and without -------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_transformer_lens_generate_is_steered_at_the_right_positions(
    model: HookedTransformer,
    circuit: cl.Circuit,
    tokens: torch.Tensor,
    positions: Any,
    use_cache: bool,
) -> None:
    options = {"do_sample": False, "stop_at_eos": False, "verbose": False}
    with cl.steer(model, circuit, 0.0, positions=positions):
        for batch in (tokens, tokens[1:, :5]):  # a second prompt begins anew
            made = model.generate(
                batch, max_new_tokens=N_NEW, use_past_kv_cache=use_cache, **options
            )
            for row, ids in enumerate(batch.tolist()):
                expected = slow_decode(model, ids, N_NEW, [(circuit, 0.0, positions)])
                assert made[row, len(ids) :].tolist() == expected


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_left_padded_batch_is_steered_at_the_right_positions(
    model: HookedTransformer, circuit: cl.Circuit, positions: Any, use_cache: bool
) -> None:
    sequences = [[8, 9, 10, 11, 12], [20, 21], [15, 30, 31]]
    batch, _ = pad_left(sequences, "cpu")
    assert model.tokenizer is not None
    side, model.tokenizer.padding_side = model.tokenizer.padding_side, "left"
    try:
        with cl.steer(model, circuit, [0.0, 2.0, -1.0], positions=positions):
            made = model.generate(
                batch,
                max_new_tokens=N_NEW,
                do_sample=False,
                stop_at_eos=False,
                use_past_kv_cache=use_cache,
                prepend_bos=False,
                verbose=False,
            )
    finally:
        model.tokenizer.padding_side = side
    for row, (ids, strength) in enumerate(zip(sequences, [0.0, 2.0, -1.0], strict=True)):
        expected = slow_decode(model, ids, N_NEW, [(circuit, strength, positions)])
        assert made[row, batch.shape[1] :].tolist() == expected


@pytest.mark.parametrize("positions", POSITIONS)
def test_logits_are_the_same_with_and_without_a_cache(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor, positions: Any
) -> None:
    length = 5
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(tokens))
    cached, recomputed = [], []
    with cl.steer(model, circuit, 0.0, positions=positions), torch.no_grad():
        for start, stop in ((0, length), (5, 6), (6, 7), (7, 9)):  # the last pass adds two
            cached.append(model(tokens[:, start:stop], past_kv_cache=cache))
        for stop in (5, 6, 7, 9):
            recomputed.append(model(tokens[:, :stop])[:, -1])
    for row, ids in enumerate(tokens.tolist()):
        expected = scaled_logits(model, ids, length, [(circuit, 0.0, positions)])
        ours = torch.cat([part[row] for part in cached])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        ours = torch.stack([part[row] for part in recomputed])
        torch.testing.assert_close(ours, expected[[4, 5, 6, 8]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["prompt", "generated", "last"])
def test_a_prompt_that_begins_with_the_token_last_decoded_is_a_new_prompt(
    qwen: HookedTransformer, positions: Any
) -> None:
    circuit = random_circuit(qwen, 30)
    first, second = [8, 9, 10], [25, 26, 27, 28, 29, 30]
    with cl.steer(qwen, circuit, 0.0, positions=positions), torch.no_grad():
        cache = TransformerLensKeyValueCache.init_cache(qwen.cfg, "cpu", 1)
        qwen(torch.tensor([first]), past_kv_cache=cache)
        qwen(torch.tensor([second[:1]]), past_kv_cache=cache)  # decoded with the cache: 25
        made = qwen(torch.tensor([second]))[0]
    expected = scaled_logits(qwen, second, len(second), [(circuit, 0.0, positions)])
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["prompt", "generated", "last"])
def test_the_prompt_length_can_be_given(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor, positions: Any
) -> None:
    with cl.steer(model, circuit, 0.0, positions=positions, prompt_length=4):
        steered = logits_of(model, tokens)
    for row, ids in enumerate(tokens.tolist()):
        expected = scaled_logits(model, ids, 4, [(circuit, 0.0, positions)])
        torch.testing.assert_close(steered[row], expected, rtol=1e-4, atol=1e-4)


# --- inside TransformerLens --------------------------------------------------------------------


def test_run_with_cache_sees_the_scaled_neurons(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor
) -> None:
    with torch.no_grad():
        _, plain = model.run_with_cache(tokens)
        with cl.steer(model, circuit, 3.0):
            _, steered = model.run_with_cache(tokens)
    first = min(circuit.by_layer())  # nothing before this layer has changed
    neurons = list(circuit.by_layer()[first])
    name = f"blocks.{first}.mlp.hook_post"
    expected = plain[name].clone()
    expected[:, :, neurons] *= 3.0
    torch.testing.assert_close(steered[name], expected)


def test_hooks_run_inside_a_block_leave_the_steering_on(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor
) -> None:
    seen = []
    with cl.steer(model, circuit, 0.0):
        steered = logits_of(model, tokens)
        with torch.no_grad():
            hook = ("blocks.1.hook_resid_post", lambda x, hook: seen.append(x))
            assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[hook]), steered)
            model.run_with_cache(tokens)
        model.generate(tokens, max_new_tokens=1, verbose=False)
        assert torch.equal(logits_of(model, tokens), steered)
    assert len(seen) == 1


def test_measuring_a_steered_model_reads_the_scaled_neurons(llama: HookedTransformer) -> None:
    circuit = random_circuit(llama, 12)
    with cl.steer(llama, circuit, 0.0):
        found = cl.contrast(llama, cl.ContrastSet(["a"], ["b"]), universal_prompts=None)
    assert all(found.delta[pair] == 0 for pair in circuit)


# --- nothing is left ---------------------------------------------------------------------------


@contextmanager
def through_hooks(model: HookedTransformer, circuit: cl.Circuit) -> Iterator[None]:
    with cl.steer(model, circuit, 0.3, positions="prompt"):
        yield


@contextmanager
def through_weights(model: HookedTransformer, circuit: cl.Circuit) -> Iterator[None]:
    with cl.fold(model, circuit, 0.3):
        yield


WAYS = pytest.mark.parametrize("way", [through_hooks, through_weights])


@WAYS
@pytest.mark.parametrize("ending", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_leaves_nothing_however_it_ends(
    model: HookedTransformer,
    circuit: cl.Circuit,
    tokens: torch.Tensor,
    way: Any,
    ending: type[BaseException] | None,
) -> None:
    with left_as_it_was(model):
        if ending is None:
            with way(model, circuit):
                logits_of(model, tokens)
        else:
            with pytest.raises(ending), way(model, circuit), way(model, circuit):
                logits_of(model, tokens)
                raise ending


@WAYS
def test_an_interruption_inside_transformer_lens_leaves_nothing(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor, way: Any
) -> None:
    def interrupt(activation: torch.Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    stop = [("blocks.1.hook_resid_pre", interrupt)]

    def with_a_hook_around(run: Any) -> None:
        with model.hooks(fwd_hooks=stop):
            run()

    runs = [
        lambda: model.run_with_hooks(tokens, fwd_hooks=stop),
        lambda: with_a_hook_around(lambda: model.run_with_cache(tokens)),
        lambda: with_a_hook_around(lambda: model.generate(tokens, verbose=False)),
        lambda: with_a_hook_around(lambda: cl.generate(model, ["a"], [(circuit, 0.0)])),
    ]
    for run in runs:
        with left_as_it_was(model), pytest.raises(KeyboardInterrupt), way(model, circuit):
            run()


@WAYS
def test_hooks_of_others_stay(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor, way: Any
) -> None:
    seen: list[str] = []
    try:
        for name, permanent in (("hook_embed", False), ("blocks.0.mlp.hook_post", True)):
            model.add_hook(
                name,
                lambda x, hook, name=name: seen.append(name),
                is_permanent=permanent,
            )
        with left_as_it_was(model), way(model, circuit):
            logits_of(model, tokens)
        logits_of(model, tokens)
        assert seen == ["hook_embed", "blocks.0.mlp.hook_post"] * 2
    finally:
        model.reset_hooks(including_permanent=True)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_an_activation_that_was_kept_is_not_changed(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor, positions: Any
) -> None:
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.cfg.n_layers)]
    first = names[min(circuit.by_layer())]
    with torch.no_grad():
        _, plain = model.run_with_cache(tokens, names_filter=names)
    kept: dict[str, torch.Tensor] = {}

    def keep(activation: torch.Tensor, hook: Any) -> None:
        kept[hook.name] = activation  # no clone

    with (
        model.hooks(fwd_hooks=[(name, keep) for name in names]),
        cl.steer(model, circuit, 0.0, positions=positions),
    ):
        logits_of(model, tokens)
    assert torch.equal(kept[first], plain[first])


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["all", "last"])
def test_gradients_flow_through_a_steered_model(
    llama: HookedTransformer, tokens: torch.Tensor, positions: Any
) -> None:
    circuit = random_circuit(llama, 20)
    grads = []
    embed = llama.embed(tokens).detach().requires_grad_()
    for context in (
        cl.steer(llama, circuit, 0.5, positions=positions),
        cl.fold(llama, circuit, 0.5),
    ):
        with context:
            loss = llama(embed, start_at_layer=0)[:, -1].logsumexp(-1).sum()
            grads += torch.autograd.grad(loss, embed)
    assert grads[0].isfinite().all() and grads[0].abs().sum() > 0
    if positions == "all":
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


def test_the_strength_itself_has_a_gradient(llama: HookedTransformer, tokens: torch.Tensor) -> None:
    circuit = random_circuit(llama, 20)

    def loss(strengths: torch.Tensor) -> torch.Tensor:
        with cl.steer(llama, circuit, strengths):
            return llama(tokens)[:, -1].logsumexp(-1).sum()

    strengths = torch.full((len(tokens),), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(strengths), strengths)
    step = 1e-2
    for row in range(len(tokens)):
        nudge = torch.zeros(len(tokens))
        nudge[row] = step
        with torch.no_grad():
            base = torch.full((len(tokens),), 0.5)
            slope = (loss(base + nudge) - loss(base - nudge)) / (2 * step)
        assert float(gradient[row]) == pytest.approx(float(slope), rel=0.05, abs=1e-3)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.usefixtures("as_called_by_users")
@pytest.mark.parametrize(
    "wrong",
    [
        float("nan"),
        float("inf"),
        [1.0, float("nan")],
        [],
        torch.zeros(0),
        torch.ones(2, 2),
        [[1.0], [0.0]],
        "strong",
        None,
        ["a"],
    ],
    ids=str,
)
def test_strengths_that_are_no_numbers_are_refused(llama: HookedTransformer, wrong: Any) -> None:
    circuit = random_circuit(llama, 3)
    with pytest.raises(InvalidInput, match="strength"), cl.steer(llama, circuit, wrong):
        pass
    with left_as_it_was(llama), pytest.raises(InvalidInput):
        cl.generate(llama, ["a"], [(circuit, wrong)], max_new_tokens=1)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_fold_that_would_ruin_the_weights_is_refused(
    llama: HookedTransformer, wrong: float
) -> None:
    circuit = random_circuit(llama, 3)
    with left_as_it_was(llama), pytest.raises(InvalidInput), cl.fold(llama, circuit, wrong):
        pass


def test_strengths_must_match_the_batch(
    model: HookedTransformer, circuit: cl.Circuit, tokens: torch.Tensor
) -> None:
    with (
        left_as_it_was(model),
        cl.steer(model, circuit, [0.0, 1.0, 2.0]),
        pytest.raises(InvalidInput, match="3 strengths do not fit a batch of 4"),
    ):
        logits_of(model, tokens)


@pytest.mark.usefixtures("as_called_by_users")
def test_unknown_positions_and_things_that_are_no_intervention_are_refused(
    llama: HookedTransformer,
) -> None:
    circuit = random_circuit(llama, 3)
    with pytest.raises(InvalidInput, match="positions must be one of all, prompt"):
        ScaleNeurons(circuit, "everywhere")
    with pytest.raises(InvalidInput), cl.steer(llama, circuit, positions="everywhere"):
        pass
    with pytest.raises(InvalidInput, match="neither a Circuit nor"), cl.steer(llama, [(0, 1)]):
        pass
    # An intervention has its own positions; others, asked for here, would be dropped in silence.
    scaling = ScaleNeurons(circuit)
    with pytest.raises(InvalidInput, match="own"), cl.steer(llama, scaling, positions="last"):
        pass


def test_scaling_is_an_intervention(model: HookedTransformer, circuit: cl.Circuit) -> None:
    intervention = ScaleNeurons(circuit, "last")
    assert isinstance(intervention, Intervention)
    assert intervention.neutral == 1.0
    assert str(len(circuit)) in intervention.name


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5))
def test_strengths_are_a_row_of_numbers(values: list[float]) -> None:
    assert as_strengths(values, "cpu").tolist() == values
    assert as_strengths(values[0], "cpu").tolist() == values[:1]
