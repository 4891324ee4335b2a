"""Weaver's own input building, as the reference, and daskonic's of the same jets."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np

import daskonic as dk
from daskonic.tensors import ModelSpec, TensorSpec


def import_weaver() -> Any:
    """Weaver's data module; of PyTorch it needs only the name of a class that is not used."""
    if "torch" not in sys.modules:
        data = types.ModuleType("torch.utils.data")
        data.IterableDataset = object  # type: ignore[attr-defined]
        collate = types.ModuleType("torch.utils.data._utils.collate")
        collate.default_collate_fn_map = {}  # type: ignore[attr-defined]
        names = ("torch", "torch.utils", "torch.utils.data._utils")
        stubs = {name: types.ModuleType(name) for name in names}
        sys.modules |= stubs | {"torch.utils.data": data, "torch.utils.data._utils.collate": collate}
        stubs["torch"].utils = stubs["torch.utils"]  # type: ignore[attr-defined]
        stubs["torch.utils"].data = data  # type: ignore[attr-defined]
    from weaver.utils import dataset

    return dataset


def by_weaver(weaver: Any, path: Path, jets: ak.Array) -> dict[str, Any]:
    """Inputs as weaver makes them from a table of jets."""
    config = weaver.DataConfig.load(str(path), load_observers=False, load_reweight_info=False)
    table = ak.flatten(jets)
    weaver._build_new_variables(table, {k: v for k, v in config.test_var_funcs.items() if "label" not in k})
    config.label_names = ()  # jets to be scored have no labels
    return {name.removeprefix("_"): value for name, value in weaver._finalize_inputs(table, config).items()}


def spec(shapes: dict[str, tuple[int, ...]], dtype: str = "f4") -> ModelSpec:
    """A model with these inputs."""
    inputs = tuple(TensorSpec(name, np.dtype(dtype), shape) for name, shape in shapes.items())
    return ModelSpec("m", "1", inputs, (TensorSpec("y", np.dtype("f4"), (2,)),), 1024)


def make_jets(n_events: int = 200, seed: int = 5) -> ak.Array:
    """Jets with 0 to 60 constituents, in the columns that weaver reads."""
    rng = np.random.default_rng(seed)
    n_jets = rng.integers(0, 4, n_events)
    counts = np.concatenate([[0, 1, 20, 21], rng.integers(0, 61, n_jets.sum() - 4)])
    size = counts.sum()
    parts = {
        name: rng.normal(0, width, size).astype(np.float32)
        for name, width in (("px", 10), ("py", 10), ("deta", 0.3), ("dphi", 0.3), ("d0val", 1))
    }
    parts["energy"] = rng.uniform(1, 100, size).astype(np.float32)
    flat = {f"part_{name}": ak.unflatten(values, counts) for name, values in parts.items()}
    flat["jet_pt"] = rng.uniform(400, 1000, len(counts)).astype(np.float32)
    flat["jet_eta"] = rng.uniform(-2, 2, len(counts)).astype(np.float32)
    return ak.unflatten(ak.zip(flat, depth_limit=1), n_jets)


def ours(path: Path, jets: Any, model: ModelSpec, **options: Any) -> dict[str, Any]:
    """Inputs as daskonic makes them, in batches of 64."""
    rows = dk.Features.from_weaver(path, **options)(jets, model).flatten()
    batches = [rows.tensors(rows.features(slice(i, min(i + 64, len(rows))))) for i in range(0, len(rows), 64)]
    return {t.name: np.concatenate([b[t.name] for b in batches]) for t in model.inputs}
