"""A weaver data configuration gives the tensors that weaver itself gives, and bad ones are explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
from weaver_inputs import by_weaver, make_jets, ours, spec

import daskonic as dk
from daskonic.errors import InputError, SpecError

YAML = """
selection: (jet_pt > 500)
new_variables:
  part_mask: ak.ones_like(part_energy)
  part_pt: np.hypot(part_px, part_py)
  part_pt_log: np.log(part_pt)
  part_e_log: np.log(part_energy)
  part_logptrel: np.log(part_pt/jet_pt)
  part_d0: np.tanh(part_d0val)
  part_near: (part_pt > 2) & ~(np.abs(part_deta) > 0.4)
  part_share: part_energy / ak.sum(part_energy, axis=1)
  jet_logpt: np.log(jet_pt)
preprocess: {method: manual}
inputs:
  pf_points:
    length: 20
    pad_mode: wrap
    vars: [[part_deta, null], [part_dphi, null]]
  pf_features:
    length: 20
    pad_mode: wrap
    vars:
      - [part_pt_log, 1.7, 0.7]
      - [part_e_log, 2.0, 0.7, -1, 2]
      - [part_logptrel, -4.7, 0.7]
      - [part_deta, null]
  pf_constant:
    length: 12
    vars:
      - [part_d0, 0.1, 2.0, -3, 3, -7]
      - [part_near, null, 1, -5, 5, 0.5]
      - [part_share, 0.5]
  pf_mask:
    length: 20
    pad_mode: constant
    vars: [[part_mask, null]]
  jet:
    length: null
    vars: [[jet_logpt, 6.0, 2.0], [jet_eta, null]]
