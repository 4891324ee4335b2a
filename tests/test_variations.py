"""Systematic variations in one call give what one call for each gives, and each distinct row is sent once."""

from __future__ import annotations

import pickle

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import daskonic as dk
from daskonic.config import resolve
from daskonic.errors import ConfigError, InferenceError, InputError, SpecError
from daskonic.features import variations
from daskonic.model import _score
from daskonic.pool import Pool
from daskonic.tensors import ModelSpec, TensorSpec
from daskonic.transport.memory import MemoryTransport

FLOAT = np.dtype("f4")
VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.5])
ROWS = st.lists(st.lists(st.tuples(VALUES, VALUES), max_size=4), max_size=6)


class Counting:
    """A model in memory, 2 numbers to 2, that keeps every row that it was asked for."""

    def __init__(self, length=None, answer=None):
        self.rows = []
        shape = (2,) if length is None else (2, -1)
        spec = ModelSpec("m", "1", (TensorSpec("x", FLOAT, shape),), (TensorSpec("y", FLOAT, (2,)),), 4)

        def record(inputs):
            self.rows += [row.tobytes() for row in inputs["x"]]
            if answer is not None:
                return answer(inputs["x"])
            total = inputs["x"].reshape(len(inputs["x"]), 2, -1).sum(axis=2)
            return {"y": np.stack([total[:, 0] + 10 * total[:, 1], total[:, 1]], axis=1)}

        self.pool = Pool(
            resolve(["host:1"], tolerance=np.inf), lambda _: MemoryTransport("host:1", spec, record)
        )
        self.options = {"trim": "never"}
        if length is not None:
            pad = {"x": dk.Pad(length)}
            self.options["features"] = dk.Features(lambda r: {"x": [r.a, r.b]}, pad=pad)

    def __call__(self, objects, **options):
        return _score(dk.Model("m", **self.options | options), objects, self.pool)

    def close(self):
        self.pool.close()


@pytest.fixture
def counting():
    made = []

    def make(*arguments, **options):
        made.append(Counting(*arguments, **options))
        return made[-1]

    yield make
    for model in made:
        model.close()


def jagged(events, dtype="f4"):
    """Events of rows of two numbers."""
    flat = np.array([row for event in events for row in event], dtype).reshape(-1, 2)
    return ak.unflatten(ak.from_numpy(flat, regulararray=True), np.array([len(e) for e in events], int))


