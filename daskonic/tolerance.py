"""How far scores may be apart and still be the same: one meaning, wherever scores are compared.

The difference of two numbers counts absolutely up to 1 and relative to the expected one above: a probability and an
energy in GeV can have the same tolerance. NaN equals NaN and nothing else, an infinity only itself, and outputs of
different shapes are infinitely far apart.

The same network gives other last digits in another batch, padded to another length, on other hardware: float32 sums are
made in another order. With ONNX Runtime on one CPU the networks of ``examples/models`` stay within 1e-6 of themselves, whatever
the batch, but for those where rounding decides something (which of two particles is the nearer): 1e-4.
Hardware that multiplies in fewer bits (TF32, FP16) is farther away, by 1e-3 and more, and needs a tolerance of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from daskonic.tensors import Array

__all__ = ["TOLERANCE", "apart"]

TOLERANCE = 1e-5
"""Of one network in float32 on one kind of hardware."""


def apart(expected: Mapping[str, Array], scores: Mapping[str, Array]) -> float:
    """The largest difference, absolute up to 1 and relative above.

    Parameters
    ----------
    expected : mapping of str to array
    scores : mapping of str to array
        Has the same outputs, and may have more.

    Returns
    -------
    float
        Infinite where an output is missing or has another shape, or only one of two numbers is finite.
    """
    return max((_apart(values, scores.get(name)) for name, values in expected.items()), default=0.0)


def _apart(expected: Array, scores: Array | None) -> float:
    """Of one output."""
    if scores is None or scores.shape != expected.shape:
        return float("inf")
    a, b = expected.astype(np.float64), scores.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(a - b) / np.maximum(1.0, np.abs(a))
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    return float(np.where(alike, 0.0, np.where(np.isnan(difference), np.inf, difference)).max(initial=0.0))
