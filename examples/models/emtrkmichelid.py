"""EmTrkMichelId of ProtoDUNE: whether a hit is of a track or a shower, and whether of a Michel electron.

The layer table of the first LArTPC study of inference as a service, to the last parameter [1]_. A patch is 48
wires by 48 samples of one wire plane around a hit, 55,000 of them in an event; LArSoft sends 235 or 1,693 at once.

References
----------
.. [1] M. Wang et al., GPU-accelerated machine learning inference as a service for computing in neutrino
   experiments, arXiv:2009.04509.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import onnx
from numpy.random import Generator

import daskonic as dk
from daskonic.features import hit_patches
from models.network import Network, op
from models.served import Served

WIRES, SAMPLES = 480, 600


def network() -> onnx.ModelProto:
    """48 x 48 x 1 to three classes and one."""
    net = Network(seed=1)
    patch = net.input("main_input", ["batch", 48, 48, 1])
    x = op.transpose(patch, perm=[0, 3, 1, 2])
    x = net.convolution(x, 48, 5, "relu")  # 48 x 44 x 44
    x = op.flatten(x)  # 92,928
    x = net.dense(x, 128, "relu")
    x = net.dense(x, 32, "relu")
    net.output("em_trk_none_netout/Softmax", net.dense(x, 3, "softmax"))
    net.output("michel_netout/Sigmoid", net.dense(x, 1, "sigmoid"))
    return net.model()


def inputs(hits: Any) -> dict[str, Any]:
    """Around each hit, the charge of all hits of its plane."""
    patches = hit_patches(hits.wire, hits.time, hits.charge, shape=(WIRES, SAMPLES), size=48)
    return {"main_input": patches[..., np.newaxis]}


def sample(rng: Generator, n_planes: int) -> ak.Array:
    """Planes with straight tracks: ``n_planes * var * hit``."""
    counts = rng.integers(20, 60, n_planes)
    charge = ak.unflatten(rng.gamma(2.0, 0.5, counts.sum()).astype(np.float32), counts)
    step, slope = ak.local_index(charge), rng.normal(0, 2, n_planes)
    first_wire, first_time = rng.integers(0, WIRES, n_planes), rng.integers(0, SAMPLES, n_planes)
    wire = (first_wire + step) % WIRES
    time = (first_time + ak.values_astype(slope * step, np.int64)) % SAMPLES
    return ak.zip({"wire": wire, "time": time, "charge": charge})


EMTRKMICHELID = Served(
    name="emtrkmichelid",
    network=network,
    features=dk.Features(inputs),
    sample=sample,
    row="hit",
    batch=1693,
    parameters=11_900_420,
    source="arXiv:2009.04509",
)
