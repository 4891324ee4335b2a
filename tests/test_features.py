"""Features are checked against the model before anything is sent, and padded as the user says."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import awkward as ak
import cloudpickle
import numpy as np
import pytest

import daskonic as dk
from daskonic.errors import ConfigError, InputError, SpecError
from daskonic.ragged import unflatten
from daskonic.tensors import ModelSpec, TensorSpec

JETS = ak.Array(
    [
        [{"pt": 1.0, "hits": [1.0, 2.0, 3.0]}, {"pt": 2.0, "hits": []}],
        [],
        [{"pt": 3.0, "hits": [4.0]}],
    ]
)


def spec(*inputs: tuple[str, str, tuple[int, ...]]) -> ModelSpec:
    tensors = tuple(TensorSpec(name, np.dtype(dtype), shape) for name, dtype, shape in inputs)
    return ModelSpec("m", "1", tensors, (TensorSpec("y", np.dtype("f4"), (1,)),), 1024)


def tensors(features: dk.Features, objects: Any, model: ModelSpec) -> dict[str, Any]:
    """All rows in one batch."""
    rows = features(objects, model).flatten()
    return rows.tensors(rows.features(slice(0, len(rows))))


def stacked_pt(jets: Any) -> dict[str, Any]:
    return {"x": [jets.pt, jets.pt * 2]}


class TestFunction:
    def test_columns_become_channels(self) -> None:
        made = tensors(dk.Features(stacked_pt), JETS, spec(("x", "f4", (2,))))
        np.testing.assert_array_equal(made["x"], np.float32([[1, 2], [2, 4], [3, 6]]))
        assert made["x"].dtype == np.float32
        assert made["x"].flags.c_contiguous

    def test_rows_keep_the_nesting_of_the_objects(self) -> None:
        rows = dk.Features(stacked_pt)(JETS, spec(("x", "f4", (2,)))).flatten()
        assert ak.to_list(unflatten(np.arange(3), rows.layout)) == [[0, 1], [], [2]]

    def test_jagged_rows_are_padded_to_the_length_of_the_model(self) -> None:
        features = dk.Features(lambda jets: {"x": jets.hits}, pad={"x": dk.Pad(value=-1)})
        made = tensors(features, JETS, spec(("x", "f4", (2,))))
        np.testing.assert_array_equal(made["x"], [[1, 2], [-1, -1], [4, -1]])

    def test_an_open_length_is_that_of_the_longest_row_of_the_batch(self) -> None:
        features = dk.Features(lambda jets: {"x": [jets.hits, -jets.hits]}, pad={"x": dk.Pad(mode="wrap")})
        rows = features(JETS, spec(("x", "f4", (2, -1)))).flatten()
        whole = rows.tensors(rows.features(slice(0, 3)))["x"]
        np.testing.assert_array_equal(whole[:, 0], [[1, 2, 3], [0, 0, 0], [4, 4, 4]])
        assert rows.tensors(rows.features(slice(1, 3)))["x"].shape == (2, 2, 1)
        assert rows.row_nbytes == 2 * 3 * 4

    def test_channels_can_come_last(self) -> None:
        features = dk.Features(
            lambda jets: {"x": [jets.hits, -jets.hits]}, pad={"x": dk.Pad(2, channels="last")}
        )
        made = tensors(features, JETS, spec(("x", "f4", (2, 2))))
        np.testing.assert_array_equal(made["x"][0], [[1, -1], [2, -2]])

    def test_jagged_rows_of_vectors_keep_their_trailing_dimension(self) -> None:
        vectors = ak.to_regular(ak.Array([[[[1.0, 2.0], [3.0, 4.0]], []], [], [[[5.0, 6.0]]]]), axis=3)
        features = dk.Features(lambda jets: {"x": vectors}, pad={"x": dk.Pad(2)})
        made = tensors(features, JETS, spec(("x", "f4", (2, 2))))
        np.testing.assert_array_equal(made["x"], [[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[5, 6], [0, 0]]])

    def test_a_plain_array_is_the_only_input(self) -> None:
        array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        made = tensors(dk.Features.plain(), array, spec(("x", "f4", (4,))))
        np.testing.assert_array_equal(made["x"], array.reshape(6, 4))

    def test_lists_of_the_right_length_need_no_pad(self) -> None:
        made = tensors(dk.Features.plain(), ak.Array([[[1.0, 2.0]], [[3.0, 4.0]]]), spec(("x", "f4", (2,))))
        np.testing.assert_array_equal(made["x"], [[1, 2], [3, 4]])

    def test_missing_jets_are_no_rows(self) -> None:
        rows = dk.Features(stacked_pt)(ak.mask(JETS, JETS.pt > 1), spec(("x", "f4", (2,)))).flatten()
        assert ak.to_list(unflatten(np.arange(2), rows.layout)) == [[None, 0], [], [1]]

    def test_no_events_and_no_jets_make_no_rows(self) -> None:
        for none in (JETS[:0], JETS[1:2]):
            assert len(dk.Features(stacked_pt)(none, spec(("x", "f4", (2,)))).flatten()) == 0

    def test_survives_pickling(self) -> None:
        features = pickle.loads(pickle.dumps(dk.Features(stacked_pt)))
        assert tensors(features, JETS, spec(("x", "f4", (2,))))["x"].shape == (3, 2)


def test_nan_stays_where_it_is_a_missing_value_and_is_an_error_elsewhere() -> None:
    """An infinity never is one."""
    values = np.array([[1, np.nan], [3, 4]], np.float32)
    model = spec(("x", "f4", (2,)))
    made = tensors(dk.Features(plain, nan="keep"), values, model)["x"]
    np.testing.assert_array_equal(made, values)
    with pytest.raises(InputError, match="not finite .* nan='keep'"):
        tensors(dk.Features(plain), values, model)
    with pytest.raises(InputError, match="not finite"):
        tensors(dk.Features(plain, nan="keep"), values * np.inf, model)
    with pytest.raises(ConfigError, match="nan is 'zero'; there are 'error' and 'keep'"):
        dk.Features(plain, nan="zero")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="graphs with NaN are an error"):
        dk.Features(plain, graph=dk.Graph(nodes=["x"]), nan="keep")


def plain(values: Any) -> Any:
    return values


class Callable:
    """A function with a state."""

    def __call__(self, jets: Any) -> dict[str, Any]:
        return stacked_pt(jets)


def test_features_are_known_again_after_pickling_and_apart_from_others() -> None:
    """What was found out about a model with some features is kept for them, and for no others."""
    functions = [stacked_pt, Callable(), functools.partial(stacked_pt), lambda j: j.pt, lambda j: j.hits]
    made = [dk.Features(f) for f in functions]
    again = [cloudpickle.loads(cloudpickle.dumps(f)).identity for f in made]
    assert again == [f.identity for f in made]
    assert len(set(again)) == 4  # the partial is the function


WRONG = {
    "missing input": (lambda j: {"x": j.pt}, (("x", "f4", ()), ("mask", "f4", ())), "mask is missing"),
    "unknown input": (lambda j: {"x": j.pt, "z": j.pt}, (("x", "f4", ()),), "z is none of them"),
    "no mapping": (lambda j: j.pt, (("x", "f4", ()), ("y", "f4", ())), "features must give a mapping"),
    "rank": (lambda j: j.pt, (("x", "f4", (16, 3)),), "needs at least 3 dimensions"),
    "shape": (
        lambda j: {"x": [j.pt, j.pt]},
        (("x", "f4", (3,)),),
        r"have shape \[2\]; the model takes x: float32\[3\]",
    ),
    "dtype": (lambda j: {"x": [j.pt, j.pt]}, (("x", "i8", (2,)),), "float64; the model takes x: int64"),
    "unpadded": (lambda j: j.hits, (("x", "f4", (8,)),), r"pad={'x': dk.Pad\(length\)}"),
    "records": (lambda j: j, (("x", "f4", (8,)),), r"has fields \(pt, hits\)"),
    "text": (lambda j: {"x": "pt"}, (("x", "f4", ()),), "x is str"),
    "rows dropped": (
        lambda j: {"x": j.pt[j.pt > 1]},
        (("x", "f4", ()),),
        "features changed the rows: 3 in the objects, 2",
    ),
    "rows swapped": (lambda j: {"x": j.pt[::-1]}, (("x", "f4", ()),), "features changed the rows"),
    "inputs differ": (
        lambda j: {"x": j.pt, "z": j.pt[j.pt > 1]},
        (("x", "f4", ()), ("z", "f4", ())),
        "do not nest alike",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_function_is_told_what_the_model_takes(case: str) -> None:
    function, inputs, message = WRONG[case]
    with pytest.raises(SpecError, match=message):
        dk.Features(function)(JETS, spec(*inputs)).flatten()


def test_pad_of_an_unknown_input_is_refused() -> None:
    with pytest.raises(SpecError, match="pad names hits"):
        dk.Features(lambda j: {"x": j.hits}, pad={"hits": dk.Pad(3)})(JETS, spec(("x", "f4", (3,))))


def test_pad_of_another_length_than_the_model_is_refused() -> None:
    with pytest.raises(SpecError, match=r"rows of input x have shape \[5\]"):
        dk.Features(lambda j: {"x": j.hits}, pad={"x": dk.Pad(5)})(JETS, spec(("x", "f4", (3,)))).flatten()


@pytest.mark.parametrize("bad", [{"mode": "edge"}, {"length": 0}, {"channels": "middle"}])
def test_a_pad_that_means_nothing_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        dk.Pad(**bad)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_event_and_jet(value: float) -> None:
    jets = ak.Array([[1.0, 2.0], [], [3.0, value]])
    with pytest.raises(InputError, match=r"not finite.*in row 3 \(index 2, 1\)"):
        tensors(dk.Features.plain(), jets, spec(("x", "f4", ())))


def test_values_beyond_the_dtype_of_the_model_are_an_error() -> None:
    with pytest.raises(InputError, match="values from 1 to 5000000000; the model's int32 holds"):
        tensors(dk.Features.plain(), np.array([1, 5_000_000_000]), spec(("x", "i4", ())))
    with pytest.raises(
        InputError, match=r"not finite in float16 for 1 values in rows 0 to 1, the first 100000\.0 in row 1"
    ):
        tensors(dk.Features.plain(), np.array([1.0, 1e5]), spec(("x", "f2", ())))


def test_a_large_finite_sum_is_not_taken_for_infinity() -> None:
    huge = np.full(4, 3e38, np.float32)
    np.testing.assert_array_equal(tensors(dk.Features.plain(), huge, spec(("x", "f4", ())))["x"], huge)


def test_features_need_a_function() -> None:
    with pytest.raises(ConfigError, match=r"Features\.from_weaver"):
        dk.Features("particlenet.yaml")  # type: ignore[arg-type]
