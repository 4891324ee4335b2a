"""The Particle Transformer: attention between particles, biased by what pairs of them have in common.

Layers as in the paper and its code for the JetClass data set [1]_: 17 features, four-momenta, 10 classes.

References
----------
.. [1] H. Qu, C. Li, S. Qian, Particle Transformer for jet tagging, arXiv:2202.03772; 2.14 million parameters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from spox import Var

import daskonic as dk
from models import events
from models.network import Network, number, op
from models.served import Served

WIDTH, HEADS, BLOCKS, CLASS_BLOCKS = 128, 8, 8, 2
TINY = 1e-8
NEVER = -1e9  # added to the attention to padding


def network() -> onnx.ModelProto:
    """17 features, four-momenta and mask of up to any number of particles to 10 classes."""
    net = Network(seed=6)
    features = net.input("pf_features", ["batch", 17, "particles"])
    momenta = net.input("pf_vectors", ["batch", 4, "particles"])
    mask = net.input("pf_mask", ["batch", 1, "particles"])
    padding = op.mul(op.sub(number(1), mask), number(NEVER))
    ignore = op.unsqueeze(padding, op.const([1]))  # batch, 1, 1, particles
    x = op.transpose(net.batch_norm(features), perm=[0, 2, 1])
    for width in (128, 512, WIDTH):
        x = net.dense(net.layer_norm(x), width, "gelu")
    bias = op.add(pair_bias(net, momenta), ignore)
    for _ in range(BLOCKS):
        x = block(net, x, None, bias)
    token = net.weights(1, 1, WIDTH, spread=0.02)
    token = op.expand(token, op.concat([op.shape(x, end=1), op.const([1, WIDTH])], axis=0))
    seen = op.pad(ignore, op.const([0, 0, 0, 1, 0, 0, 0, 0]))  # the token itself is no padding
    for _ in range(CLASS_BLOCKS):
        token = block(net, token, x, seen)
    token = op.squeeze(net.layer_norm(token), op.const([1]))
    net.output("softmax", net.dense(token, 10, "softmax"))
    return net.model()


def block(net: Network, x: Var, particles: Var | None, bias: Var) -> Var:
    """Attention of particles among each other, or of the class token to them; then two dense layers."""
    if particles is None:
        query = keys = net.layer_norm(x)
    else:
        query, keys = x, net.layer_norm(op.concat([x, particles], axis=1))
    x = op.add(net.layer_norm(attention(net, query, keys, bias)), x)
    y = net.layer_norm(net.dense(net.layer_norm(x), 4 * WIDTH, "gelu"))
    return op.add(net.dense(y, WIDTH), op.mul(x, net.weights(WIDTH, spread=0.1, around=1.0)))


def attention(net: Network, query: Var, keys: Var, bias: Var) -> Var:
    """Eight heads, each with a weight."""
    split = op.const([0, 0, HEADS, WIDTH // HEADS])
    q = op.transpose(op.reshape(net.dense(query, WIDTH), split), perm=[0, 2, 1, 3])
    k = op.transpose(op.reshape(net.dense(keys, WIDTH), split), perm=[0, 2, 3, 1])
    v = op.transpose(op.reshape(net.dense(keys, WIDTH), split), perm=[0, 2, 1, 3])
    product = op.mul(op.matmul(q, k), number((WIDTH // HEADS) ** -0.5))
    share = op.softmax(op.add(product, bias), axis=-1)
    joined = op.reshape(op.transpose(op.matmul(share, v), perm=[0, 2, 1, 3]), op.const([0, 0, WIDTH]))
    mixed = op.reshape(net.dense(joined, WIDTH), split)
    return op.reshape(op.mul(mixed, net.weights(HEADS, 1, spread=0.1, around=1.0)), op.const([0, 0, WIDTH]))


def pair_bias(net: Network, momenta: Var) -> Var:
    """Logarithms of kt, z, deltaR and mass of each pair, embedded to a bias of each head."""
    px, py, pz, energy = op.split(momenta, num_outputs=4, axis=1)
    pt = op.sqrt(op.add(op.mul(px, px), op.mul(py, py)))
    rapidity = op.log(op.div(positive(op.add(energy, pz)), positive(op.sub(energy, pz))))
    rapidities = op.mul(across(rapidity, op.sub), number(0.5))
    # The angle between the transverse momenta, without an arc tangent of two arguments, which ONNX has not.
    cosine = op.add(*(across(op.div(p, positive(pt)), op.mul) for p in (px, py)))
    angle = op.acos(op.clip(cosine, number(-1), number(1)))
    delta = op.sqrt(op.add(op.mul(rapidities, rapidities), op.mul(angle, angle)))
    softer = across(pt, lambda one, other: op.min([one, other]))
    sums = [across(p, op.add) for p in (energy, px, py, pz)]
    squares = [op.mul(p, p) for p in sums]
    mass = op.sub(squares[0], op.sum(squares[1:]))
    share = op.div(softer, positive(across(pt, op.add)))
    x = op.concat([op.log(positive(p)) for p in (op.mul(softer, delta), share, delta, mass)], axis=1)
    x = net.batch_norm(x)
    for width in (64, 64, 64):
        x = net.batch_norm(net.convolution(x, width, 1), "gelu")
    return net.batch_norm(net.convolution(x, HEADS, 1))


def across(x: Var, combine: Any) -> Var:
    """A function of each pair of particles."""
    return combine(op.unsqueeze(x, op.const([3])), op.unsqueeze(x, op.const([2])))


def positive(x: Var) -> Var:
    """Not less than a tiny number."""
    return op.max([x, number(TINY)])


def inputs(jets: Any) -> dict[str, Any]:
    """Features, four-momenta and mask of the constituents."""
    parts = jets.constituents
    eta, phi = parts.deta + jets.eta, parts.dphi + jets.phi
    px, py, pz = parts.pt * np.cos(phi), parts.pt * np.sin(phi), parts.pt * np.sinh(eta)
    energy = parts.pt * np.cosh(eta)
    kinematics = [np.log(parts.pt), np.log(energy), np.log(parts.pt / jets.pt), parts.deta, parts.dphi]
    return {
        "pf_features": [*kinematics, *(parts.variables[..., i] for i in range(12))],
        "pf_vectors": [px, py, pz, energy],
        "pf_mask": [np.ones_like(parts.pt)],
    }


PARTICLETRANSFORMER = Served(
    name="particletransformer",
    network=network,
    features=dk.Features(inputs, pad={n: dk.Pad(128) for n in ("pf_features", "pf_vectors", "pf_mask")}),
    sample=partial(events.jets, constituents=40, variables=12),
    row="jet",
    batch=100,
    source="arXiv:2202.03772",
    tolerance=1e-4,  # logarithms of nearly collinear pairs amplify rounding
)
