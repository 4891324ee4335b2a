"""Scores are compared in one way everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskonic.tolerance import apart

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("expected", "score", "difference"),
    [
        (0.25, 0.75, 0.5),
        (-0.5, 0.5, 1.0),
        (200.0, 201.0, 0.005),
        (0.0, 4.0, 4.0),
        (NAN, NAN, 0.0),
        (INF, INF, 0.0),
        (NAN, 1.0, INF),
        (1.0, NAN, INF),
        (INF, -INF, INF),
        (1.0, INF, INF),
    ],
)
def test_difference_of_two_numbers(expected, score, difference):
    """Absolute up to 1, relative above; what is no number equals only itself."""
    for dtype in ("f4", "f8"):
        a, b = (np.array([0.0, x], dtype) for x in (expected, score))
        assert apart({"Y": a}, {"Y": b}) == difference


def test_the_largest_of_all_outputs():
    """Every output counts; one that is missing or has another shape is infinitely far away, one more does not matter."""
    a = {"Y": np.zeros(3), "Z": np.zeros((2, 2), int)}
    assert apart(a, {"Y": np.full(3, 0.1), "Z": np.array([[0, 0], [0, 3]])}) == 3
    assert apart(a, a | {"V": np.ones(1)}) == 0
    assert apart(a, {"Y": np.zeros(3)}) == INF
    assert apart(a, {"Y": np.zeros(3), "Z": np.zeros((4, 1))}) == INF
    assert apart({}, a) == apart({"Y": np.zeros(0)}, {"Y": np.zeros(0)}) == 0


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_difference_within_the_tolerance(a, b):
    """The same as what numpy.isclose calls equal, to a factor of two: it adds the two tolerances, here the larger counts."""
    difference = apart({"Y": np.array([a])}, {"Y": np.array([b])})
    assert np.isclose(b, a, rtol=difference, atol=difference)
    assert not np.isclose(b, a, rtol=difference / 2.001, atol=difference / 2.001) or a == b
