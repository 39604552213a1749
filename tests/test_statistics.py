"""Intervals against published values, against statsmodels, and against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cna_lens.errors import InvalidInput
from cna_lens.statistics import bootstrap_mean, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(
    successes: int, n: int, low: float, high: float
) -> None:
    found = wilson(successes, n)
    assert found.value == successes / n
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_is_what_statsmodels_gives(n: int, data: st.DataObject, confidence: float) -> None:
    proportion_confint = pytest.importorskip(
        "statsmodels.stats.proportion", exc_type=ImportError
    ).proportion_confint
    successes = data.draw(st.integers(0, n))
    found = wilson(successes, n, confidence)
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 300), st.data())
def test_wilson_holds_the_rate_and_stays_between_nought_and_one(
    n: int, data: st.DataObject
) -> None:
    successes = data.draw(st.integers(0, n))
    found = wilson(successes, n)
    assert 0 <= found.low <= found.value + 1e-12 <= found.high + 2e-12 <= 1 + 3e-12
    mirrored = wilson(n - successes, n)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high))
    wider = wilson(successes, n, 0.99)
    assert wider.low <= found.low + 1e-12 and found.high <= wider.high + 1e-12


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (1, -1)])
def test_a_rate_needs_trials(successes: int, n: int) -> None:
    with pytest.raises(InvalidInput):
        wilson(successes, n)


def test_the_bootstrap_gives_the_same_interval_every_time() -> None:
    values = np.random.default_rng(0).normal(size=40).tolist()
    first = bootstrap_mean(values)
    assert bootstrap_mean(values) == first
    assert bootstrap_mean(values, seed=1) != first
    assert first.low < first.value < first.high
    assert first.value == pytest.approx(np.mean(values))


def test_the_bootstrap_of_many_values_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    found = bootstrap_mean(values.tolist())
    half = 1.96 * values.std() / np.sqrt(len(values))  # the mean's standard error, both ways
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_the_bootstrap_interval_grows_with_confidence_and_shrinks_with_values() -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    narrow, wide = bootstrap_mean(values, 0.8), bootstrap_mean(values, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    few, many = bootstrap_mean(values), bootstrap_mean(values * 4)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("values", [[0.5], [1.0] * 30])
def test_values_that_are_all_equal_have_no_width(values: list[float]) -> None:
    assert bootstrap_mean(values) == (values[0], values[0], values[0])


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf"), 0.0]])
def test_a_mean_needs_finite_values(values: list[float]) -> None:
    with pytest.raises(InvalidInput):
        bootstrap_mean(values)
