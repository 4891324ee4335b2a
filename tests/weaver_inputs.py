"""Weaver's own input building, as the reference."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import awkward as ak


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
