"""Intervals for rates and means: thin, over SciPy.

A rate comes with its Wilson interval (Wilson 1927), which behaves at 0 and 1; a mean over prompts
with a percentile bootstrap over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cna_lens.errors import InvalidInput


class Interval(NamedTuple):
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The Wilson score interval of a rate.

    Raises:
        InvalidInput: no trials, or not 0 <= successes <= n.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise InvalidInput(f"a rate needs 0 <= successes <= n and n >= 1: {successes} of {n}")
    bounds = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high))


def bootstrap_mean(
    values: Sequence[float], confidence: float = 0.95, *, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean and its percentile bootstrap interval over the values (prompts).

    Raises:
        InvalidInput: there are no values, or one is not finite.
    """
    sample = np.asarray(values, dtype=float)
    if not len(sample) or not np.isfinite(sample).all():
        raise InvalidInput(f"a mean needs finite values; there are {len(sample)}")
    mean = float(sample.mean())
    if (sample == sample[0]).all():  # nothing to resample, and SciPy would warn
        return Interval(mean, mean, mean)
    from scipy.stats import bootstrap

    bounds = bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        n_resamples=n_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(bounds.low), float(bounds.high))
