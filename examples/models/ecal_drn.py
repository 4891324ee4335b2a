"""Graph network for photon energies in the CMS ECAL, with the eight inputs of CMS's dynamic reduction network.

Input net, edge convolutions, pooling over each photon and output net as in the dynamic reduction network [1]_,
with the inputs and outputs that CMS serves [2]_. Its clustering of the graph between the convolutions has no
counterpart in ONNX and is left out, and neighbours are looked for in space, not among the features.

References
----------
.. [1] L. Gray, T. Klijnsma, S. Ghosh, A dynamic reduction network for point clouds, arXiv:2003.08013.
.. [2] CMS's configuration of ``photonObjectCombined``.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import onnx
from numpy.random import Generator
from spox import Var

import daskonic as dk
from models.events import nest
from models.network import Network, number, op
from models.served import Served

HIDDEN, NEIGHBOURS = 64, 16
FAR = 1.0e9
"""Squared distance of hits of different photons."""


def network() -> onnx.ModelProto:
    """Hits of two detectors, and two numbers of each photon, to energy, resolution and more."""
    net = Network(seed=12)
    ecal = net.input("xECAL__0", ["hits", 5])
    flag = net.input("fECAL__1", ["hits"], np.int64)
    gain = net.input("gain__2", ["hits"], np.int64)
    preshower = net.input("xES__3", ["es_hits", 4])
    plane = net.input("fES__4", ["es_hits"], np.int64)
    photon = net.input("graph_x__5", ["photons", 2])
    of_hit = net.input("xECAL_batch__6", ["hits"], np.int64)
    of_es_hit = net.input("xES_batch__7", ["es_hits"], np.int64)
    x = op.concat([ecal, net.embedding(flag, 4, 4), net.embedding(gain, 4, 4)], axis=1)
    y = op.concat([preshower, net.embedding(plane, 3, 4)], axis=1)
    x, y = reduction(net, ecal, x, of_hit, photon), reduction(net, preshower, y, of_es_hit, photon)
    x = op.concat([x, y, photon], axis=1)
    x = net.dense(net.dense(x, HIDDEN, "elu"), HIDDEN // 2, "elu")
    net.output("combined_output__0", net.dense(x, 11))
    return net.model()


def reduction(net: Network, hits: Var, x: Var, of: Var, photon: Var) -> Var:
    """64 numbers of each photon: the largest among its hits, after two rounds of messages."""
    for width in (HIDDEN // 2, HIDDEN, HIDDEN):
        x = net.dense(x, width, "elu")
    near, weight = nearest(op.slice(hits, op.const([0]), op.const([3]), op.const([1])), of)
    for _ in range(2):
        x = edge_convolution(net, x, near, weight)
    lowest = np.full((1, HIDDEN), -1, np.float32)  # the lower bound of ELU, for photons without hits
    start = op.expand(op.const(lowest), op.concat([op.shape(photon, end=1), op.const([1])], axis=0))
    return op.scatter_nd(start, op.unsqueeze(of, op.const([1])), x, reduction="max")


def nearest(positions: Var, of: Var) -> tuple[Var, Var]:
    """The nearest hits of each hit, and 0 for those of another photon, or 1."""
    apart = op.sub(op.unsqueeze(positions, op.const([1])), op.unsqueeze(positions, op.const([0])))
    same = op.equal(op.unsqueeze(of, op.const([1])), op.unsqueeze(of, op.const([0])))
    distance = op.reduce_sum(op.mul(apart, apart), op.const([2]), keepdims=0)
    distance = op.where(same, distance, number(FAR))
    k = op.min([op.const([NEIGHBOURS + 1]), op.shape(of)])
    found, index = op.top_k(distance, k, largest=0)
    inside = op.cast(op.less(found, number(FAR)), to=np.float32)
    return index, op.unsqueeze(inside, op.const([2]))


def edge_convolution(net: Network, x: Var, near: Var, weight: Var) -> Var:
    """Messages of the neighbours, averaged; the first layer is that of both features side by side."""
    own, sent = op.unsqueeze(x, op.const([1])), op.gather(x, near)
    message = op.elu(op.add(net.dense(own, 96), net.dense(op.sub(sent, own), 96, bias=False)))
    message = op.mul(net.dense(message, HIDDEN, "elu"), weight)
    return op.div(*(op.reduce_sum(part, op.const([1]), keepdims=0) for part in (message, weight)))


def inputs(photons: Any) -> dict[str, Any]:
    """Position and energy of the hits; the batch inputs are daskonic's."""
    ecal, preshower = photons.ecal, photons.preshower
    return {
        "xECAL__0": [ecal.x, ecal.y, ecal.z, ecal.energy, ecal.noise],
        "fECAL__1": ecal.flag,
        "gain__2": ecal.gain,
        "xES__3": [preshower.x, preshower.y, preshower.z, preshower.energy],
        "fES__4": preshower.plane,
        "graph_x__5": [photons.rho, photons.h_over_e],
    }


GRAPH = dk.Graph(
    hits=["xECAL__0", "fECAL__1", "gain__2"],
    es_hits=["xES__3", "fES__4"],
    graphs=["graph_x__5", "combined_output__0"],
    batch={"xECAL_batch__6": "hits", "xES_batch__7": "es_hits"},
    max_nodes=2000,  # the distances of all pairs are in memory
)


def sample(rng: Generator, n_events: int) -> ak.Array:
    """Events with photons, half of them without a hit in the preshower: ``n_events * var * photon``."""
    counts = rng.integers(0, 4, n_events)
    n = int(counts.sum())
    many = 200 * max(n, 1)
    fields = {axis: rng.normal(0, 0.5, many).astype("f4") for axis in "xyz"}
    fields |= {"energy": rng.exponential(1.0, many), "noise": rng.uniform(0, 0.1, many)}
    fields |= {
        "flag": rng.integers(0, 4, many),
        "gain": rng.integers(0, 4, many),
        "plane": rng.integers(0, 3, many),
    }
    photons = {
        "ecal": nest(rng, fields, 40, n),
        "preshower": nest(rng, fields, 1, n),
        "rho": ak.Array(rng.uniform(10, 40, n) / 40),
        "h_over_e": ak.Array(rng.exponential(0.05, n)),
    }
    return ak.unflatten(ak.zip(photons, depth_limit=1), counts)


ECAL_DRN = Served(
    name="ecal_drn",
    network=network,
    features=dk.Features(inputs, graph=GRAPH),
    sample=sample,
    row="photon",
    batch=50,
    batched=False,
    source="arXiv:2003.08013",
    tolerance=1e-4,
)
