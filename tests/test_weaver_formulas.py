"""Any data configuration that weaver takes gives weaver's tensors, and formulas that mix jets are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from weaver_inputs import by_weaver, make_jets, ours, spec

import daskonic as dk
from daskonic.errors import SpecError


def test_stored_parameters_of_an_automatic_training_are_used(weaver: Any, tmp_path: Path) -> None:
    text = """
new_variables: {part_e_log: np.log(part_energy)}
preprocess:
  method: auto
  params:
    part_e_log: {length: 7, pad_mode: wrap, center: 2.5, scale: 0.3, min: -0.5, max: 0.5, pad_value: 0}
inputs:
  pf_features: {length: 7, pad_mode: wrap, vars: [part_e_log]}
labels: {type: simple, value: [a]}
"""
    path = tmp_path / "train.auto.yaml"
    path.write_text(text)
    jets = make_jets(50)
    made = ours(path, jets, spec({"features": (1, 7)}))["features"]
    np.testing.assert_allclose(made, by_weaver(weaver, path, jets)["pf_features"], rtol=1e-6, atol=1e-6)
    assert np.abs(made).max() == 0.5


def test_what_weaver_wrote_in_the_training_is_found_beside_the_file(weaver: Any, tmp_path: Path) -> None:
    """By its name, which has the file's checksum; weaver takes it in the same way."""
    path = tmp_path / "train.yaml"
    path.write_text(
        "new_variables: {part_e_log: np.log(part_energy)}\npreprocess: {method: auto}\n"
        "inputs: {pf_x: {length: 7, vars: [part_e_log]}}\nlabels: {type: simple, value: [a]}\n"
    )
    with pytest.raises(SpecError, match="'part_e_log' is standardised automatically"):
        dk.Features.from_weaver(path)
    config = yaml.safe_load(path.read_text())
    numbers = {"center": 2.5, "scale": 0.3, "min": -5, "max": 5, "pad_value": 0}
    config["preprocess"]["params"] = {"part_e_log": {"length": 7, "pad_mode": "wrap", **numbers}}
    written = tmp_path / f"train.{hashlib.md5(path.read_bytes()).hexdigest()}.auto.yaml"
    written.write_text(yaml.safe_dump(config))
    jets = make_jets(20)
    made = ours(path, jets, spec({"x": (1, 7)}))["x"]
    np.testing.assert_allclose(made, by_weaver(weaver, written, jets)["pf_x"], rtol=1e-6, atol=1e-6)
    assert dk.Features.from_weaver(path).digest == dk.Features.from_weaver(written).digest


NUMBERS = st.one_of(
    st.tuples(),
    st.tuples(st.none()),
    st.tuples(st.floats(-3, 3, width=32), st.floats(-2, 2, width=32)),
    st.tuples(
        st.floats(-3, 3, width=32),
        st.floats(0.125, 50, width=32),
        st.floats(-9, 0, width=32),
        st.floats(0, 9, width=32),
        st.floats(-9, 9, width=32),
    ),
)
SOURCES = {
    "part": (
        "part_px",
        "part_energy",
        "part_charge",
        "np.log(part_energy)",
        "part_px > 0",
        "part_energy / jet_pt",
    ),
    "jet": ("jet_pt", "np.log(jet_pt)", "jet_number", "jet_pt > 600"),
}


