"""Boosted trees that find the jets of a top-quark pair: at least 12 permutations of jets in an event, best first.

The task, its 20 variables and the rule that even events are scored by the trees that saw odd ones are those of the
Analysis Grand Challenge [1]_. There the trees are XGBoost's, here scikit-learn's, trained on toy variables in a
second; both become the same ONNX operator.

References
----------
.. [1] https://agc.readthedocs.io, ttbar analysis, machine-learning component.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import onnx
from numpy.random import Generator

import daskonic as dk
from models.served import Served

VARIABLES = 20


def network() -> onnx.ModelProto:
    """20 variables to the chances of a wrong and a right permutation."""
    import skl2onnx
    from sklearn.ensemble import GradientBoostingClassifier

    rng = np.random.default_rng(14)
    x = rng.normal(size=(2000, VARIABLES)).astype(np.float32)
    right = x[:, :3].sum(axis=1) + x[:, 3] * x[:, 4] > rng.normal(0, 0.5, len(x))
    trees = GradientBoostingClassifier(n_estimators=50, max_depth=3, random_state=0).fit(x, right)
    types = [("variables", skl2onnx.common.data_types.FloatTensorType([None, VARIABLES]))]
    return skl2onnx.to_onnx(
        trees, initial_types=types, options={"zipmap": False}, target_opset={"": 17, "ai.onnx.ml": 3}
    )


def sample(rng: Generator, n_events: int) -> ak.Array:
    """Variables of permutations, 12 in an event of four jets, 30 of five, 60 of six: ``n_events * var * 20``."""
    counts = rng.choice([12, 30, 60], n_events, p=[0.5, 0.3, 0.2])
    values = rng.normal(size=(counts.sum(), VARIABLES)).astype(np.float32)
    return ak.unflatten(ak.from_numpy(values, regulararray=True), counts)


def best(scores: Any) -> Any:
    """Number of the best permutation of each event."""
    return ak.argmax(scores[..., 1], axis=1)


RECONSTRUCTION_BDT = Served(
    name="reconstruction_bdt",
    network=network,
    features=dk.Features.plain(),
    sample=sample,
    row="permutation",
    batch=10_000,
    outputs=["probabilities"],
    source="agc.readthedocs.io",
)
