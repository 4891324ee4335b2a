"""A ``preprocess.json`` gives the tensors that CMSSW makes of the same variables, and bad ones are explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import daskonic as dk
from daskonic.errors import InputError, SpecError
from daskonic.tensors import ModelSpec, TensorSpec

F = np.float32


def spec(**shapes: tuple[int, ...]) -> ModelSpec:
    inputs = tuple(TensorSpec(name, np.dtype("f4"), shape) for name, shape in shapes.items())
    return ModelSpec("m", "1", inputs, (TensorSpec("y", np.dtype("f4"), (2,)),), 1024)


def ours(path: Path, jets: Any, model: ModelSpec, **options: Any) -> dict[str, Any]:
    rows = dk.Features.from_cmssw(path, **options)(jets, model).flatten()
    return rows.tensors(rows.features(slice(0, len(rows))))


def center_norm_pad(values: list[float], info: dict[str, float], least: int, most: int) -> list[np.float32]:
    """One variable of one jet, number by number, as deep_helpers.cc goes about it."""
    length = min(max(len(values), least), most)
    out = []
    for i in range(length):
        if i >= len(values):
            out.append(F(info.get("pad", 0)))
            continue
        x = F(values[i])
        if not np.isfinite(x) or float(x) < -1e32 or float(x) > 1e32:
            x = F(info.get("replace_inf_value", 0))
        with np.errstate(over="ignore"):
            x = (x - F(info["median"])) * F(info["norm_factor"])
        low, high = F(info.get("lower_bound", -5)), F(info.get("upper_bound", 5))
        out.append(low if x < low else min(x, high))
    return out


def by_cmssw(config: dict[str, Any], group: str, jet: dict[str, Any], length: int) -> np.ndarray:
    """One input of one jet, in a model of this length."""
    entry = config[group]
    least, most = (entry.get(key, entry.get("var_length")) for key in ("min_length", "max_length"))
    rows = [center_norm_pad(jet[v], entry["var_infos"][v], least, most) for v in entry["var_names"]]
    pads = [F(entry["var_infos"][v].get("pad", 0)) for v in entry["var_names"]]
    return np.array([row + [pad] * (length - len(row)) for row, pad in zip(rows, pads, strict=True)], F)


ODD = st.sampled_from(
    [0.0, -0.0, 1e32, -1e32, 1.1e32, 3e38, 1e-40, float("inf"), -float("inf"), float("nan")]
)
VALUES = st.one_of(ODD, st.floats(width=32), st.floats(-10, 10, width=32))


@st.composite
def info(draw: st.DrawFn) -> dict[str, float]:
    made = {"median": draw(st.floats(-5, 5)), "norm_factor": draw(st.floats(-2, 300))}
    if draw(st.booleans()):
        made |= {"replace_inf_value": draw(st.floats(-9, 9)), "lower_bound": -1e32, "upper_bound": 1e32}
        if draw(st.booleans()):
            made |= {"lower_bound": draw(st.floats(-9, -1)), "upper_bound": draw(st.floats(1, 9))}
        made |= {"pad": draw(st.floats(-1, 1))}
    return made


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, list[float]]]]:
    """A configuration of two groups, one of fixed and one of open length, and jets."""
    config: dict[str, Any] = {"output_names": ["a", "b"], "input_names": ["pf_features", "sv_features"]}
    names = {"pf_features": ["pfcand_a", "pfcand_b"], "sv_features": ["sv_a"]}
    lengths = {"pf_features": {"min_length": 3, "max_length": 7}, "sv_features": {"var_length": 2}}
    for group, variables in names.items():
        config[group] = {"var_names": variables, "var_infos": {v: draw(info()) for v in variables}} | lengths[
            group
        ]
    jets = []
    for n, m in draw(
        st.lists(st.tuples(st.sampled_from([0, 1, 3, 7, 12]), st.integers(0, 3)), min_size=1, max_size=4)
    ):
        lists = {v: draw(st.lists(VALUES, min_size=n, max_size=n)) for v in names["pf_features"]}
        jets.append(lists | {"sv_a": draw(st.lists(VALUES, min_size=m, max_size=m))})
    return config, jets


@settings(max_examples=60, deadline=None)
@given(cases())
def test_tensors_are_those_of_cmssw(tmp_path_factory: Any, case: Any) -> None:
    """Bit by bit: empty jets, too many constituents, infinities, NaN, bounds, padding, two groups; in a model of fixed and
    of open length.
    """
    config, jets = case
    path = tmp_path_factory.mktemp("cmssw") / "preprocess.json"
    path.write_text(json.dumps(config))
    names = ("pfcand_a", "pfcand_b", "sv_a")
    columns = {
        v: ak.values_astype(ak.unflatten([x for j in jets for x in j[v]], [len(j[v]) for j in jets]), F)
        for v in names
    }
    array = ak.zip(columns, depth_limit=1)
    for length in (7, 5):
        made = ours(path, array, spec(pf_features=(2, length), sv_features=(1, 2)))
        for i, jet in enumerate(jets):
            expected = by_cmssw(config, "pf_features", jet, 7)[:, :length]
            np.testing.assert_array_equal(made["pf_features"][i], expected)
            np.testing.assert_array_equal(made["sv_features"][i], by_cmssw(config, "sv_features", jet, 2))
    model = spec(pf_features=(2, -1), sv_features=(1, 2))
    rows = dk.Features.from_cmssw(path)(array, model).flatten()
    buckets = rows.buckets()
    assert buckets is not None
    for batch in rows.split(8, 10**6, buckets):
        made = rows.tensors(rows.features(batch.which), batch.lengths)
        length = made["pf_features"].shape[2]
        assert 3 <= length <= 7
        for tensor, i in zip(made["pf_features"], np.arange(len(rows))[batch.which], strict=True):
            np.testing.assert_array_equal(tensor, by_cmssw(config, "pf_features", jets[i], 7)[:, :length])


def write(path: Path, **groups: dict[str, float]) -> Path:
    """A configuration whose groups have 16 values of variables that are not changed."""
    same = {"median": 0, "norm_factor": 1, "lower_bound": -1e32, "upper_bound": 1e32, "replace_inf_value": 0}
    config: dict[str, Any] = {"input_names": list(groups), "output_names": ["x", "y"]}
    for name, variables in groups.items():
        config[name] = {
            "var_names": list(variables),
            "var_infos": dict.fromkeys(variables, same),
            "var_length": 16,
        }
    path.write_text(json.dumps(config))
    return path


def pfnano() -> tuple[ak.Array, dict[str, Any]]:
    """Jets with candidates and vertices in the columns of PFNano, and the flat numbers in float64."""
    rng = np.random.default_rng(8)
    counts, vertices = np.array([5, 0, 9]), np.array([1, 0, 2])
    jet = {
        "pt": np.array([500.0, 600, 700]),
        "eta": np.array([1.0, 0.2, -1.4]),
        "phi": np.array([3.0, 0, -3.1]),
    }
    n, m = counts.sum(), vertices.sum()
    track = rng.random(n) > 0.4
    cand = {
        "pt": rng.uniform(1, 90, n),
        "eta": np.repeat(jet["eta"], counts) + rng.normal(0, 0.2, n),
        "phi": (np.repeat(jet["phi"], counts) + rng.normal(0, 0.2, n) + np.pi) % (2 * np.pi) - np.pi,
        "mass": np.full(n, 0.14),
        "trkChi2": np.where(track, rng.uniform(0, 9, n), -1),
        "d0": np.where(track, rng.normal(0, 0.1, n), -1),
        "d0Err": np.where(track, rng.uniform(0.01, 0.1, n), -1),
        "dz": np.where(track, rng.normal(0, 0.1, n), -1),
        "dzErr": np.where(track, rng.uniform(0.01, 0.1, n), -1),
    }
    ints = {"pdgId": rng.choice([211, -211, 130, 22, -11, 13, 1], n), "pvAssocQuality": rng.integers(0, 8, n)}
    ints |= {
        "charge": rng.integers(-1, 2, n),
        "lostInnerHits": rng.integers(-1, 2, n),
        "trkQuality": rng.integers(0, 6, n),
    }
    sv = {"pt": rng.uniform(9, 90, m), "eta": rng.normal(0, 1, m), "phi": np.array([-3.1, 3.0, -3.0])}
    sv |= {k: rng.uniform(0, 3, m) for k in ("mass", "chi2", "dxy", "dxySig", "dlen", "dlenSig", "pAngle")}
    jets = ak.zip({k: v.astype(F) for k, v in jet.items()})
    columns = {k: v.astype(F) for k, v in cand.items()} | ints
    jets["constituents"] = ak.unflatten(ak.zip(columns), counts)
    jets["svs"] = ak.unflatten(ak.zip({k: v.astype(F) for k, v in sv.items()}), vertices)
    flat = cand | ints | {"track": track, "row": np.repeat(np.arange(3), counts), "counts": counts}
    return jets, {
        "jet": jet,
        "cand": flat,
        "sv": sv | {"row": np.repeat(np.arange(3), vertices), "counts": vertices},
    }


def test_variables_of_cmssw_follow_from_the_columns_of_pfnano(tmp_path: Path) -> None:
    """Each against CMSSW's formula, computed here in float64 on flat arrays."""
    jets, true = pfnano()
    cand, sv, jet = true["cand"], true["sv"], true["jet"]

    def relative(items: dict[str, Any]) -> tuple[Any, Any]:
        sign = np.where(jet["eta"] > 0, 1, -1)[items["row"]]
        dphi = np.angle(np.exp(1j * (items["phi"] - jet["phi"][items["row"]])))
        return sign * (items["eta"] - jet["eta"][items["row"]]), dphi

    eta, phi = relative(cand)
    pid, track = np.abs(cand["pdgId"]), cand["track"]
    energy = np.sqrt((cand["pt"] * np.cosh(cand["eta"])) ** 2 + cand["mass"] ** 2)
    particles = {
        "pfcand_mask": np.ones(len(pid)),
        "pfcand_etarel": eta,
        "pfcand_phirel": phi,
        "pfcand_deltaR": np.hypot(eta, phi),
        "pfcand_abseta": np.abs(cand["eta"]),
        "pfcand_pt_log_nopuppi": np.log(cand["pt"]),
        "pfcand_e_log_nopuppi": np.log(energy),
        "pfcand_charge": cand["charge"],
        "pfcand_isEl": pid == 11,
        "pfcand_isMu": pid == 13,
        "pfcand_isGamma": pid == 22,
        "pfcand_isChargedHad": pid == 211,
        "pfcand_isNeutralHad": pid == 130,
        "pfcand_VTX_ass": cand["pvAssocQuality"],
        "pfcand_lostInnerHits": cand["lostInnerHits"],
        "pfcand_quality": cand["trkQuality"],
        "pfcand_normchi2": np.where(track, np.floor(cand["trkChi2"]), 999),
        "pfcand_dxy": np.where(track, cand["d0"], 0),
        "pfcand_dz": np.where(track, cand["dz"], 0),
        "pfcand_dxysig": np.where(track, cand["d0"] / cand["d0Err"], 0),
        "pfcand_dzsig": np.where(track, cand["dz"] / cand["dzErr"], 0),
    }
    eta, phi = relative(sv)
    vertices = {
        "sv_mask": np.ones(3),
        "sv_etarel": eta,
        "sv_phirel": phi,
        "sv_deltaR": np.hypot(eta, phi),
        "sv_abseta": np.abs(sv["eta"]),
        "sv_mass": sv["mass"],
        "sv_pt_log": np.log(sv["pt"]),
        "sv_normchi2": sv["chi2"],
        "sv_dxy": sv["dxy"],
        "sv_dxysig": sv["dxySig"],
        "sv_d3d": sv["dlen"],
        "sv_d3dsig": sv["dlenSig"],
        "sv_costhetasvpv": -np.cos(sv["pAngle"]),
    }
    path = write(tmp_path / "preprocess.json", pf=particles, sv=vertices)
    made = ours(path, jets, spec(pf=(len(particles), 16), sv=(len(vertices), 16)))
    for group, variables, items in (("pf", particles, cand), ("sv", vertices, sv)):
        there = np.arange(16) < items["counts"][:, None]
        for i, (name, values) in enumerate(variables.items()):
            np.testing.assert_allclose(made[group][:, i][there], values, rtol=3e-6, atol=3e-6, err_msg=name)
            assert not made[group][:, i][~there].any()


