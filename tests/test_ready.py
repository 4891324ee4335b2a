"""Features that are ready are those of weaver for the same configuration, from files and from arrays of NanoAOD."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
from weaver_inputs import by_weaver, spec

import daskonic as dk
from daskonic import demo, tagging
from daskonic.errors import ConfigError, SpecError
from daskonic.features.features import READY

NAMES = ("jetclass-full", "jetclass-kin", "jetclass-kinpid", "nanoaod-ak4", "nanoaod-ak8")
JETCLASS = {"jetclass-kin": 7, "jetclass-kinpid": 13, "jetclass-full": 17}


def tensors(made_by: dk.Features, jets: Any, **shapes: tuple[int, ...]) -> dict[str, Any]:
    rows = made_by(jets, spec(shapes)).flatten()
    return rows.tensors(rows.features(slice(0, len(rows))))


@pytest.fixture(scope="module")
def shipped() -> tuple[Path, ak.Array]:
    """A file in the layout of PFNano, and its jets in the columns of JetClass, made by the example's own code."""
    examples = Path(__file__).parents[1] / "examples/top_tagging"
    sys.path.insert(0, str(examples))
    try:
        import inputs
    finally:
        sys.path.remove(str(examples))
    path = Path(demo.shipped().jets[0])
    table = ak.to_packed(inputs.read_jets([path])[:400])  # weaver takes no slices
    table["part_pt"] = np.hypot(table.part_px, table.part_py)
    return path, table


@pytest.mark.parametrize("name", JETCLASS)
def test_jets_of_a_file_have_the_inputs_that_weaver_makes_of_jetclass(
    weaver: Any, name: str, shipped: tuple[Path, ak.Array], tmp_path: Path
) -> None:
    """Two roads: daskonic from PFNano's columns, and weaver from JetClass's of the same jets."""
    path, table = shipped
    configuration = tmp_path / "jetclass.yaml"
    text = (READY / f"{name}.yaml").read_text()
    configuration.write_text(f"{text}labels: {{type: custom, value: {{}}}}\n")
    expected = by_weaver(weaver, configuration, ak.unflatten(table, [len(table)]))
    features = dk.Features.ready(name)
    jets = ak.flatten(tagging.read_file(path, features).jets)[: len(table)]
    shapes = {"points": (2, 128), "features": (JETCLASS[name], 128), "vectors": (4, 128), "mask": (1, 128)}
    made = tensors(features, jets, **shapes)
    for key in shapes:
        np.testing.assert_allclose(made[key], expected[f"pf_{key}"], rtol=2e-5, atol=2e-5, err_msg=key)
    shorter = tensors(features, jets, mask=(1, 40))["mask"]
    np.testing.assert_array_equal(shorter, made["mask"][:, :, :40])


def nano(**changes: float) -> ak.Array:
    """Three jets of two events in the columns of NanoAOD."""
    ak4 = {
        "chHEF": 0.6,
        "neHEF": 0.1,
        "chEmEF": 0.05,
        "neEmEF": 0.2,
        "muEF": 0.05,
        "area": 0.5,
        "nConstituents": 20,
    }
    ak8 = {"msoftdrop": 80.0, "tau1": 0.4, "tau2": 0.2, "tau3": 0.15, "tau4": 0.1}
    same = {name: np.full(3, value) for name, value in (ak4 | ak8 | changes).items()}
    kinematics = {
        "pt": np.array([30.0, 400, 55]),
        "eta": np.array([-1.5, 0.5, 2]),
        "mass": np.array([5.0, 90, 9]),
    }
    return ak.unflatten(ak.zip(same | kinematics | {"phi": np.zeros(3)}), [2, 1])


def test_numbers_of_a_jet_are_those_of_nanoaod() -> None:
    """For a model with one input, whatever its name."""
    made = tensors(dk.Features.ready("nanoaod-ak4"), nano(), input__0=(10,))["input__0"]
    np.testing.assert_allclose(
        made[0], [np.log(30), 1.5, np.log(6), 0.6, 0.1, 0.05, 0.2, 0.05, 0.5, 20], rtol=1e-6
    )
    made = tensors(dk.Features.ready("nanoaod-ak8"), nano(), x=(7,))["x"]
    np.testing.assert_allclose(
        made[1], [np.log(400), 0.5, np.log(91), np.log(81), 0.5, 0.75, 2 / 3], rtol=1e-6
    )


def test_a_jet_without_substructure_has_zeros() -> None:
    """NanoAOD has -1 for a soft-drop mass that is not there."""
    made = tensors(dk.Features.ready("nanoaod-ak8"), nano(msoftdrop=-1, tau1=0, tau2=0, tau3=0), x=(7,))["x"]
    assert not made[:, 3:].any()


def test_those_that_are_there_are_listed() -> None:
    with pytest.raises(ConfigError, match=f"no features 'jetclass' are ready; there are {', '.join(NAMES)}"):
        dk.Features.ready("jetclass")
    assert dk.Features.ready.__doc__ is not None
    for name in NAMES:
        assert f'"{name}"' in dk.Features.ready.__doc__
        assert repr(dk.Features.ready(name)) == f"Features({name})"


def test_a_column_that_is_missing_is_named() -> None:
    with pytest.raises(SpecError, match="features nanoaod-ak8: no variable jet_tau1 "):
        tensors(
            dk.Features.ready("nanoaod-ak8"),
            nano()[["pt", "eta", "mass", "msoftdrop", "tau2", "tau3", "tau4"]],
            x=(7,),
        )


def test_the_same_name_is_the_same_features() -> None:
    first, again = dk.Features.ready("jetclass-kin"), dk.Features.ready("jetclass-kin")
    assert first.digest == again.digest != dk.Features.ready("jetclass-full").digest
