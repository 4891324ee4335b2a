"""FACILE: the energy of an HCAL channel, 16,000 channels of an event at once.

The papers tell the batch, one output and a size of about 2,000 weights [1]_; the inputs and widths are this
script's: position, depth, gain and pedestal of a channel, and ten samples of its charge.

References
----------
.. [1] J. Krupa et al., GPU coprocessors as a service for deep learning inference in high energy physics,
   arXiv:2007.10359.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import onnx
from numpy.random import Generator

import daskonic as dk
from models.network import Network
from models.served import Served

SAMPLES = 10


def network() -> onnx.ModelProto:
    """15 numbers to one."""
    net = Network(seed=2)
    x = net.input("input", ["batch", 15])
    x = net.dense(x, 36, "relu")
    x = net.dense(x, 28, "relu")
    x = net.dense(x, 14, "relu")
    net.output("energy", net.dense(x, 1))
    return net.model()


def inputs(channels: Any) -> dict[str, Any]:
    """Numbers of each channel, with the charges in a logarithm."""
    position = [channels.ieta / 16, channels.iphi / 72, channels.depth / 7, channels.gain, channels.pedestal]
    charge = np.log1p(channels.charge)
    return {"input": [*position, *(charge[..., i] for i in range(SAMPLES))]}


def sample(rng: Generator, n_events: int) -> ak.Array:
    """Events of about 16,000 channels with a signal: ``n_events * var * channel``."""
    counts = rng.integers(15_000, 17_000, n_events)
    n = counts.sum()
    fields = {
        "ieta": rng.integers(-29, 30, n),
        "iphi": rng.integers(1, 73, n),
        "depth": rng.integers(1, 8, n),
        "gain": rng.normal(1, 0.1, n),
        "pedestal": rng.normal(3, 0.3, n),
    }
    columns = {k: ak.Array(v) for k, v in fields.items()}
    columns["charge"] = ak.from_numpy(rng.gamma(1.0, 50.0, (n, SAMPLES)).astype("f4"), regulararray=True)
    return ak.unflatten(ak.zip(columns, depth_limit=1), counts)


FACILE = Served(
    name="facile",
    network=network,
    features=dk.Features(inputs),
    sample=sample,
    row="channel",
    batch=16_000,
    source="arXiv:2007.10359",
)
