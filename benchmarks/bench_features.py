"""Inputs of 100,000 jets, padded to 128: daskonic against the recipe that analyses use.

The recipe is the one of coffea's own Triton tests and of many analyses: ``ak.pad_none``, ``ak.fill_none``, one new
axis for each variable, ``ak.concatenate``, ``ak.to_numpy``. Both sides start from the same jagged arrays, compute the same
formulas, and run in turns, so that a noisy machine disturbs both.

    python benchmarks/bench_features.py [--jets 100000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np

import daskonic as dk
from daskonic.tensors import ModelSpec, TensorSpec

LENGTH = 128
ROWS_PER_BATCH = 1024

CONFIG = """
new_variables:
  part_mask: ak.ones_like(part_energy)
  part_pt_log: np.log(part_pt)
  part_e_log: np.log(part_energy)
  part_logptrel: np.log(part_pt/jet_pt)
  part_logerel: np.log(part_energy/jet_energy)
  part_deltaR: np.hypot(part_deta, part_dphi)
inputs:
  points:
    length: 128
    vars: [[part_deta, null], [part_dphi, null]]
  features:
    length: 128
    vars:
      - [part_pt_log, 1.7, 0.7]
      - [part_e_log, 2.0, 0.7]
      - [part_logptrel, -4.7, 0.7]
      - [part_logerel, -4.7, 0.7]
      - [part_deltaR, 0.2, 4.0]
      - [part_deta, null]
      - [part_dphi, null]
  mask:
    length: 128
    vars: [[part_mask, null]]
"""
STANDARDISED = {
    "pt_log": (1.7, 0.7),
    "e_log": (2, 0.7),
    "logptrel": (-4.7, 0.7),
    "logerel": (-4.7, 0.7),
    "dr": (0.2, 4),
}
SHAPES = {"points": (2, LENGTH), "features": (7, LENGTH), "mask": (1, LENGTH)}
SPEC = ModelSpec(
    "bench", "1", tuple(TensorSpec(n, np.dtype("f4"), s) for n, s in SHAPES.items()), (), ROWS_PER_BATCH
)


def make_jets(n_jets: int, seed: int = 1) -> ak.Array:
    """Jets with 30 constituents on average, 5 to 128."""
    rng = np.random.default_rng(seed)
    counts = np.clip(rng.gamma(4, 7.5, n_jets).astype(int), 5, LENGTH)

    def uniform(low: float, high: float, size: int) -> Any:
        return rng.uniform(low, high, size).astype(np.float32)

    n = int(counts.sum())
    jets = ak.zip(
        {"pt": uniform(400, 900, n_jets), "eta": uniform(-2, 2, n_jets), "phi": uniform(-3.1, 3.1, n_jets)}
    )
    jets["energy"] = jets.pt * np.cosh(jets.eta)
    parts = {"pt": uniform(0.5, 90, n), "energy": uniform(1, 200, n)}
    parts["deta"], parts["dphi"] = uniform(-0.8, 0.8, n), uniform(-0.8, 0.8, n)
    jets["constituents"] = ak.unflatten(ak.zip(parts), counts)
    return jets


def recipe_pad(columns: list[Any]) -> Any:
    """Awkward columns as channels of one rectangle."""
    padded = [ak.fill_none(ak.pad_none(c, LENGTH, clip=True), 0.0)[:, np.newaxis, :] for c in columns]
    return ak.to_numpy(ak.concatenate(padded, axis=1)).astype(np.float32)


def recipe(jets: ak.Array) -> dict[str, Any]:
    """The usual way, whole arrays in awkward."""
    c = jets.constituents
    variables = {
        "pt_log": np.log(c.pt),
        "e_log": np.log(c.energy),
        "logptrel": np.log(c.pt / jets.pt),
        "logerel": np.log(c.energy / jets.energy),
        "dr": np.hypot(c.deta, c.dphi),
    }
    scaled = []
    for name, (center, scale) in STANDARDISED.items():
        x = (variables[name] - center) * scale
        x = ak.where(x < -5, -5, x)
        scaled.append(ak.where(x > 5, 5, x))
    return {
        "points": recipe_pad([c.deta, c.dphi]),
        "features": recipe_pad([*scaled, c.deta, c.dphi]),
        "mask": recipe_pad([ak.ones_like(c.energy)]),
    }


def similar_lengths(features: dk.Features, jets: ak.Array) -> None:
    """The same for a model that takes any length: rows ordered by length, padded to it."""
    inputs = tuple(dataclasses.replace(t, shape=(t.shape[0], -1)) for t in SPEC.inputs)
    rows = features(jets, dataclasses.replace(SPEC, inputs=inputs)).flatten()
    for batch in rows.split(ROWS_PER_BATCH, 2**22, rows.buckets()):
        rows.tensors(rows.features(batch.which), batch.lengths)


def daskonic_batches(features: dk.Features, jets: ak.Array, check: dict[str, Any] | None = None) -> float:
    """Our way, batch by batch as they are sent; the largest difference from ``check`` if there is one."""
    rows = features(jets, SPEC).flatten()
    largest = 0.0
    for start in range(0, len(rows), ROWS_PER_BATCH):
        batch = slice(start, min(start + ROWS_PER_BATCH, len(rows)))
        tensors = rows.tensors(rows.features(batch))
        if check is not None:
            largest = max(largest, *(float(np.abs(t - check[n][batch]).max()) for n, t in tensors.items()))
    return largest


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Compare results, then times in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jets", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(CONFIG)
        features = dk.Features.from_weaver(path)
    few = make_jets(2000, seed=2)
    print(f"largest difference on {len(few)} jets: {daskonic_batches(features, few, recipe(few)):.1e}")
    jets = make_jets(args.jets)
    print(
        f"{len(jets)} jets, {ak.count(jets.constituents.pt) / len(jets):.1f} constituents on average, padded to {LENGTH}"
    )
    ratios, ours_s, theirs_s, similar_s = [], [], [], []
    for _ in range(args.rounds):
        theirs = seconds(lambda: recipe(jets))
        ours = seconds(lambda: daskonic_batches(features, jets))
        ratios.append(theirs[0] / ours[0])
        ours_s.append(ours[0])
        theirs_s.append(theirs[0])
        similar_s.append(seconds(lambda: similar_lengths(features, jets))[0])
        print(
            f"  recipe {theirs[0]:6.3f} s (CPU {theirs[1]:6.3f})   daskonic {ours[0]:6.3f} s (CPU {ours[1]:6.3f})   ratio {ratios[-1]:5.1f}"
        )
    print(
        f"median: recipe {statistics.median(theirs_s):.3f} s, daskonic {statistics.median(ours_s):.3f} s, "
        f"ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    )
    print(
        f"in batches of similar length: {statistics.median(similar_s):.3f} s "
        f"({min(similar_s):.3f} to {max(similar_s):.3f}), padded to {LENGTH}: {min(ours_s):.3f} to {max(ours_s):.3f}"
    )


if __name__ == "__main__":
    main()