labels: {type: simple, value: [label_QCD, label_top]}
"""

MODEL = {"points": (2, 20), "features": (4, 20), "pf_constant": (3, 12), "mask": (1, 20), "jet": (2,)}


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "data.yaml"
    path.write_text(YAML)
    return path


def test_tensors_are_those_of_weaver(weaver: Any, yaml: Path) -> None:
    """Points, standardised features, constant padding, a mask, jet variables; short, long and empty jets."""
    jets = make_jets()
    expected = by_weaver(weaver, yaml, jets)
    made = ours(yaml, jets, spec(MODEL))
    assert made["features"].shape == (int(ak.count(jets.jet_pt)), 4, 20)
    for name, key in (
        ("points", "pf_points"),
        ("features", "pf_features"),
        ("pf_constant", "pf_constant"),
        ("mask", "pf_mask"),
        ("jet", "jet"),
    ):
        np.testing.assert_allclose(made[name], expected[key], rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_size_of_a_batch_changes_nothing(yaml: Path) -> None:
    jets = make_jets(20)
    rows = dk.Features.from_weaver(yaml)(jets, spec(MODEL)).flatten()
    whole = rows.tensors(rows.features(slice(0, len(rows))))
    one = [rows.tensors(rows.features(slice(i, i + 1))) for i in range(len(rows))]
    for name in MODEL:
        np.testing.assert_array_equal(whole[name], np.concatenate([b[name] for b in one]))


def test_batches_of_similar_length_are_the_same_rows_without_the_rest_of_the_padding(yaml: Path) -> None:
    """Constant and wrapped inputs, two lengths, rows out of order: each is the beginning of the padded one."""
    jets = make_jets()
    whole = ours(yaml, jets, spec(MODEL))
    open_lengths = {name: (*shape[:1], *[-1] * (len(shape) - 1)) for name, shape in MODEL.items()}
    rows = dk.Features.from_weaver(yaml)(jets, spec(open_lengths)).flatten()
    buckets = rows.buckets()
    assert buckets is not None
    assert buckets.full == (20,)
    seen: list[int] = []
    for batch in rows.split(64, 10_000, buckets):
        which = np.arange(len(rows))[batch.which]
        seen += which.tolist()
        for name, tensor in rows.tensors(rows.features(batch.which), batch.lengths).items():
            assert tensor.shape[2:] == (() if name == "jet" else (batch.lengths[name],))
            expected = whole[name][which]
            np.testing.assert_array_equal(
                tensor, expected[..., : tensor.shape[-1]] if tensor.ndim == 3 else expected
            )
            some = rows.take(which)
            again = some.tensors(some.features(slice(0, len(some))), batch.lengths)
            np.testing.assert_array_equal(tensor, again[name])
    assert sorted(seen) == list(range(len(rows)))
    assert seen != sorted(seen)


def test_inputs_that_the_model_lacks_are_not_made(yaml: Path) -> None:
    rows = dk.Features.from_weaver(yaml)(make_jets(5), spec({"points": (2, 20)})).flatten()
    assert rows.steps == ()
    assert set(rows.columns) == {"part_deta", "part_dphi"}


def test_other_names_of_inputs_can_be_told(yaml: Path) -> None:
    model = spec({"x": (2, 20)})
    with pytest.raises(SpecError, match="no input for 'x' of model 'm'; there are pf_points, pf_features"):
        ours(yaml, make_jets(5), model)
    assert ours(yaml, make_jets(20), model, inputs={"x": "pf_points"})["x"].shape[1:] == (2, 20)


def test_no_events_and_no_jets_make_no_rows(yaml: Path) -> None:
    features = dk.Features.from_weaver(yaml)
    jets = make_jets(20)
    for none in (
        jets[:0],
        ak.Array([]),
        ak.Array([[], []]),
        ak.drop_none(ak.mask(jets, jets.jet_pt < 0), axis=1),
    ):
        assert len(features(none, spec(MODEL)).flatten()) == 0


class TestNan:
    def jets(self) -> ak.Array:
        jets = make_jets(200)
        d0 = ak.to_numpy(ak.flatten(jets.part_d0val, axis=None)).copy()
        d0[100] = np.nan
        counts = ak.num(ak.flatten(jets.part_d0val))
        flat = ak.flatten(jets)
        flat["part_d0val"] = ak.unflatten(d0, counts)
        return ak.unflatten(flat, ak.num(jets))

    def test_is_an_error_that_names_variable_and_jet(self, yaml: Path) -> None:
        with pytest.raises(InputError, match=r"'part_d0' \(input 'pf_constant'\) is not finite.*nan='zero'"):
            ours(yaml, self.jets(), spec(MODEL))

    def test_becomes_zero_as_in_weaver_if_asked_for(self, weaver: Any, yaml: Path) -> None:
        jets = self.jets()
        expected = by_weaver(weaver, yaml, jets)["pf_constant"]
        np.testing.assert_allclose(
            ours(yaml, jets, spec(MODEL), nan="zero")["pf_constant"], expected, rtol=1e-6, atol=1e-6
        )


def nano_jets() -> tuple[ak.Array, dict[str, Any]]:
    """Jets with constituents in the names of NanoAOD, and the same kinematics in float64."""
    rng = np.random.default_rng(3)
    counts = np.array([3, 0, 5, 1])
    n = counts.sum()
    jet = {
        "pt": rng.uniform(500, 900, 4),
        "eta": np.array([1.5, -1.2, -0.3, 0.0]),
        "phi": np.array([3.1, 0, -3.0, 1]),
    }
    jet["mass"] = rng.uniform(50, 200, 4)
    part = {"pt": rng.uniform(1, 90, n), "mass": np.full(n, 0.139), "charge": rng.integers(-1, 2, n)}
    part["eta"] = np.repeat(jet["eta"], counts) + rng.normal(0, 0.2, n)
    part["phi"] = (np.repeat(jet["phi"], counts) + rng.normal(0, 0.2, n) + np.pi) % (2 * np.pi) - np.pi
    part["pdgId"] = rng.choice([211, -211, 22, 130, 11, -13], n)
    part["d0"], part["d0Err"] = rng.normal(0, 0.1, n), rng.uniform(0.01, 0.1, n)
    as_float = {
        k: v.astype(np.float32) if v.dtype.kind == "f" else v.astype(np.int32) for k, v in part.items()
    }
    jets = ak.zip({k: v.astype(np.float32) for k, v in jet.items()})
    jets["constituents"] = ak.unflatten(ak.zip(as_float), counts)
    return ak.unflatten(jets, [2, 0, 2]), {"jet": jet, "part": part, "row": np.repeat(np.arange(4), counts)}


def test_variables_of_jetclass_follow_from_the_fields_of_nanoaod(tmp_path: Path) -> None:
    """Each against its definition, computed here in float64 on flat arrays."""
    jets, true = nano_jets()
    jet, part, row = true["jet"], true["part"], true["row"]
    energy = np.sqrt((part["pt"] * np.cosh(part["eta"])) ** 2 + part["mass"] ** 2)
    jet_energy = np.sqrt((jet["pt"] * np.cosh(jet["eta"])) ** 2 + jet["mass"] ** 2)
    dphi = np.angle(np.exp(1j * (part["phi"] - jet["phi"][row])))
    pid = np.abs(part["pdgId"])
    expected = {
        "part_px": part["pt"] * np.cos(part["phi"]),
        "part_py": part["pt"] * np.sin(part["phi"]),
        "part_pz": part["pt"] * np.sinh(part["eta"]),
        "part_energy": energy,
        "part_deta": (part["eta"] - jet["eta"][row]) * np.where(jet["eta"] > 0, 1, -1)[row],
        "part_dphi": dphi,
        "part_d0val": part["d0"],
        "part_d0err": part["d0Err"],
        "part_charge": part["charge"],
        "part_isElectron": pid == 11,
        "part_isMuon": pid == 13,
        "part_isPhoton": pid == 22,
        "part_isChargedHadron": (part["charge"] != 0) & (pid != 11) & (pid != 13),
        "part_isNeutralHadron": (part["charge"] == 0) & (pid != 22),
        "ratio": energy / jet_energy[row],
    }
    path = tmp_path / "all.yaml"
    lines = "".join(f"      - [{name}, null]\n" for name in expected)
    path.write_text(
        f"new_variables:\n  ratio: part_energy/jet_energy\ninputs:\n  x:\n    length: 6\n    vars:\n{lines}"
    )
    made = ours(path, jets, spec({"x": (len(expected), 6)}))["x"]
    there = np.arange(6) < np.array([3, 0, 5, 1])[:, None]
    for i, (name, values) in enumerate(expected.items()):
        np.testing.assert_allclose(made[:, i][there], values, rtol=3e-6, atol=3e-6, err_msg=name)
        assert not made[:, i][~there].any()


def test_a_formula_says_what_a_name_means_and_not_a_field_of_that_name_without_prefix(tmp_path: Path) -> None:
    """JetClass calls tanh(d0) ``part_d0``, and PFNano's ``d0`` is no tanh."""
    path = tmp_path / "d0.yaml"
    path.write_text(
        "new_variables: {part_d0: np.tanh(part_d0val), jet_mass: jet_pt / 10, part_pt: 'np.hypot(part_px,part_py)'}\n"
        "inputs: {x: {length: 6, vars: [part_d0, part_pt]}, jet: {length: null, vars: [jet_mass, jet_eta]}}"
    )
    jets, true = nano_jets()
    made = ours(path, jets, spec({"x": (2, 6), "jet": (2,)}))
    there = np.arange(6) < np.array([3, 0, 5, 1])[:, None]
    np.testing.assert_allclose(made["x"][:, 0][there], np.tanh(true["part"]["d0"]), rtol=1e-6)
    np.testing.assert_array_equal(made["x"][:, 1][there], true["part"]["pt"].astype("f4"))
    np.testing.assert_allclose(made["jet"][:, 0], true["jet"]["pt"] / 10, rtol=1e-6)


