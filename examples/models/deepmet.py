"""DeepMET: missing transverse momentum as a weighted sum over all candidates of an event.

4,500 candidates of eight continuous and three categorical variables, as CMS serves it [1]_; the layers are those
of its training code: embeddings of eight, dense 64, 32, 16, and for each candidate a weight and two offsets [2]_.

References
----------
.. [1] CMS Collaboration, Portable acceleration of CMS computing workflows with coprocessors as a service,
   arXiv:2402.15366.
.. [2] CMS Collaboration, CMS-DP-2021/015; https://github.com/DeepMETv2/DeepMETv1.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import onnx
from numpy.random import Generator

import daskonic as dk
from models.events import nest
from models.network import Network, number, op
from models.served import Served

CANDIDATES = 4500
PDG_IDS = (-211, -13, -11, 0, 1, 2, 11, 13, 22, 130, 211)
CATEGORIES = {"pdg_id": len(PDG_IDS), "charge": 3, "from_pv": 4}


def network() -> onnx.ModelProto:
    """Candidates of an event to two components of momentum."""
    net = Network(seed=8)
    continuous = net.input("input", ["batch", CANDIDATES, 8])
    columns = [continuous]
    for i, entries in enumerate(CATEGORIES.values()):
        category = net.input(f"input_cat{i}", ["batch", CANDIDATES, 1], np.int32)
        columns.append(net.embedding(op.squeeze(category, op.const([2])), entries, 8))
    x = op.transpose(op.concat(columns, axis=2), perm=[0, 2, 1])
    for width in (64, 32, 16):
        x = net.activate(net.batch_norm(net.convolution(x, width, 1)), "tanh")  # dense, for each candidate
    weight, offsets = op.split(net.convolution(x, 3, 1), op.const([1, 2]), axis=1)
    pt, momentum, _ = op.split(op.transpose(continuous, perm=[0, 2, 1]), op.const([1, 2, 5]), axis=1)
    real = op.cast(op.greater(pt, number(0)), to=np.float32)  # padding has no momentum
    of_each = op.mul(op.add(op.mul(weight, momentum), offsets), real)
    net.output("output/BiasAdd", op.neg(op.reduce_sum(of_each, op.const([2]), keepdims=0)))
    return net.model()


def inputs(candidates: Any) -> dict[str, Any]:
    """The columns of the training, momenta in units of 50 GeV."""
    c = candidates
    continuous = [
        c.pt / 50, c.pt * np.cos(c.phi) / 50, c.pt * np.sin(c.phi) / 50, c.eta, c.d0, c.dz, c.mass, c.puppi_weight,
    ]  # fmt: skip
    return {
        "input": continuous,
        "input_cat0": [c.pdg_id],
        "input_cat1": [c.charge + 1],
        "input_cat2": [c.from_pv],
    }


def sample(rng: Generator, n_events: int) -> ak.Array:
    """Events of 2,000 candidates or so: ``n_events * var * candidate``; their ``pdg_id`` counts in a table."""
    n = 3000 * n_events
    fields = {
        "pt": rng.exponential(1.5, n) + 0.3,
        "phi": rng.uniform(-np.pi, np.pi, n),
        "eta": rng.normal(0, 2, n),
        "d0": rng.normal(0, 0.1, n),
        "dz": rng.normal(0, 0.5, n),
        "mass": rng.choice([0.0, 0.139], n),
        "puppi_weight": rng.uniform(0, 1, n),
        "pdg_id": rng.integers(0, len(PDG_IDS), n),
        "charge": rng.integers(-1, 2, n),
        "from_pv": rng.integers(0, 4, n),
    }
    return nest(rng, fields, 2000, n_events, CANDIDATES)


DEEPMET = Served(
    name="deepmet",
    network=network,
    features=dk.Features(
        inputs,
        pad={n: dk.Pad(CANDIDATES, channels="last") for n in ("input", *(f"input_cat{i}" for i in range(3)))},
    ),
    sample=sample,
    row="event",
    batch=100,
    source="CMS-DP-2021/015, arXiv:2402.15366",
)
