"""Convolutional variational autoencoder for anomalous jets: two networks, and a score that the client computes.

The layer tables of the trigger study of autoencoders as a service, to the last parameter of both halves. A jet is
its 100 leading constituents, each with three components of momentum.

References
----------
.. [1] Inference as a service for anomaly detection with autoencoders, slides of 2022: encoder 160,796 and decoder
   161,893 parameters, up to 64 jets in a request.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import awkward as ak
import numpy as np
import onnx
from numpy.random import Generator

import daskonic as dk
from daskonic.ragged import flatten, unflatten
from models import events
from models.network import Network, op
from models.served import Served

CONSTITUENTS, LATENT = 100, 8
MEAN, DEVIATION = np.zeros(3, np.float32), np.full(3, 10, np.float32)


def encoder() -> onnx.ModelProto:
    """100 x 3 to the mean of eight latent variables."""
    net = Network(seed=9)
    x = net.input("x", ["batch", CONSTITUENTS, 3])
    x = op.div(op.sub(x, op.const(MEAN)), op.const(DEVIATION))
    x = op.unsqueeze(x, op.const([1]))
    x = net.convolution(x, 16, 3, "relu")  # 98 x 1
    x = op.squeeze(x, op.const([3]))
    x = net.convolution(x, 20, 3, "relu")  # 96
    x = net.convolution(x, 24, 3, "relu")  # 94
    x = op.average_pool(x, kernel_shape=[2], strides=[2])  # 47
    x = net.dense(op.flatten(x), 136, "relu")
    x = net.dense(x, 32, "relu")
    net.output("z", net.dense(x, LATENT))
    return net.model()


def decoder() -> onnx.ModelProto:
    """The mirror image: eight latent variables to 100 x 3."""
    net = Network(seed=10)
    x = net.dense(net.input("z", ["batch", LATENT]), 32, "relu")
    x = net.dense(x, 136, "relu")
    x = op.reshape(net.dense(x, 24 * 47, "relu"), op.const([-1, 24, 47]))
    x = op.resize(x, scales=op.const(np.array([1, 1, 2], np.float32)), mode="nearest")  # 94
    x = net.convolution(x, 20, 3, "relu", transposed=True)  # 96
    x = net.convolution(x, 16, 3, "relu", transposed=True)  # 98
    x = op.unsqueeze(x, op.const([3]))
    x = op.squeeze(net.convolution(x, 1, 3, transposed=True), op.const([1]))  # 100 x 3
    net.output("x", op.add(op.mul(x, op.const(DEVIATION)), op.const(MEAN)))
    return net.model()


def momenta(jets: Any) -> dict[str, Any]:
    """Momenta of the constituents."""
    parts = jets.constituents
    phi, eta = parts.dphi + jets.phi, parts.deta + jets.eta
    return {"x": [parts.pt * np.cos(phi), parts.pt * np.sin(phi), parts.pt * np.sinh(eta)]}


def anomaly_score(jets: Any, encode: dk.Model, decode: dk.Model, beta: float = 1.0) -> Any:
    """How badly a jet is reconstructed, plus how far its latent variables are from the prior's.

    Parameters
    ----------
    jets : ak.Array, n_events * var * Jet
    encode, decode : dk.Model
        Of this script's networks; the decoder has no features of its own.
    beta : float
        Weight of the Kullback-Leibler divergence; the latent variables have unit variance.

    Returns
    -------
    ak.Array, n_events * var * float32
    """
    z = encode(jets)
    (latent, layout), (made, _) = flatten(z, 2), flatten(decode(z), 2)
    there = [ak.fill_none(ak.pad_none(c, CONSTITUENTS, axis=2, clip=True), 0) for c in momenta(jets)["x"]]
    true = np.stack([ak.to_numpy(ak.flatten(c)) for c in there], axis=-1)
    error = ((true - ak.to_numpy(made)) / DEVIATION) ** 2
    divergence = 0.5 * np.sum(ak.to_numpy(latent) ** 2, axis=1)
    return unflatten((error.mean(axis=(1, 2)) + beta * divergence).astype(np.float32), layout)


def latent(rng: Generator, n_events: int) -> ak.Array:
    """Latent variables of jets: ``n_events * var * 8``."""
    counts = rng.integers(0, 5, n_events)
    values = rng.normal(size=(counts.sum(), LATENT)).astype(np.float32)
    return ak.unflatten(ak.from_numpy(values, regulararray=True), counts)


ENCODER = Served(
    name="vae_encoder",
    network=encoder,
    features=dk.Features(momenta, pad={"x": dk.Pad(CONSTITUENTS, channels="last")}),
    sample=partial(events.jets, constituents=60),
    row="jet",
    batch=64,
    parameters=160_796,
    source="slides, 2022",
)
DECODER = Served(
    name="vae_decoder",
    network=decoder,
    features=dk.Features.plain(),
    sample=latent,
    row="jet",
    batch=64,
    parameters=161_893,
    source="slides, 2022",
)
