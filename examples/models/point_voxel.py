"""Sparse point-voxel network for clusters of calorimeter hits: what each hit is like, and where its shower is.

Hits are points with features, and at the same time fill cells of a grid, few of them. Convolutions over the
filled cells and dense layers on the points go side by side and are added, as in SPVCNN [1]_; CMS clusters HCAL hits
with such a network [2]_, of which no layer table is public: depth and widths are this script's.

References
----------
.. [1] H. Tang et al., Searching efficient 3D architectures with sparse point-voxel convolution,
   arXiv:2007.16100.
.. [2] Accelerating hadronic calorimetry with sparse point-voxel convolutional neural networks, Fast machine
   learning for science workshop, 2023.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
from numpy.random import Generator
from spox import Var

import daskonic as dk
from models.events import nest
from models.network import Network, channels, op
from models.served import Served

GRID = (64, 72, 7)
"""Cells in eta, phi and depth."""
PADDED = tuple(n + 2 for n in GRID)  # so that every cell has neighbours on all sides
STRIDES = np.array([PADDED[1] * PADDED[2], PADDED[2], 1])
AROUND = np.array(list(product((-1, 0, 1), repeat=3))) @ STRIDES


def network() -> onnx.ModelProto:
    """Four features, three coordinates and the event of each hit to a weight and a place of its shower."""
    net = Network(seed=13)
    x = net.input("features", ["hits", 4])
    cell = net.input("coordinates", ["hits", 3], np.int64)
    event = net.input("batch", ["hits"], np.int64)
    voxel, neighbours = voxels(cell, event)
    for width in (32, 64):
        v = sparse_convolution(net, mean(x, voxel, neighbours), neighbours, width)
        v = sparse_convolution(net, v, neighbours, width)
        x = op.add(net.batch_norm(net.dense(x, width), "relu"), op.gather(v, voxel))
    net.output("beta", net.dense(x, 1, "sigmoid"))
    net.output("place", net.dense(x, 3))
    return net.model()


def voxels(cell: Var, event: Var) -> tuple[Var, Var]:
    """The voxel of each hit, and the 27 voxels around each voxel, -1 for empty ones."""
    one = op.const([1])
    inside = op.reduce_sum(op.mul(op.add(cell, op.const(1)), op.const(STRIDES)), one, keepdims=0)
    n_cells = op.const(int(np.prod(PADDED)))
    filled, _, voxel, _ = op.unique(op.add(op.mul(event, n_cells), inside), sorted=1)
    n_events = op.add(op.reduce_max(event, keepdims=1), op.const(1))
    table = op.expand(op.const(-1), op.mul(n_events, n_cells))
    number = op.range(op.const(0), op.squeeze(op.shape(filled)), op.const(1))
    table = op.scatter_elements(table, filled, number)
    return voxel, op.gather(table, op.add(op.unsqueeze(filled, one), op.const(AROUND)))


def mean(x: Var, voxel: Var, neighbours: Var) -> Var:
    """Mean features of the hits in each voxel."""
    index = op.unsqueeze(voxel, op.const([1]))
    shape = op.concat([op.shape(neighbours, end=1), op.const([1])], axis=0)
    ones = op.cast(op.greater_or_equal(index, op.const(0)), to=np.float32)
    sums = []
    for values in (x, ones):
        zeros = op.const(np.zeros((1, channels(values, 1)), np.float32))
        sums.append(op.scatter_nd(op.expand(zeros, shape), index, values, reduction="add"))
    return op.div(*sums)


def sparse_convolution(net: Network, x: Var, neighbours: Var, width: int) -> Var:
    """A 3 x 3 x 3 convolution over the filled voxels: an empty one is a last row of zeros, which -1 finds."""
    n = channels(x, 1)
    rows = op.pad(x, op.const([0, 0, 1, 0]))
    x = op.reshape(op.gather(rows, neighbours), op.const([-1, 27 * n]))
    return net.batch_norm(net.dense(x, width, bias=False), "relu")


def inputs(events: Any) -> dict[str, Any]:
    """Energy, time and position in units of the cells."""
    return {
        "features": [np.log1p(events.energy), events.time, events.ieta / GRID[0], events.depth / GRID[2]],
        "coordinates": [events.ieta, events.iphi, events.depth],
    }


def sample(rng: Generator, n_events: int) -> Any:
    """Events with hits in a few hundred cells: ``n_events * var * hit``."""
    n = 1000 * n_events
    fields = {
        "ieta": np.clip(rng.normal(32, 6, n), 0, 63).astype(np.int64),
        "iphi": np.clip(rng.normal(36, 6, n), 0, 71).astype(np.int64),
        "depth": rng.integers(0, GRID[2], n),
        "energy": rng.exponential(2.0, n),
        "time": rng.normal(0, 1, n),
    }
    return nest(rng, fields, 500, n_events)


GRAPH = dk.Graph(
    hits=["features", "coordinates", "beta", "place"],
    batch={"batch": "hits"},
    max_nodes=20_000,
)

POINT_VOXEL = Served(
    name="point_voxel",
    network=network,
    features=dk.Features(inputs, graph=GRAPH),
    sample=sample,
    row="event",
    batch=40,
    batched=False,
    source="arXiv:2007.16100",
)