def test_one_value_for_each_jet_is_a_list_of_one(tmp_path: Path) -> None:
    """As the jet features of the global transformer."""
    path = tmp_path / "preprocess.json"
    number = {"median": 7, "norm_factor": 2}
    group = {"var_names": ["jet_pt"], "var_infos": {"jet_pt": number}, "min_length": 1, "max_length": 1}
    path.write_text(json.dumps({"input_names": ["jet_features"], "jet_features": group}))
    made = ours(path, ak.Array([{"jet_pt": 8.0}, {"jet_pt": 300.0}]), spec(jet_features=(1, 1)))[
        "jet_features"
    ]
    np.testing.assert_array_equal(made, [[[2]], [[5]]])


def test_what_weaver_exports_for_cmssw_gives_the_same_again(weaver: Any, tmp_path: Path) -> None:
    """A data configuration, and the JSON that weaver makes of it, where both pad with a constant."""
    yaml = tmp_path / "data.yaml"
    yaml.write_text(
        "new_variables: {part_loge: np.log(part_energy)}\n"
        "inputs: {pf_x: {length: 6, vars: [[part_loge, 2.0, 0.7], [part_px, null], [part_py, 0, 2, -3, 3]]}}\n"
        "labels: {type: simple, value: [top, qcd]}\n"
    )
    weaver.DataConfig.load(str(yaml)).export_json(str(tmp_path / "preprocess.json"))
    rng = np.random.default_rng(0)
    counts = [0, 1, 6, 9]
    columns = {
        name: ak.unflatten(rng.uniform(1, 9, 16).astype(F), counts)
        for name in ("part_energy", "part_px", "part_py")
    }
    jets = ak.zip(columns, depth_limit=1)
    jets["part_loge"] = np.log(jets.part_energy)
    model = spec(x=(3, 6))
    rows = dk.Features.from_weaver(yaml)(jets, model).flatten()
    made = ours(tmp_path / "preprocess.json", jets, model)
    np.testing.assert_array_equal(made["x"], rows.tensors(rows.features(slice(0, 4)))["x"])
    assert dk.Features.from_cmssw(tmp_path / "preprocess.json").labels == ("top", "qcd")


