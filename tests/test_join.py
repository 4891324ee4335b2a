"""Answers of batches go to the places of their rows, and answers that do not belong together are refused."""

from __future__ import annotations

import numpy as np
import pytest

from daskonic import errors
from daskonic.features import Features
from daskonic.join import Joined
from daskonic.tensors import ModelSpec, Response, TensorSpec

FLOAT = np.dtype("f4")
SPEC = ModelSpec("m", "", (TensorSpec("X", FLOAT, (2,)),), (TensorSpec("Y", FLOAT, (1,)),), 2)


@pytest.fixture
def parts():
    """Four rows, empty places for their scores, and two batches."""
    rows = Features.plain()(np.ones((4, 2), FLOAT), SPEC).flatten()
    return Joined(SPEC.outputs, rows), list(rows.split(2, 2**20))


def answer(version, value):
    return Response(version, {"Y": np.full((2, 1), value, FLOAT)})


def test_any_order(parts):
    """Each batch has its own place, whenever it comes."""
    scores, (first, second) = parts
    scores.join(second, answer("1", 2))
    scores.join(first, answer("", 1))
    np.testing.assert_array_equal(scores.arrays["Y"].ravel(), [1, 1, 2, 2])
    assert scores.version == "1"


def test_versions_are_not_mixed(parts):
    """Where a server tells its version only with an answer, two versions in one call are an error, not data."""
    scores, (first, second) = parts
    scores.join(first, answer("1", 1))
    with pytest.raises(errors.ResponseError, match="version 2 of the model answered after version 1"):
        scores.join(second, answer("2", 1))
