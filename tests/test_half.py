"""A model of FP16 gets FP16, at half the bytes, and gives it back."""

from __future__ import annotations

import numpy as np
import pytest

import daskonic as dk
from daskonic.errors import InputError


def test_values_are_cast_for_the_wire_and_come_back_as_they_were_rounded(triton):
    """Real Triton, FP16 in and out; features in float32 or float64."""
    model = dk.Model("half", servers=[triton.address])
    assert model.spec().inputs[0].dtype == np.float16
    for dtype in (np.float64, np.float32, np.float16):
        array = np.random.default_rng(0).normal(size=(100, 7)).astype(dtype)
        pending = model.submit(array)
        scores = pending.result()
        assert scores.dtype == np.float16
        np.testing.assert_array_equal(scores, array.astype(np.float16))
        assert pending.report.sent_nbytes == 100 * 7 * 2


def test_what_half_precision_cannot_hold_is_an_error(triton):
    with pytest.raises(InputError, match="not finite in float16"):
        dk.Model("half", servers=[triton.address])(np.array([[1.0, 70_000.0]], np.float32))
