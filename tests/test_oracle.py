"""The whole method on a model written by hand, whose every number is worked out on paper."""

from __future__ import annotations

from math import inf, sqrt

import pytest
import torch
from oracle import (
    DIVERSE,
    HELPER,
    NARROW,
    NEGATIVE,
    POSITIVE,
    REFUSERS,
    SURE_BIAS,
    UNIVERSAL,
    VOCABULARY,
    WIDE,
    where,
)
from transformer_lens import HookedTransformer

import cna_lens as cl
from cna_lens.activations import pad_left
from cna_lens.models import encode

CONTRAST_SET = cl.ContrastSet(POSITIVE, NEGATIVE, "evil")
# By |delta|: HELPER -5, then 4, 3 and 2 of the refusers (WIDE 1.5 and NARROW 1 come after).
PLANTED_IN_ORDER = where(HELPER, *REFUSERS)
REFUSE, SURE = VOCABULARY.index("refuse"), VOCABULARY.index("sure")


@pytest.fixture(scope="module")
def found(oracle: HookedTransformer) -> cl.Contrast:
    return cl.contrast(oracle, CONTRAST_SET, universal_prompts=DIVERSE, universal_top=0.05)


@pytest.fixture(scope="module")
def refusers(found: cl.Contrast) -> cl.Circuit:
    return found.select(k=3, sign="positive")


def last_logits(model: HookedTransformer, prompts: tuple[str, ...]) -> torch.Tensor:
    tokens, mask = pad_left(encode(model, list(prompts)), "cpu")
    with torch.no_grad():
        return model(tokens, attention_mask=mask)[:, -1]


def answers(model: HookedTransformer, prompts: tuple[str, ...], *steering: object) -> list[str]:
    responses = cl.generate(model, list(prompts), list(steering), max_new_tokens=4)
    assert all(response.finished for response in responses)
    return [response.text for response in responses]


def test_the_oracle_refuses_evil_and_nothing_else(oracle: HookedTransformer) -> None:
    assert answers(oracle, POSITIVE) == ["refuse"] * 4
    assert answers(oracle, (*NEGATIVE, *DIVERSE)) == ["sure"] * 9


def test_discovery_finds_exactly_the_planted_neurons(oracle: HookedTransformer) -> None:
    circuit = cl.discover(
        oracle, CONTRAST_SET, k=4, universal_prompts=DIVERSE, universal_top=0.05, progress=False
    )
    assert list(circuit) == PLANTED_IN_ORDER
    assert circuit.delta == (-5.0, 4.0, 3.0, 2.0)
    # (0, 3) fires 5, 3, 5, 3 on the positive side: squares about 4 sum to 4, over 4 + 4 - 2.
    assert circuit.pooled_std == pytest.approx((0.0, sqrt(4 / 6), 0.0, 0.0))


def test_neurons_that_do_not_differ_have_a_delta_of_zero(found: cl.Contrast) -> None:
    moved = where(HELPER, *REFUSERS, UNIVERSAL[1], WIDE, NARROW)
    table = found.table().set_index(["layer", "neuron"])
    assert set(table.index[table["delta"] != 0]) == set(moved)


def test_the_filter_drops_exactly_the_universal_neurons(found: cl.Contrast) -> None:
    table = found.table()
    dropped = table[table["universal"]]
    assert list(zip(dropped["layer"], dropped["neuron"], strict=True)) == where(*UNIVERSAL)
    assert found.provenance.settings["universal"]["dropped"] == 2


def test_without_the_filter_a_universal_neuron_comes_first(oracle: HookedTransformer) -> None:
    circuit = cl.discover(oracle, CONTRAST_SET, k=4, universal_prompts=None)
    # 80 with `evil`, 60 without: delta 20; the weakest planted neuron loses its place.
    assert list(circuit) == [*where(UNIVERSAL[1]), *PLANTED_IN_ORDER[:3]]
    assert circuit.delta[0] == 20.0


