"""The tests run under a checker of every annotation, shapes included; here is the proof of that."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

import cna_lens as cl
from cna_lens.activations import ActivationStatistics, pad_left

checked = pytest.mark.skipif(jaxtyping.config.jaxtyping_disable, reason="JAXTYPING_DISABLE is set")


@checked
def test_a_tensor_of_the_wrong_shape_or_kind_is_caught() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        ActivationStatistics.of(torch.zeros(2, 3))
    with pytest.raises(jaxtyping.TypeCheckError):
        ActivationStatistics.of(torch.zeros(2, 3, 4, dtype=torch.long))
    with pytest.raises(jaxtyping.TypeCheckError):
        cl.Contrast(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3) > 0, 1, 1)
    with pytest.raises(jaxtyping.TypeCheckError):
        pad_left([["a"]], "cpu")  # type: ignore[list-item]


@checked
def test_a_whole_number_passes_for_a_real_one() -> None:
    assert cl.Sampling(temperature=1).temperature == 1
