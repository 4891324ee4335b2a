"""DeepTau v2.5: variables of a tau, and candidates around it in an inner and an outer grid.

Inputs as CMS serves them [1]_. Widths follow the rule of the training code, with which each stack begins at twice
its inputs and falls by a factor from layer to layer [2]_; the convolutions shrink each grid to one cell.

References
----------
.. [1] CMS Collaboration, Portable acceleration of CMS computing workflows with coprocessors as a service,
   arXiv:2402.15366.
.. [2] CMS Collaboration, Identification of hadronic tau lepton decays using a deep neural network,
   arXiv:2201.08458; https://github.com/cms-tau-pog/TauMLTools.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import onnx
from numpy.random import Generator
from spox import Var

import daskonic as dk
from daskonic.features import cell_grid
from models.events import collection
from models.network import Network, channels, op
from models.served import Served

TAU = 47
VARIABLES = {"egamma": 86, "muon": 64, "hadrons": 38}
GRIDS = {"inner": (11, 0.02), "outer": (21, 0.05)}
"""Cells along a side, and their size."""


def network() -> onnx.ModelProto:
    """47 variables and six grids to four classes: electron, muon, tau, jet."""
    net = Network(seed=7)
    tau = net.input("input_tau", ["batch", TAU])
    parts = [stack(net, tau, [113, 81, 58, 57])]
    for grid, (cells, _) in GRIDS.items():
        kinds = []
        for kind, n in VARIABLES.items():
            x = net.input(f"input_{grid}_{kind}", ["batch", cells, cells, n])
            x = op.transpose(x, perm=[0, 3, 1, 2])
            kinds.append(stack(net, x, falling(2.4 * n, 1.2 * n, 1.6)))
        x = op.concat(kinds, axis=1)
        x = stack(net, x, falling(channels(x, 1), 64, 1.6))
        for _ in range(cells // 2):
            x = net.activate(net.batch_norm(net.convolution(x, 64, 3)), "prelu")
        parts.append(op.flatten(x))
    x = stack(net, op.concat(parts, axis=1), [200] * 4)
    net.output("main_output", net.dense(x, 4, "softmax"))
    return net.model()


def stack(net: Network, x: Var, widths: list[int]) -> Var:
    """Dense layers, the same in each cell of a grid."""
    flat = len(x.unwrap_tensor().shape) == 2
    for width in widths:
        x = net.dense(x, width) if flat else net.convolution(x, width, 1)
        x = net.activate(net.batch_norm(x), "prelu")
    return x


def falling(first: float, last: float, factor: float) -> list[int]:
    """Widths from the first to the last."""
    widths = []
    while first > last:
        widths.append(int(np.ceil(first)))
        first /= factor
    return [*widths, int(np.ceil(last))]


def inputs(taus: Any) -> dict[str, Any]:
    """In each cell, the variables of the candidate with the highest pt of its kind."""
    made = {"input_tau": taus.variables}
    for grid, (cells, size) in GRIDS.items():
        for kind in VARIABLES:
            c = taus[kind]
            made[f"input_{grid}_{kind}"] = cell_grid(
                c.deta, c.dphi, c.pt, c.variables, cells=cells, size=size
            )
    return made


def sample(rng: Generator, n_events: int) -> ak.Array:
    """Events with taus, each with candidates of three kinds: ``n_events * var * tau``."""
    counts = rng.integers(0, 4, n_events)
    n = int(counts.sum())
    fields: dict[str, Any] = {
        "variables": ak.from_numpy(rng.normal(size=(n, TAU)).astype("f4"), regulararray=True)
    }
    for (kind, variables), mean in zip(VARIABLES.items(), (15, 1, 20), strict=True):
        fields[kind] = collection(rng, n, mean, variables=variables)
    return ak.unflatten(ak.zip(fields, depth_limit=1), counts)


DEEPTAU = Served(
    name="deeptau_2018v2p5",
    network=network,
    features=dk.Features(inputs),
    sample=sample,
    row="tau",
    batch=100,
    source="arXiv:2201.08458, 2402.15366",
)