def test_a_neuron_in_the_top_of_four_in_five_prompts_is_universal(
    oracle: HookedTransformer,
) -> None:
    def dropped(*prompts: str, share: float = 0.8) -> list[list[int]]:
        options = {"universal_prompts": prompts, "universal_top": 0.05, "universal_share": share}
        return cl.contrast(oracle, CONTRAST_SET, **options).universal.nonzero().tolist()

    first, second = (list(pair) for pair in where(*UNIVERSAL))
    assert dropped(*DIVERSE) == [first, second]  # (0, 0) is in the top of 4 of 5: 80 %
    assert dropped(*DIVERSE, "please shout") == [second]  # 4 of 6
    assert dropped(*DIVERSE, share=0.81) == [second]


def test_a_neuron_that_does_not_fire_is_never_in_the_top(oracle: HookedTransformer) -> None:
    # The top 20 of 40, where fewer than 20 fire: those that fire for at least 4 of the 5 prompts
    # are these six. The noise neurons fire for 3 of 5 (by mood), all others for none or one.
    found = cl.contrast(oracle, CONTRAST_SET, universal_prompts=DIVERSE, universal_top=0.5)
    always = [*where(*UNIVERSAL, HELPER, WIDE, NARROW), (1, 19)]
    assert [tuple(pair) for pair in found.universal.nonzero().tolist()] == sorted(always)


def test_the_sign_selects_the_side(found: cl.Contrast) -> None:
    assert list(found.select(k=3, sign="positive")) == where(*REFUSERS)
    assert list(found.select(k=3, sign="negative")) == where(HELPER)  # there is only one
    both = found.select(k=4)
    assert list(both.signed("positive")) == where(*REFUSERS)
    assert list(both.signed("negative")) == where(HELPER)


def test_effect_size_ranks_by_spread_as_well(found: cl.Contrast) -> None:
    # No spread at all: (0, 5), (1, 7) and (1, 11) are infinitely many deviations apart. Then
    # (0, 3): 4 / sqrt(4 / 6) = 4.90. NARROW: mood moves it by 0.5 on all 8 prompts, so
    # 1 / sqrt(8 * 0.25 / 6) = 1.73. WIDE, moved by 8: 1.5 / sqrt(8 * 64 / 6) = 0.162.
    circuit = found.select(k=6, by="effect_size")
    assert list(circuit) == where(HELPER, *REFUSERS[1:], REFUSERS[0], NARROW, WIDE)
    effect = found.effect_size
    sizes = [abs(float(effect[pair])) for pair in circuit]
    spreads = (4 / sqrt(4 / 6), 1 / sqrt(8 * 0.5**2 / 6), 1.5 / sqrt(8 * 8**2 / 6))
    assert sizes == pytest.approx([inf, inf, inf, *spreads])
    assert list(found.select(k=6)) == where(HELPER, *REFUSERS, WIDE, NARROW)


def test_ablation_removes_the_behaviour(oracle: HookedTransformer, refusers: cl.Circuit) -> None:
    assert answers(oracle, POSITIVE, (refusers, 0.0)) == ["sure"] * 4
    with cl.fold(oracle, refusers, 0.0):
        assert answers(oracle, POSITIVE) == ["sure"] * 4
    assert answers(oracle, POSITIVE) == ["refuse"] * 4


def test_ablation_changes_nothing_else(oracle: HookedTransformer, refusers: cl.Circuit) -> None:
    others = (*NEGATIVE, *DIVERSE)
    before = last_logits(oracle, others), last_logits(oracle, POSITIVE)
    with cl.steer(oracle, refusers, 0.0):
        after = last_logits(oracle, others), last_logits(oracle, POSITIVE)
    assert torch.equal(after[0], before[0])
    assert answers(oracle, others, (refusers, 0.0)) == ["sure"] * 9
    # On the evil prompts the logit of `refuse` falls from 9 + mood to 0, and no other moves.
    assert before[1][:, REFUSE].tolist() == [10.0, 8.0, 10.0, 8.0]
    before[1][:, REFUSE] = 0.0
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("multiplier", [-1.0, 0.0, 0.5, 1.0, 2.0, 3.0])
def test_the_logit_moves_linearly_with_the_multiplier(
    oracle: HookedTransformer, refusers: cl.Circuit, multiplier: float
) -> None:
    with cl.steer(oracle, refusers, multiplier):
        logits = last_logits(oracle, POSITIVE)
    # (4 + mood) + 3 + 2, each times the multiplier; mood is +1, -1, +1, -1.
    assert logits[:, REFUSE].tolist() == [multiplier * x for x in (10.0, 8.0, 10.0, 8.0)]
    assert logits[:, SURE].tolist() == [SURE_BIAS] * 4