def test_coffea_nests_the_particles_one_level_deeper(yaml: Path) -> None:
    jets, _ = nano_jets()
    deeper = ak.with_field(
        jets, ak.zip({"pf": jets.constituents, "btag": jets.constituents.pt}), "constituents"
    )
    model = spec({"points": (2, 20), "features": (4, 20)})
    for name, values in ours(yaml, jets, model).items():
        np.testing.assert_array_equal(values, ours(yaml, deeper, model)[name])


def test_a_selection_of_jets_gives_the_same_rows(yaml: Path) -> None:
    """Not contiguous, and with None."""
    jets, _ = nano_jets()
    model = spec({"points": (2, 20), "features": (4, 20), "mask": (1, 20)})
    whole = ours(yaml, jets, model)
    keep = np.array([True, False, True, False])
    nested = ak.unflatten(keep, [2, 0, 2])
    for chosen in (jets[nested], ak.mask(jets, nested)):
        for name, values in ours(yaml, chosen, model).items():
            np.testing.assert_array_equal(values, whole[name][keep])


def test_only_needed_fields_are_named(yaml: Path) -> None:
    features = dk.Features.from_weaver(yaml)
    model = spec({"points": (2, 20), "mask": (1, 20)})
    jet, constituents = features.fields(
        ["pt", "eta", "phi", "mass", "tau1"], ["pt", "eta", "phi", "mass", "d0", "dz"], model
    )
    assert jet == {"eta", "phi"}
    assert constituents == {"pt", "eta", "phi", "mass"}
    with pytest.raises(
        SpecError, match=r"no variable part_d0val .*: neither a field nor a formula; jets have eta, mass"
    ):
        features.fields(["pt", "eta", "phi", "mass"], ["pt", "eta", "phi", "mass"])


