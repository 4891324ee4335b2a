"""Toy events: jagged like real ones, with values of the right size and no physics."""

from __future__ import annotations

import awkward as ak
import numpy as np
from numpy.random import Generator

__all__ = ["collection", "jets", "nest"]


def nest(rng: Generator, fields: dict[str, np.ndarray], mean: float, n: int, most: int = 10**6) -> ak.Array:
    """Records in ``n`` lists of ``mean`` items on average; the arrays are at least as long as needed."""
    counts = np.minimum(rng.poisson(mean, n), most)
    flat = ak.zip(
        {k: ak.from_numpy(v[: counts.sum()], regulararray=True) for k, v in fields.items()}, depth_limit=1
    )
    return ak.unflatten(flat, counts)


def collection(rng: Generator, n: int, mean: float, most: int = 10**6, variables: int = 0) -> ak.Array:
    """Particles around an axis, by falling pt: ``n * var * {pt, deta, dphi, energy, charge, variables}``."""
    counts = np.clip(rng.poisson(mean, n), 0, most)
    total = int(counts.sum())
    pt = rng.exponential(5.0, total) + 0.5
    row = np.repeat(np.arange(n), counts)
    pt = pt[np.lexsort((-pt, row))]
    deta, dphi = rng.normal(0, 0.15, (2, total))
    fields = {
        "pt": pt,
        "deta": deta,
        "dphi": dphi,
        "energy": pt * np.cosh(rng.normal(0, 1, total)),
        "charge": rng.integers(-1, 2, total),
    }
    if variables:
        fields["variables"] = rng.normal(size=(total, variables)).astype(np.float32)
    flat = ak.zip({k: ak.from_numpy(v, regulararray=True) for k, v in fields.items()}, depth_limit=1)
    return ak.unflatten(flat, counts)


def jets(
    rng: Generator,
    n_events: int,
    *,
    constituents: float,
    most: int = 10**6,
    variables: int = 0,
    vertices: int = 0,
) -> ak.Array:
    """Jets with constituents, and with secondary vertices of that many variables: ``n_events * var * Jet``."""
    counts = rng.integers(0, 5, n_events)
    n = int(counts.sum())
    fields = {
        "pt": ak.Array(rng.exponential(200.0, n) + 200.0),
        "eta": ak.Array(rng.uniform(-2.4, 2.4, n)),
        "phi": ak.Array(rng.uniform(-np.pi, np.pi, n)),
        "constituents": collection(rng, n, constituents, most, variables),
    }
    if vertices:
        fields["vertices"] = collection(rng, n, 2.0, variables=vertices)
    return ak.unflatten(ak.zip(fields, depth_limit=1), counts)
