"""PFNano files to JetClass variables to the network's inputs, written for clearness and not for speed.

Training and evaluation share this module and nothing else, and it uses nothing of the package: it is a
second, independent road from the same files to the same tensors. Definitions are weaver's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np

CANDIDATE_BRANCHES = ("pt", "eta", "phi", "mass", "charge", "pdgId", "d0", "d0Err", "dz", "dzErr")
JET_BRANCHES = ("pt", "eta", "phi", "mass", "msoftdrop", "nConstituents", "genLabel")


def read_jets(paths: Iterable[str | Path]) -> ak.Array:
    """Return one record per jet of the files, in order, with JetClass's variables.

    Parameters
    ----------
    paths : iterable of str or Path

    Returns
    -------
    ak.Array, n_jets * {jet_*: float32, gen_label: int32, part_*: var * float32}
        GeV, rad, and cm for d0 and dz. Constituents as in the file, by falling pt.
    """
    return ak.concatenate([_jets_of_file(Path(path)) for path in paths])


def _jets_of_file(path: Path) -> ak.Array:
    """Return the jets of one file."""
    import uproot

    names = [f"PFCands_{name}" for name in CANDIDATE_BRANCHES] + [f"FatJet_{name}" for name in JET_BRANCHES]
    events = uproot.open({path: "Events"}).arrays(
        [*names, "FatJetPFCands_jetIdx", "FatJetPFCands_pFCandsIdx"]
    )
    per_event = ak.num(events.FatJet_pt)
    jet_of = np.asarray(ak.flatten(events.FatJetPFCands_jetIdx + _starts(per_event)))
    counts = np.bincount(jet_of, minlength=int(ak.sum(per_event)))
    order = np.argsort(jet_of, kind="stable")
    used = {
        name: ak.unflatten(
            ak.flatten(events[f"PFCands_{name}"][events.FatJetPFCands_pFCandsIdx])[order], counts
        )
        for name in CANDIDATE_BRANCHES
    }
    return _jetclass_variables(used, {name: ak.flatten(events[f"FatJet_{name}"]) for name in JET_BRANCHES})


def _starts(counts: ak.Array) -> np.ndarray:
    """Return where each list starts once all are joined."""
    return np.concatenate([[0], np.cumsum(counts)[:-1]])


def _jetclass_variables(cand: Mapping[str, ak.Array], jet: Mapping[str, ak.Array]) -> ak.Array:
    """Return JetClass's names for what PFNano calls otherwise."""
    sign = np.where(np.asarray(jet["eta"]) > 0, np.float32(1), np.float32(-1))
    kind = abs(cand["pdgId"])
    light = (kind == 11) | (kind == 13)
    px, py, pz = (
        cand["pt"] * factor for factor in (np.cos(cand["phi"]), np.sin(cand["phi"]), np.sinh(cand["eta"]))
    )
    momentum = jet["pt"] * np.cosh(jet["eta"])
    dphi = cand["phi"] - jet["phi"]
    part = {
        "px": px,
        "py": py,
        "pz": pz,
        "energy": np.sqrt(px**2 + py**2 + pz**2 + cand["mass"] ** 2),
        "deta": (cand["eta"] - jet["eta"]) * sign,
        "dphi": ak.where(dphi > np.pi, dphi - 2 * np.pi, ak.where(dphi < -np.pi, dphi + 2 * np.pi, dphi)),
        "charge": cand["charge"],
        "isChargedHadron": (cand["charge"] != 0) & ~light,
        "isNeutralHadron": (cand["charge"] == 0) & (kind != 22),
        "isPhoton": kind == 22,
        "isElectron": kind == 11,
        "isMuon": kind == 13,
        "d0val": cand["d0"],
        "d0err": cand["d0Err"],
        "dzval": cand["dz"],
        "dzerr": cand["dzErr"],
    }
    fields = {f"part_{name}": ak.values_astype(value, np.float32) for name, value in part.items()}
    whole = {
        "jet_pt": jet["pt"],
        "jet_eta": jet["eta"],
        "jet_phi": jet["phi"],
        "jet_mass": jet["mass"],
        "jet_energy": np.sqrt(momentum**2 + jet["mass"] ** 2),
        "jet_sdmass": jet["msoftdrop"],
    }
    fields |= {name: ak.values_astype(value, np.float32) for name, value in whole.items()}
    return ak.zip(fields | {"gen_label": jet["genLabel"]}, depth_limit=1)


def load_config(path: str | Path) -> dict[str, Any]:
    """Return a weaver data configuration as it stands in the YAML file."""
    import yaml

    config: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    return config


def build_inputs(
    config: Mapping[str, Any], jets: ak.Array, length: int | None = None
) -> dict[str, np.ndarray]:
    """Evaluate the configuration's formulas and pad.

    Parameters
    ----------
    config : mapping
        From `load_config`.
    jets : ak.Array, n_jets
        From `read_jets`.
    length : int, optional
        Pad to this and not to the configuration's length.

    Returns
    -------
    dict of numpy.ndarray, float32, n_jets * n_variables * length
        One per entry of ``inputs``.
    """
    table = {name: jets[name] for name in jets.fields}
    names = {"np": np, "ak": ak, "math": math}
    for name, formula in config["new_variables"].items():
        table[name] = eval(formula, names, table)
    return {
        key: np.stack([_column(table, variable, length or group["length"]) for variable in group["vars"]], 1)
        for key, group in config["inputs"].items()
    }


def _column(table: Mapping[str, ak.Array], variable: list[Any], length: int) -> np.ndarray:
    """Return one variable standardised, clipped and padded with zeros, n_jets * length."""
    name, center, scale, low, high = [*variable, *(None, 1, -5, 5)[len(variable) - 1 :]]
    counts = np.asarray(ak.num(table[name]))
    flat = np.asarray(ak.flatten(table[name]), np.float32)
    if center is not None:  # weaver clips only what it standardises
        flat = np.clip((flat - np.float32(center)) * np.float32(scale), low, high)
    row = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    keep = place < length
    padded = np.zeros((len(counts), length), np.float32)
    padded[row[keep], place[keep]] = np.nan_to_num(flat[keep])
    return padded