def test_labels_and_digest_are_those_of_the_file(yaml: Path) -> None:
    features = dk.Features.from_weaver(yaml)
    assert features.labels == ("label_QCD", "label_top")
    first = features.digest
    yaml.write_text(YAML + "\n# a comment\n")
    assert dk.Features.from_weaver(yaml).digest != first


BAD = {
    "unknown function": (
        "np.log(part_pt)",
        "np.lg(part_pt)",
        "variable 'part_pt_log'.*function np.lg is not known",
    ),
    "a function of the system": ("np.log(part_pt)", "os.system('ls')", "function os.system is not known"),
    "a private name": ("np.log(part_pt)", "part_pt.__class__", "part_pt.__class__ is not known"),
    "a list": ("np.log(part_pt)", '"[part_pt for _ in part_pt]"', "ListComp cannot be used"),
    "and": ("(part_pt > 2) & ~", "(part_pt > 2) and not ", "for arrays write & and |"),
    "no expression": ("np.log(part_pt)", "np.log(part_pt", "is not an expression"),
    "a pad mode": ("pad_mode: wrap", "pad_mode: edge", "no pad_mode 'edge'; there are constant, wrap"),
    "a wrapped mask": ("pad_mode: constant", "pad_mode: wrap", "a mask needs pad_mode constant"),
    "a length": ("length: 12", "length: many", "length is 'many'"),
    "a number": ("[part_share, 0.5]", "[part_share, half]", "is not \\[name, number or null"),
    "too many numbers": ("[part_share, 0.5]", "[part_share, 1, 1, 1, 1, 1, 1]", "at most 5 have a meaning"),
    "automatic": ("method: manual", "method: auto", "auto.yaml that weaver wrote"),
    "no inputs": ("inputs:", "weights:", "it has no inputs"),
    "a section": ("preprocess: {", "preproces: {", "the file has preproces; weaver knows treename"),
    "a key of an input": (
        "    length: 12",
        "    size: 12",
        "input 'pf_constant' has size; weaver knows length",
    ),
    "a key of preprocess": (
        "{method: manual}",
        "{methods: manual}",
        "preprocess has methods; weaver knows method",
    ),
    "a variable that is none": ("[part_share, 0.5]", "{part_share: 0.5}", "in vars is not NAME or"),
    "two meanings": (
        "[part_share, 0.5]",
        "[part_deta, 0.5]",
        "'pf_points' and 'pf_constant' have variable 'part_deta'",
    ),
    "names of files": (
        "selection:",
        "file_magic: {is_top: {top: 1}}\nselection:",
        "file_magic .* of each name: is_top",
    ),
    "names of branches": (
        "selection:",
        "branch_magic: {a: b}\nselection:",
        "branch_magic .* in new_variables",
    ),
    "lacking parameters": (
        "{method: manual}",
        "{method: manual, params: {part_deta: {length: 20}}}",
        "part_deta has no pad_mode, center",
    ),
    "no parameters": (
        "{method: manual}",
        "{method: manual, params: {}}",
        "params has no 'part_deta', which an input needs",
    ),
    "no YAML": ("inputs:", "inputs: [", "features .*data.yaml: while parsing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration_is_explained(case: str, tmp_path: Path) -> None:
    old, new, message = BAD[case]
    path = tmp_path / "data.yaml"
    text = YAML.replace(old, new)
    if case == "automatic":
        text = text.replace("[part_share, 0.5]", "[part_share]")
    assert text != YAML
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        dk.Features.from_weaver(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"features .*gone.yaml: No such file"):
        dk.Features.from_weaver(tmp_path / "gone.yaml")


MISMATCH = {
    "length": (
        spec({"points": (2, 100)}),
        r"rows of shape \[2, 20\] \(2 variables, length 20\); model 'm' takes",
    ),
    "variables": (spec({"features": (5, 20)}), r"4 variables.*model 'm' takes features: float32\[5, 20\]"),
    "rank": (spec({"mask": (20,)}), r"rows of shape \[1, 20\]"),
    "dtype": (spec({"mask": (1, 20)}, "i8"), "variables are float32; model 'm' takes mask: int64"),
}


@pytest.mark.parametrize("case", MISMATCH)
def test_a_model_that_the_configuration_does_not_fit_is_explained(case: str, yaml: Path) -> None:
    model, message = MISMATCH[case]
    with pytest.raises(SpecError, match=message):
        dk.Features.from_weaver(yaml)(make_jets(5), model)


def test_objects_without_fields_are_explained(yaml: Path) -> None:
    with pytest.raises(SpecError, match="need an awkward array of jets with fields such as pt"):
        dk.Features.from_weaver(yaml)(np.zeros((3, 4)), spec(MODEL))