def same(one, other):
    """Equal in type, None, and value."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    else:
        assert str(one.type) == str(other.type)
        assert ak.to_list(one) == ak.to_list(other)


@settings(deadline=None, max_examples=60)
@given(events=st.lists(ROWS, min_size=1, max_size=4), wide=st.lists(st.booleans(), min_size=4, max_size=4))
def test_any_variations_equal_one_by_one_and_no_row_is_sent_twice(events, wide):
    """Whatever their events, counts and precision; equal values in float64 are equal rows."""
    model = Counting()
    arrays = {
        f"v{i}": jagged(rows, "f8" if w else "f4")
        for i, (rows, w) in enumerate(zip(events, wide, strict=False))
    }
    together, report = model(dk.Variations(arrays))
    sent = list(model.rows)
    assert list(together) == list(arrays)
    for name, array in arrays.items():
        same(together[name], model(array)[0])
    rows = [np.array(row, "f4").tobytes() for variation in events for event in variation for row in event]
    assert sorted(sent) == sorted(set(rows))
    assert (report.rows, report.saved) == (len(set(rows)), len(rows) - len(set(rows)))
    model.close()


@settings(deadline=None, max_examples=40)
@given(
    nominal=st.lists(st.lists(st.lists(st.tuples(VALUES, VALUES), max_size=5), max_size=3), max_size=4),
    changed=st.sets(st.integers(0, 20)),
)
def test_jets_with_constituents(nominal, changed):
    """Rows of different lengths: those of which a constituent moved are sent again, and no others."""
    model = Counting(length=8)

    def jets(events):
        nested = ak.Array([[[{"a": a, "b": b} for a, b in jet] for jet in event] for event in events])
        nested = ak.concatenate([ak.Array([[[{"a": 1.0, "b": 1.0}]]]), nested])[
            1:
        ]  # a type, though it be empty
        return ak.values_astype(nested, np.float32)

    number, moved = 0, []
    for event in nominal:
        moved.append([])
        for jet in event:
            moved[-1].append([(a + 1, b) if number in changed else (a, b) for a, b in jet])
            number += 1
    arrays = {"nominal": jets(nominal), "up": jets(moved)}
    together, report = model(dk.Variations(arrays))
    for name, array in arrays.items():
        same(together[name], model(array)[0])
    distinct = {
        np.array(jet, "f4").tobytes() for events in (nominal, moved) for event in events for jet in event
    }
    assert report.rows == len(distinct)
    assert report.rows + report.saved == 2 * number
    model.close()


@settings(deadline=None, max_examples=25)
@given(
    events=st.lists(
        st.lists(st.lists(st.tuples(VALUES, VALUES), max_size=3), max_size=3), min_size=1, max_size=4
    ),
    length=st.sampled_from([None, 8]),
)
def test_rows_of_equal_digests_are_told_apart(events, length):
    """Even if the digest were the same for all rows, only those that are equal bit by bit have one score."""
    model = Counting(length)
    if length is None:
        arrays = [np.array([row for jet in event for row in jet], "f4").reshape(-1, 2) for event in events]
    else:
        shape = ak.Array([[{"a": np.float32(0), "b": np.float32(0)}]])
        arrays = [
            ak.values_astype(
                ak.concatenate([shape, [[{"a": a, "b": b} for a, b in jet] for jet in event]]), "f4"
            )[1:]
            for event in events
        ]
    varied = {f"v{i}": array for i, array in enumerate(arrays)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variations, "_digests", lambda column, rng: np.uint64(0))
        together, _ = model(dk.Variations(varied))
    for name, array in varied.items():
        same(together[name], model(array)[0])
    model.close()


def test_one_bit_makes_another_row(counting):
    """The smallest difference there is; zeros of either sign are two rows; and one variation may repeat itself."""
    model = counting()
    nominal = np.array([[1, 0], [1, 0], [2, 0]], np.float32)
    shifted = nominal.copy()
    shifted[0, 0] = np.nextafter(np.float32(1), np.float32(2))
    shifted[2, 1] = -0.0
    scores, report = model(dk.Variations(nominal=nominal, up=shifted))
    assert (report.rows, report.saved) == (4, 2)
    np.testing.assert_array_equal(scores["up"][:, 0], shifted[:, 0])
    assert len(model.rows) == 4


def test_selections_and_none_differ_between_variations(counting):
    """A jet that a variation lifts above the threshold, one that it drops, and masked events keep their places."""
    model = counting()
    nominal = jagged([[(5, 1), (3, 1)], [], [(4, 1), (1, 1)]])
    up = ak.concatenate([nominal[..., :1] * np.float32(1.5), nominal[..., 1:]], axis=2)
    chosen = {name: array[array[..., 0] > 2] for name, array in (("nominal", nominal), ("up", up))}
    chosen["masked"] = ak.mask(nominal, [True, True, False])
    chosen["leading"] = ak.firsts(nominal)
    scores, report = model(dk.Variations(chosen), classes=["top", "qcd"])
    for name, array in chosen.items():
        same(scores[name], model(array, classes=["top", "qcd"])[0])
    assert ak.to_list(scores["leading"].qcd) == [1, None, 1]
    assert (report.rows, report.saved) == (3 + 3, 2 + 2)  # of nominal and up; of masked and leading


def test_a_score_does_not_depend_on_the_precision_of_another_variation(tmp_path, counting):
    """Formulas see each variation in its own precision: log(x) of float32 stays that of float32."""
    yaml = tmp_path / "features.yaml"
    yaml.write_text(
        "new_variables: {l: np.log(jet_pt)}\npreprocess: {method: manual}\n"
        "inputs: {x: {length: null, vars: [[l, 1.7, 0.7], [jet_eta, null]]}}\n"
    )
    model = counting()
    model.options["features"] = dk.Features.from_weaver(yaml)
    pt = np.array([31.4159, 271.828, 57.7215], np.float32)
    jets = ak.zip({"pt": pt, "eta": pt / 300})
    varied = ak.zip({"pt": pt.astype("f8") * np.array([1.0, 1.01, 1.0]), "eta": pt / 300})
    alone = model(jets)[0]
    scores, _ = model(dk.Variations(nominal=jets, up=varied))
    same(scores["nominal"], alone)
    same(scores["up"], model(varied)[0])


def test_rows_that_fail_are_missing_in_every_variation_that_has_them(counting):
    """With on_failure="mask", a row that could not be scored is None wherever it is used."""

    def answer(x):
        if (x == 3).any():
            raise InferenceError("not this one")
        return {"y": x}

    model = counting(answer=answer)
    nominal = np.array([[i, 0] for i in range(8)], np.float32)
    scores, report = model(dk.Variations(a=nominal, b=nominal[::-1]), on_failure="mask")
    assert ak.to_list(ak.is_none(scores["a"])) == [True] * 4 + [False] * 4
    assert ak.to_list(ak.is_none(scores["b"])) == [False] * 4 + [True] * 4
    assert report.masked == 4


class TestErrors:
    def test_nan_is_told_with_its_variation(self, counting):
        """And with the indices that it has there."""
        nominal = jagged([[(1, 1), (2, 2)], [(3, 3)]])
        broken = jagged([[(1, 1)], [(3, 3), (np.nan, 3)]])
        with pytest.raises(InputError, match=r"variation 'up': .*index 1, 1"):
            counting()(dk.Variations(nominal=nominal, up=broken))

    def test_wrong_inputs_are_told_with_their_variation(self, counting):
        with pytest.raises(SpecError, match="variation 'up': rows of input x have shape"):
            counting()(dk.Variations(nominal=np.ones((2, 2), "f4"), up=np.ones((2, 3), "f4")))

    def test_none_at_all(self):
        with pytest.raises(ConfigError, match="of nothing"):
            dk.Variations({})

    def test_graphs_are_refused(self, triton):
        """Their rows are not compared, so it would be no gain, and is said."""
        graph = dk.Graph(nodes=["X"])
        model = dk.Model("graph", servers=[triton.address], features=dk.Features(lambda x: x, graph=graph))
        with pytest.raises(SpecError, match="graphs are not compared"):
            model(dk.Variations(a=ak.Array([[[1.0, 2.0]]])))


class TestOnTriton:
    """The real server, a jagged model of 16 numbers."""

    def jets(self, scale=1.0, moved=()):
        rows = np.arange(400 * 16, dtype=np.float32).reshape(-1, 16) / 16
        for which in moved:
            rows[which] *= np.float32(scale)
        counts = np.random.default_rng(2).integers(0, 4, 1000)
        counts = counts[np.cumsum(counts) <= 400]
        return ak.unflatten(ak.from_numpy(rows[: counts.sum()], regulararray=True), counts)

    def test_variations_are_scored_together(self, triton):
        """Eleven variations that move one jet in twenty are one request, and equal eleven calls."""
        model = dk.Model("sum", servers=[triton.address], classes=["plus", "minus"])
        moved = range(0, 380, 20)
        arrays = {"nominal": self.jets()} | {f"up{i}": self.jets(1 + i / 100, moved) for i in range(1, 11)}
        pending = model.submit(dk.Variations(arrays))
        scores = pending.result()
        for name, array in arrays.items():
            same(scores[name], model(array))
        n_rows = int(ak.sum(ak.num(arrays["nominal"])))
        assert (pending.report.rows, pending.report.saved) == (n_rows + 10 * 19, 10 * (n_rows - 19))
        assert pending.report.requests == 1

    def test_survive_pickling(self):
        """A task of Dask may take them."""
        variations = pickle.loads(pickle.dumps(dk.Variations(nominal=np.ones(3), up=np.zeros(3))))
        assert list(variations) == ["nominal", "up"]
        assert repr(variations) == "Variations(nominal, up)"