GOOD = {
    "input_names": ["pf"],
    "pf": {
        "var_names": ["a"],
        "var_infos": {"a": {"median": 0, "norm_factor": 1}},
        "min_length": 2,
        "max_length": 4,
    },
}
BAD = {
    "no input_names": ({"input_names": []}, "it has no input_names"),
    "a group": ({"input_names": ["pf", "sv"]}, "input_names has sv, which the file does not describe"),
    "one too many": ({"sv": {}}, "the file has sv, which input_names does not name"),
    "variables": ({"pf": {"var_names": []}}, "pf has no var_names"),
    "numbers": ({"pf": {"var_infos": {}}}, "pf.var_infos has no a"),
    "a median": ({"pf": {"var_infos": {"a": {"norm_factor": 1}}}}, "pf.var_infos.a.median is None; a number"),
    "a key": (
        {"pf": {"var_infos": {"a": {"median": 0, "norm": 1}}}},
        "pf.var_infos.a has norm; known are median",
    ),
    "a key of a group": ({"pf": {"pad_mode": "wrap"}}, "pf has pad_mode; known are var_names"),
    "padding out of bounds": (
        {"pf": {"var_infos": {"a": {"median": 0, "norm_factor": 1, "pad": 9}}}},
        "pf.var_infos.a.pad is 9, not between lower_bound, -5, and upper_bound, 5",
    ),
    "lengths": ({"pf": {"min_length": 5}}, "pf.min_length is 5, more than max_length, 4"),
    "a length": ({"pf": {"max_length": None}}, "pf.max_length is None; a whole number"),
    "a shape": ({"pf": {"input_shape": [1, 2, 4]}}, r"pf.input_shape is \[1, 2, 4\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_explained(case: str, tmp_path: Path) -> None:
    change, message = BAD[case]
    config = GOOD | {k: GOOD.get(k, {}) | v if isinstance(v, dict) else v for k, v in change.items()}
    path = tmp_path / "preprocess.json"
    path.write_text(json.dumps(config))
    with pytest.raises(SpecError, match=f"features .*preprocess.json: {message}"):
        dk.Features.from_cmssw(path)


def test_no_json_and_no_file_are_explained(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="gone.json: No such file"):
        dk.Features.from_cmssw(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SpecError, match="bad.json: Expecting"):
        dk.Features.from_cmssw(tmp_path / "bad.json")


def test_a_model_of_another_length_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "preprocess.json"
    path.write_text(json.dumps(GOOD))
    jets = ak.Array([{"a": [1.0]}])
    for length in (1, 5):
        with pytest.raises(SpecError, match=r"input 'pf' has rows of shape \[1, 4\]"):
            ours(path, jets, spec(pf=(1, length)))
    with pytest.raises(SpecError, match=r"say so: from_cmssw\(..., inputs={'x': NAME}\)"):
        ours(path, jets, spec(x=(1, 4), z=(1, 4)))
    assert ours(path, jets, spec(x=(1, 3)))["x"].tolist() == [[[1, 0, 0]]]


def test_a_variable_that_pfnano_does_not_have_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "preprocess.json", pf={"pfcand_btagEtaRel": 0})
    with pytest.raises(SpecError, match="no variable pfcand_btagEtaRel: .*; their svs have"):
        ours(path, pfnano()[0], spec(pf=(1, 16)))


def test_events_of_pfnano_hold_candidates_vertices_and_what_the_links_tell(tmp_path: Path) -> None:
    """Links out of order, vertices that NanoAOD does not keep, candidates of two jets with other numbers in each."""
    fat = ak.zip(
        {"pt": [[500.0, 400.0], [], [300.0]], "eta": [[1.0, -1.0], [], [0.5]], "phi": [[0.0, 1.0], [], [2.0]]}
    )
    candidates = ak.Array([[{"pt": 1.0}, {"pt": 2.0}, {"pt": 3.0}], [], [{"pt": 4.0}]])
    links = {
        "jetIdx": [[1, 0, 0, 1], [], [0]],
        "pFCandsIdx": [[2, 0, 2, 1], [], [0]],
        "btagEtaRel": [[5.0, 6, 7, 8], [], [9]],
    }
    vertices = ak.Array([[{"mass": 1.0}, {"mass": 2.0}], [{"mass": 3.0}], []])
    to_vertices = {"jetIdx": [[1, 0, 0], [], [0]], "sVIdx": [[1, -1, 0], [], [-1]]}
    events = ak.zip(
        {
            "FatJet": fat,
            "PFCands": candidates,
            "FatJetPFCands": ak.zip({**links, "pt": links["btagEtaRel"]}),
            "SV": vertices,
            "FatJetSVs": ak.zip(to_vertices),
        },
        depth_limit=1,
    )
    jets = dk.link_constituents(events)
    assert jets.constituents.pt.tolist() == [[[1, 3], [3, 2]], [], [[4]]]
    assert jets.constituents.btagEtaRel.tolist() == [[[6, 7], [5, 8]], [], [[9]]]
    jets["svs"] = dk.secondary_vertices(events)
    assert jets.svs.mass.tolist() == [[[1], [2]], [], [[]]]
    path = write(tmp_path / "preprocess.json", pf={"pfcand_btagEtaRel": 0}, sv={"sv_mass": 0})
    made = ours(path, jets, spec(pf=(1, 16), sv=(1, 16)))
    np.testing.assert_array_equal(made["pf"][:, 0, :2], [[6, 7], [5, 8], [9, 0]])
    np.testing.assert_array_equal(made["sv"][:, 0, 0], [1, 2, 0])
    with pytest.raises(InputError, match="no Jet, JetSVs; the events have FatJet"):
        dk.secondary_vertices(events, "Jet")
