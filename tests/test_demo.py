"""The shipped jets and network: Triton through Dask gives what weaver and ONNX Runtime give, and tops are found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from weaver_inputs import by_weaver

import daskonic as dk
from daskonic import demo
from daskonic.errors import OutputError, ResponseError
from daskonic.tensors import ModelSpec, TensorSpec


@pytest.fixture(scope="module")
def files():
    return demo.shipped()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``daskonic demo`` as a user runs it; its JSON and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "daskonic", "demo", "--json", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def test_scores_are_those_of_onnxruntime_and_tops_are_found(run):
    """Every score of 13,989 jets to 1e-5, and an AUC above 0.95 on jets not used in training."""
    result, folder = run
    assert result["jets"] == 13_989
    assert 0 <= result["largest_difference"] <= 1e-5
    assert result["auc"] > 0.95
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_left_running(run):
    """No process has the demo's folders or a Triton of this run in its command line."""
    left = subprocess.run(
        ["pgrep", "-fa", "daskonic-demo-"], capture_output=True, text=True, check=False
    ).stdout
    assert not left
    assert not list(Path("/tmp").glob("daskonic-demo-*"))


def nano_table(path):
    """Variables of JetClass for a file of PFNano, jet by jet in float64: an independent reading."""
    import uproot

    events = uproot.open(path)["Events"].arrays(filter_name=["FatJet_*", "FatJetPFCands_*", "PFCands_*"])
    candidates = ak.zip(
        {n.removeprefix("PFCands_"): events[n] for n in events.fields if n.startswith("PFCands_")}
    )
    chosen = candidates[events.FatJetPFCands_pFCandsIdx]
    rows = []
    for event in range(60):
        for jet in range(len(events.FatJet_pt[event])):
            part = chosen[event][events.FatJetPFCands_jetIdx[event] == jet]
            f = {
                n: np.asarray(part[n], np.float64)
                for n in ("pt", "eta", "phi", "mass", "charge", "pdgId", "d0", "d0Err", "dz", "dzErr")
            }
            pt, eta, phi, mass = (
                float(events[f"FatJet_{n}"][event][jet]) for n in ("pt", "eta", "phi", "mass")
            )
            pid = np.abs(f["pdgId"])
            rows.append({
                "part_energy": np.hypot(f["pt"] * np.cosh(f["eta"]), f["mass"]),
                "part_pt": f["pt"],
                "part_deta": (f["eta"] - eta) * (1 if eta > 0 else -1),
                "part_dphi": (f["phi"] - phi + np.pi) % (2 * np.pi) - np.pi,
                "part_charge": f["charge"],
                "part_isElectron": pid == 11, "part_isMuon": pid == 13, "part_isPhoton": pid == 22,
                "part_isChargedHadron": (f["charge"] != 0) & (pid != 11) & (pid != 13),
                "part_isNeutralHadron": (f["charge"] == 0) & (pid != 22),
                "part_d0val": f["d0"], "part_d0err": f["d0Err"], "part_dzval": f["dz"], "part_dzerr": f["dzErr"],
                "jet_pt": pt, "jet_energy": np.hypot(pt * np.cosh(eta), mass),
            })  # fmt: skip
    table = ak.Array(rows)
    return ak.zip({n: ak.values_astype(table[n], np.float32) for n in table.fields}, depth_limit=1)


@pytest.mark.parametrize("index", [0, 2])
def test_scores_are_those_of_weavers_own_inputs(weaver, files, index):
    """From file to score with nothing of daskonic: weaver's input building and ONNX Runtime, to 1e-5."""
    import onnxruntime

    path = files.jets[index]
    table = nano_table(path)
    inputs = by_weaver(weaver, files.features, ak.unflatten(table, len(table)))
    session = onnxruntime.InferenceSession(str(files.model), providers=["CPUExecutionProvider"])
    expected = session.run(None, {t.name: inputs[t.name] for t in session.get_inputs()})[0]
    made = ak.to_numpy(ak.flatten(demo.score_here(path, files)[:60]))
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_a_swapped_score_is_noticed(run, files, tmp_path):
    """The comparison can fail: two jets exchanged in one file are a difference."""
    _, folder = run
    paths = sorted((folder / "scores").iterdir())
    table = ak.from_parquet(paths[0])
    names = [n for n in table.fields if n.startswith("FatJet_")]
    for name in names:
        values = ak.to_numpy(ak.flatten(table[name])).copy()
        values[[0, -1]] = values[[-1, 0]]
        table[name] = ak.unflatten(values, ak.num(table[name]))
    ak.to_parquet(table, tmp_path / "swapped.parquet")

    summary = SimpleNamespace(columns=names, paths=[tmp_path / "swapped.parquet", *paths[1:]])
    assert demo.compare(files, summary).largest_difference > 1e-3
    with pytest.raises(ResponseError, match="other jets"):
        demo.compare(files, SimpleNamespace(columns=names, paths=paths[1:]))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=60))
def test_area_under_the_curve_is_scikit_learns(jets):
    labels, scores = (np.asarray(x, float) for x in zip(*jets, strict=True))
    if 0 < labels.sum() < len(labels):
        assert demo.area(*demo.roc(labels, scores)) == pytest.approx(roc_auc_score(labels, scores))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    from daskonic.cli.demo import _make_room

    (tmp_path / "manifest.json").write_text('{"identity": {"model": "mine"}}')
    with pytest.raises(OutputError, match="holds scores of model 'mine'"):
        _make_room(tmp_path, demo.MODEL)
    assert (tmp_path / "manifest.json").exists()


def test_a_jet_with_no_and_with_one_constituent_has_a_finite_score(files):
    jets = ak.Array([[{"pt": 500.0, "eta": 0.1, "phi": 0.2, "mass": 80.0}] * 2])
    part = {
        "pt": 9.0,
        "eta": 0.1,
        "phi": 0.3,
        "mass": 0.1,
        "charge": 1,
        "pdgId": 211,
        "d0": 0.0,
        "d0Err": 0.1,
        "dz": 0.0,
        "dzErr": 0.1,
    }
    jets["constituents"] = ak.Array([[[], [part]]])
    spec = ModelSpec(
        "m",
        "1",
        tuple(
            TensorSpec(n, np.dtype("f4"), (d, -1))
            for n, d in (("pf_points", 2), ("pf_features", 15), ("pf_mask", 1))
        ),
        (),
        8,
    )
    rows = dk.Features.from_weaver(files.features)(jets, spec).flatten()
    tensors = rows.tensors(rows.features(slice(0, 2)))
    assert tensors["pf_mask"].sum(axis=(1, 2)).tolist() == [0, 1]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(files.model), providers=["CPUExecutionProvider"])
    scores = session.run(None, tensors)[0]
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