@st.composite
def configurations(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """A data configuration, its parameters in lists or stored, and the shapes of the model."""
    variables: dict[str, str] = {}
    inputs: dict[str, Any] = {}
    params: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(draw(st.integers(1, 3))):
        length = draw(st.sampled_from([None, 1, 4, 9]))
        mode = draw(st.sampled_from(["wrap", "constant"]))
        kinds = [
            draw(st.sampled_from(["part", "part", "jet"] if length else ["jet"]))
            for _ in range(draw(st.integers(1, 3)))
        ]
        lines = []
        for j, kind in enumerate(kinds):
            name = f"{kind}_{i}_{j}"
            sources = [s for s in SOURCES[kind] if length is None or s != "jet_number"]
            variables[name] = draw(st.sampled_from(sources)) + " * 1"
            numbers = draw(NUMBERS)
            lines.append([name, *numbers] if numbers or draw(st.booleans()) else name)
            told = [*numbers, *[None, 1.0, -5.0, 5.0, 0.0][len(numbers) :]]
            keys = ("center", "scale", "min", "max", "pad_value")
            params[name] = dict(zip(keys, told, strict=True)) | {"length": length, "pad_mode": mode}
        inputs[f"in{i}"] = {"length": length, "pad_mode": mode, "vars": lines}
        shapes[f"in{i}"] = (len(lines), length) if length else (len(lines),)
    stored = draw(st.booleans())
    config = {
        "treename": "tree",
        "selection": "jet_pt > 1e9",
        "test_time_selection": "jet_pt > 1e9",
        "preprocess": {"method": "manual", "params": params if stored else None},
        "new_variables": variables,
        "inputs": {
            k: v | {"vars": [r[0] if isinstance(r, list) else r for r in v["vars"]]}
            for k, v in inputs.items()
        }
        if stored
        else inputs,
        "labels": {"type": "custom", "value": {"label_truth": "jet_truth"}},
        "monitor_variables": ["jet_pt"],
        "weights": None,
    }
    return config, shapes


@settings(max_examples=30, deadline=None)
@given(
    configurations(),
    st.lists(st.sampled_from([0, 1, 2, 4, 9, 30]), min_size=1, max_size=6),
    st.integers(0, 2**16),
)
def test_any_configuration_gives_the_tensors_of_weaver(
    weaver: Any, tmp_path_factory: Any, drawn: Any, counts: list[int], seed: int
) -> None:
    """Empty jets, one constituent, more than the length; values of any size; one value for each jet, many, and both
    in one input; numbers in the list of variables or stored; no selection is applied, no label needed.
    """
    config, shapes = drawn
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    rng = np.random.default_rng(seed)
    size = sum(counts)
    spread = np.float32(10.0) ** rng.integers(-3, 9, size)
    jets = ak.zip(
        {
            "part_px": ak.unflatten((rng.normal(size=size) * spread).astype("f4"), counts),
            "part_energy": ak.unflatten(rng.uniform(0.1, 1, size).astype("f4") * spread, counts),
            "part_charge": ak.unflatten(rng.integers(-1, 2, size).astype("i4"), counts),
            "jet_pt": rng.uniform(400, 900, len(counts)).astype("f4"),
            "jet_number": rng.integers(0, 2**40, len(counts)),
        },
        depth_limit=1,
    )
    expected = by_weaver(weaver, path, ak.unflatten(jets, [len(counts)]))
    model = spec({k: () if v == (1,) else v for k, v in shapes.items()})
    made = ours(path, jets, model)
    for name in shapes:
        assert made[name].shape == expected[name].shape
        np.testing.assert_allclose(made[name], expected[name], rtol=2e-6, atol=1e-6, err_msg=name)


HELPERS = {
    "a component": "_p4_from_pxpypze(part_px, part_py, part_pz, part_energy).pt",
    "a named four-vector": "part_p4.eta",
    "a jet's, for each constituent": "part_p4.deltaR(jet_p4)",
    "mass": "_p4_from_ptetaphim(part_pt, part_eta, part_phi, 1 + part_pt).mass",
    "clip": "_clip(part_px, -1.5, 1.5)",
    "order": "_batch_gather(part_px, _batch_argsort(part_pz))",
    "lists one after the other": "_concat([part_px, part_py], axis=1)",
    "the same in awkward's words": "ak.concatenate([part_px, part_py], axis=-1)",
    "numbers of math": "part_px * math.sqrt(2) + math.log(math.pi)",
    "share": "part_energy / ak.sum(part_energy, axis=-1)",
    "rank": "ak.argsort(ak.argsort(part_px))",
    "first": "part_px - ak.fill_none(ak.firsts(part_px), 0)",
}


@pytest.mark.parametrize("case", HELPERS)
def test_helpers_that_weaver_gives_to_formulas(weaver: Any, case: str, tmp_path: Path) -> None:
    path = tmp_path / "helper.yaml"
    config = {
        "new_variables": {
            "part_pt": "np.hypot(part_px, part_py)",
            "part_eta": "np.arcsinh(part_pz / part_pt)",
            "part_phi": "np.arctan2(part_py, part_px)",
            "part_p4": "_p4_from_pxpypze(part_px, part_py, part_pz, part_energy)",
            "jet_p4": "_p4_from_ptetaphie(jet_pt, jet_eta, jet_phi, jet_pt * np.cosh(jet_eta))",
            "part_x": HELPERS[case],
        },
        "inputs": {"x": {"length": 30, "vars": [["part_x", None]]}},
        "labels": {"type": "custom", "value": {}},
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    rng = np.random.default_rng(4)
    counts = np.array([0, 1, 12, 30, 3])
    jets = ak.zip(
        {f"part_{k}": ak.unflatten(rng.normal(size=46).astype("f4"), counts) for k in ("px", "py", "pz")},
        depth_limit=1,
    )
    jets["part_energy"] = 3 + np.sqrt(jets.part_px**2 + jets.part_py**2 + jets.part_pz**2)
    for name, low, high in (("pt", 400, 900), ("eta", -2, 2), ("phi", -3, 3)):
        jets[f"jet_{name}"] = rng.uniform(low, high, 5).astype("f4")
    expected = by_weaver(weaver, path, ak.unflatten(jets, [5]))["x"]
    np.testing.assert_allclose(ours(path, jets, spec({"x": (1, 30)}))["x"], expected, rtol=1e-5, atol=1e-5)


REFUSED = {
    "jets that are mixed": ("part_px / ak.sum(part_px)", "sum would mix jets; .*axis=1"),
    "another axis": ("part_px / ak.sum(part_px, axis=0)", "sum would mix jets"),
    "the first jet": (
        "part_px - jet_pt[0]",
        r"jet_pt\[0\] chooses among jets; for items of each jet write \[:, n\]",
    ),
    "some jets": ("part_px[::2]", "chooses among jets"),
    "the number of jets": ("part_px / len(part_px)", "len is the number of jets that are read together"),
    "a helper at random": (
        "_batch_permute_indices(part_px)",
        "_batch_permute_indices is not known; .* of weaver _clip",
    ),
    "a variable for math": ("math.sqrt(part_px)", "math.sqrt takes numbers, not variables"),
    "a whole four-vector": (
        "1 * _p4_from_pxpypze(part_px, part_py, part_pz, part_e)",
        "take a component of it",
    ),
    "no component": ("_p4_from_pxpypze(part_px, part_py, part_pz, part_e).colour", "is not known"),
    "a strange list": ("np.log([part_px, part_py])", "can only be concatenated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_formulas_that_do_not_belong_to_one_jet_are_refused(case: str, tmp_path: Path) -> None:
    """Weaver evaluates some of them, with numbers that depend on which jets are read together."""
    text, message = REFUSED[case]
    path = tmp_path / "bad.yaml"
    config = {"new_variables": {"part_x": text}, "inputs": {"x": {"length": 3, "vars": ["part_x"]}}}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SpecError, match=f"variable 'part_x' = .*{message}"):
        dk.Features.from_weaver(path)


def test_a_formula_that_drops_jets_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "drop.yaml"
    path.write_text(
        "new_variables: {part_x: 'part_px[jet_pt > 500]'}\ninputs: {x: {length: 3, vars: [part_x]}}"
    )
    with pytest.raises(SpecError, match="'part_x' = .*has other jets than its arguments"):
        ours(path, make_jets(20), spec({"x": (1, 3)}))


def test_several_values_where_the_input_takes_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lists.yaml"
    for formula in ("part_px", "part_px * jet_pt"):
        path.write_text(
            f"new_variables: {{x: {formula}}}\ninputs: {{jet: {{length: null, vars: [x, jet_pt]}}}}"
        )
        with pytest.raises(SpecError, match="'x' has several values in each jet, and input 'jet' takes one"):
            ours(path, make_jets(20), spec({"jet": (2,)}))


def test_the_only_input_is_the_model_s_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("inputs: {features: {length: null, vars: [jet_pt, jet_eta]}}")
    jets = make_jets(20)
    made = ours(path, jets, spec({"input__0": (2,)}))["input__0"]
    np.testing.assert_array_equal(made[:, 0], ak.flatten(jets.jet_pt))


def test_inputs_numbered_as_triton_s_pytorch_backend_wants_them_are_found(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("inputs: {pf_x: {length: null, vars: [jet_pt]}, other: {length: null, vars: [jet_eta]}}")
    jets = make_jets(20)
    made = ours(path, jets, spec({"x__0": (1,), "other__1": (1,)}))
    np.testing.assert_array_equal(made["x__0"][:, 0], ak.flatten(jets.jet_pt))
    np.testing.assert_array_equal(made["other__1"][:, 0], ak.flatten(jets.jet_eta))
