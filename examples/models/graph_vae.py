"""Graph-convolutional variational autoencoder: constituents, and a matrix that says who is whose neighbour.

Inputs, activation, latent variables and the weight of the divergence are those of the trigger study; the widths
are this script's.

References
----------
.. [1] Inference as a service for anomaly detection with autoencoders, slides of 2022: X 100 x 3, A 100 x 100,
   tanh, 8 latent variables, beta 10.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import awkward as ak
import numpy as np
import onnx

import daskonic as dk
from daskonic.ragged import flatten, unflatten
from models import events
from models.convolutional_vae import CONSTITUENTS, LATENT
from models.network import Network, op
from models.served import Served

BETA = 10.0
WIDTH = 0.2  # of the Gaussian with which a neighbour counts, in deltaR


def network() -> onnx.ModelProto:
    """Constituents and adjacency to mean and logarithmic variance of the latent variables, and to constituents."""
    net = Network(seed=11)
    x = net.input("X", ["batch", CONSTITUENTS, 3])
    near = net.input("A", ["batch", CONSTITUENTS, CONSTITUENTS])
    for width in (32, 16):
        x = op.tanh(op.matmul(near, net.dense(x, width)))
    x = net.dense(op.flatten(x), 64, "tanh")
    mean, log_variance = net.dense(x, LATENT), net.dense(x, LATENT, "tanh")
    x = net.dense(net.dense(mean, 64, "tanh"), CONSTITUENTS * 16, "tanh")
    x = op.reshape(x, op.const([-1, CONSTITUENTS, 16]))
    x = op.tanh(op.matmul(near, net.dense(x, 32)))
    net.output("X_reconstructed", net.dense(x, 3))
    net.output("mean", mean)
    net.output("log_variance", log_variance)
    return net.model()


def inputs(jets: Any) -> dict[str, Any]:
    """Constituents, and the adjacency of each jet, normalised on both sides."""
    parts = jets.constituents[..., :CONSTITUENTS]
    columns = [np.log1p(parts.pt), parts.deta, parts.dphi]
    rows, layout = zip(*(flatten(c, 2) for c in columns), strict=True)
    x = np.stack(
        [ak.to_numpy(ak.fill_none(ak.pad_none(r, CONSTITUENTS, clip=True), 0)) for r in rows], axis=-1
    )
    there = np.arange(CONSTITUENTS) < ak.to_numpy(ak.num(rows[0]))[:, None]
    squared = ((x[:, :, None, 1:] - x[:, None, :, 1:]) ** 2).sum(axis=-1)
    near = np.exp(-squared / (2 * WIDTH**2)) * there[:, :, None] * there[:, None, :]
    scale = 1 / np.sqrt(np.maximum(near.sum(axis=2), 1e-6))
    near *= scale[:, :, None] * scale[:, None, :]
    return {"X": unflatten(x, layout[0]), "A": unflatten(near, layout[0])}


def anomaly_score(jets: Any, scores: Any) -> Any:
    """Error of the reconstruction plus ten times the divergence: ``n_events * var * float``."""
    true, _ = flatten(inputs(jets)["X"], 2)
    (made, layout), (mean, _), (log_variance, _) = (
        flatten(scores[name], 2) for name in ("X_reconstructed", "mean", "log_variance")
    )
    made, mean, log_variance = map(ak.to_numpy, (made, mean, log_variance))
    divergence = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(axis=1)
    return unflatten(((ak.to_numpy(true) - made) ** 2).mean(axis=(1, 2)) + BETA * divergence, layout)


GRAPH_VAE = Served(
    name="graph_vae",
    network=network,
    features=dk.Features(inputs),
    sample=partial(events.jets, constituents=60),
    row="jet",
    batch=64,
    source="slides, 2022",
)