def test_each_planted_neuron_carries_its_share(oracle: HookedTransformer) -> None:
    # With `evil`, at mood +1: 5, 3 and 2 of the logit's 10.
    circuit = cl.discover(oracle, CONTRAST_SET, k=3, sign="positive", universal_prompts=DIVERSE)
    for row, share in enumerate((5.0, 3.0, 2.0)):
        one = cl.Circuit(
            2, 20, circuit.layers[row : row + 1], circuit.neurons[row : row + 1], (1.0,), (0.0,)
        )
        with cl.steer(oracle, one, 0.0):
            assert last_logits(oracle, POSITIVE)[0, REFUSE] == 10.0 - share


def test_the_helper_is_part_of_the_contrast_but_not_of_the_refusal(
    oracle: HookedTransformer, found: cl.Contrast
) -> None:
    helper = found.select(k=1, sign="negative")
    with cl.steer(oracle, helper, 0.0):
        # It fires 5 into `sure` on the prompts without `evil`: 4 + 5 becomes 4.
        assert last_logits(oracle, NEGATIVE)[:, SURE].tolist() == [4.0] * 4
        assert last_logits(oracle, POSITIVE)[:, SURE].tolist() == [4.0] * 4
    assert last_logits(oracle, NEGATIVE)[:, SURE].tolist() == [9.0] * 4


@pytest.mark.parametrize("multiplier", [0.0, 3.0])
def test_matched_random_neurons_do_nothing(
    oracle: HookedTransformer, found: cl.Contrast, multiplier: float
) -> None:
    prompts = (*POSITIVE, *NEGATIVE)
    before = last_logits(oracle, prompts)
    for control in cl.random_circuits(found.select(k=4), 10, seed=3):
        with cl.steer(oracle, control, multiplier):
            assert torch.equal(last_logits(oracle, prompts), before)


def test_a_sweep_shows_the_dose_and_the_control(
    oracle: HookedTransformer, found: cl.Contrast
) -> None:
    result = cl.sweep(
        oracle,
        found,
        {"evil": POSITIVE, "good": NEGATIVE},
        (0.0, 0.25, 1.0, 2.0),
        fractions=(0.1,),  # 4 of 40 neurons: the planted ones
        random_draws=2,
        max_new_tokens=4,
        scorers={"refused": lambda prompts, responses: [r == "refuse" for r in responses]},
    )
    assert len(result.table) == 8 * (1 + 2) * 4
    assert set(result.table["neurons"]) == {4}
    rates = result.summary().set_index(["group", "intervention", "draw", "multiplier"])
    # `refuse` at m * (9 + mood), 8 at least, stands against `sure` at 4: won from m = 0.5.
    expected = {0.0: 0.0, 0.25: 0.0, 1.0: 1.0, 2.0: 1.0}
    for multiplier, rate in expected.items():
        assert rates.loc[("evil", "circuit", -1, multiplier), "refusal_rate"] == rate
        assert rates.loc[("good", "circuit", -1, multiplier), "refusal_rate"] == 0.0
        for draw in (0, 1):
            assert rates.loc[("evil", "random", draw, multiplier), "refusal_rate"] == 1.0
            assert rates.loc[("good", "random", draw, multiplier), "refusal_rate"] == 0.0
    assert set(result.table["response"]) == {"refuse", "sure"}
    assert set(result.table["response_tokens"]) == {1}
    assert result.table["finished"].all()
