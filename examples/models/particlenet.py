"""ParticleNet as CMS serves it, with particle-flow candidates and secondary vertices as one cloud.

Blocks and widths are those of the paper [1]_, the two collections and the names of the inputs those of CMS's
models for AK4 and AK8 jets [2]_.

References
----------
.. [1] H. Qu, L. Gouskos, Jet tagging via particle clouds, arXiv:1902.08570.
.. [2] CMS Collaboration, Portable acceleration of CMS computing workflows with coprocessors as a service,
   arXiv:2402.15366.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from spox import Var

import daskonic as dk
from models import events
from models.network import Network, channels, number, op
from models.served import Served

NEIGHBOURS = 16
BLOCKS = ((64, 64, 64), (128, 128, 128), (256, 256, 256))
FAR = 1.0e9  # where padding is, so that it is nobody's neighbour
COLLECTIONS = {"pf": "constituents", "sv": "vertices"}
N_SV = 11


def network(n_pf: int, classes: int) -> onnx.ModelProto:
    """Points, features and mask of two collections to classes."""
    net = Network(seed=5)
    clouds = []
    for collection, n, first in (("pf", n_pf, 0), ("sv", N_SV, 3)):
        cloud = []
        for i, (what, width) in enumerate((("points", 2), ("features", n), ("mask", 1))):
            cloud.append(net.input(f"{collection}_{what}__{first + i}", ["batch", width, f"n_{collection}"]))
        clouds.append(cloud)
    points = op.concat([points for points, _, _ in clouds], axis=2)
    mask = op.concat([mask for _, _, mask in clouds], axis=2)
    padding = op.mul(op.sub(number(1), mask), number(FAR))
    x = op.concat([op.mul(embed(net, op.mul(features, m)), m) for _, features, m in clouds], axis=2)
    x = op.mul(net.batch_norm(x), mask)
    blocks = []
    for i, widths in enumerate(BLOCKS):
        x = op.mul(edge_convolution(net, op.add(x if i else points, padding), x, widths), mask)
        blocks.append(x)
    x = net.convolution(op.concat(blocks, axis=1), 384, 1, bias=False)
    x = op.mul(net.batch_norm(x, "relu"), mask)
    total, count = (op.reduce_sum(part, op.const([2]), keepdims=0) for part in (x, mask))
    x = net.dense(op.div(total, op.max([count, number(1)])), 256, "relu")
    net.output("softmax__0", net.dense(x, classes, "softmax"))
    return net.model()


def embed(net: Network, features: Var) -> Var:
    """32 channels for each collection."""
    x = net.convolution(net.batch_norm(features), 32, 1, bias=False)
    return net.batch_norm(x, "relu")


def edge_convolution(net: Network, points: Var, x: Var, widths: tuple[int, ...]) -> Var:
    """Messages from the nearest points, averaged, and a shortcut."""
    n = channels(x, 1)
    near = nearest(points)
    sent = op.gather_nd(op.transpose(x, perm=[0, 2, 1]), near, batch_dims=1)
    sent = op.transpose(op.reshape(sent, op.const([0, -1, NEIGHBOURS, n])), perm=[0, 3, 1, 2])
    own = op.expand(op.unsqueeze(x, op.const([3])), op.shape(sent))
    y = op.reshape(op.concat([own, op.sub(sent, own)], axis=1), op.const([0, 2 * n, -1, NEIGHBOURS]))
    for width in widths:
        y = net.batch_norm(net.convolution(y, width, 1, bias=False), "relu")
    y = op.reduce_mean(y, op.const([3]), keepdims=0)
    shortcut = x if n == widths[-1] else net.batch_norm(net.convolution(x, widths[-1], 1, bias=False))
    return op.relu(op.add(shortcut, y))


def nearest(points: Var) -> Var:
    """Numbers of the nearest points of each, itself left out: ``[batch, points * 16, 1]``."""
    squared = op.reduce_sum(op.mul(points, points), op.const([1]), keepdims=1)
    transposed = op.transpose(points, perm=[0, 2, 1])
    distance = op.sub(op.transpose(squared, perm=[0, 2, 1]), op.mul(op.matmul(transposed, points), number(2)))
    distance = op.add(distance, squared)
    found = op.top_k(distance, op.const([NEIGHBOURS + 1]), largest=0)[1]
    others = op.slice(found, op.const([1]), op.const([NEIGHBOURS + 1]), op.const([2]))
    return op.reshape(others, op.const([0, -1, 1]))


def inputs(n_pf: int, jets: Any) -> dict[str, Any]:
    """Points, features and mask of both collections; the columns of each are its channels."""
    made = {}
    for collection, n, first in (("pf", n_pf, 0), ("sv", N_SV, 3)):
        parts = jets[COLLECTIONS[collection]]
        made[f"{collection}_points__{first}"] = [parts.deta, parts.dphi]
        made[f"{collection}_features__{first + 1}"] = [parts.variables[..., i] for i in range(n)]
        made[f"{collection}_mask__{first + 2}"] = [np.ones_like(parts.pt)]
    return made


def served(name: str, n_pf: int, classes: int, lengths: tuple[int, int], batch: int) -> Served:
    """One of CMS's models."""
    pad = {
        f"{collection}_{what}__{first + i}": dk.Pad(length)
        for collection, length, first in (("pf", lengths[0], 0), ("sv", lengths[1], 3))
        for i, what in enumerate(("points", "features", "mask"))
    }
    return Served(
        name=name,
        network=partial(network, n_pf, classes),
        features=dk.Features(partial(inputs, n_pf), pad=pad),
        sample=partial(events.jets, constituents=0.6 * lengths[0], variables=n_pf, vertices=N_SV),
        row="jet",
        batch=batch,
        source="arXiv:1902.08570, 2402.15366",
        tolerance=1e-4,  # of two nearly equally near particles, rounding decides which is a neighbour
    )


PARTICLENET_AK4 = served("particlenet_ak4", 20, 8, (50, 5), 200)
PARTICLENET_AK8 = served("particlenet_ak8", 25, 20, (100, 10), 80)
