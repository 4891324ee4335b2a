"""Nothing is lost or swapped between a nested array, its rows, and rectangles."""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from daskonic.errors import InputError, SpecError
from daskonic.ragged import content, flatten, pad, unflatten

numbers = st.integers(-1000, 1000)
events = st.lists(st.lists(numbers, max_size=5), max_size=8)
events_with_none = st.lists(
    st.one_of(st.none(), st.lists(st.one_of(st.none(), numbers), max_size=5)), max_size=8
)
hits = st.lists(st.lists(st.lists(numbers, max_size=3), max_size=4), max_size=5)
rows = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=9), min_size=1, max_size=12)


def typed(values: Any, depth: int) -> ak.Array:
    """An array whose type is known even where a list is empty."""
    event: Any = 0
    for _ in range(depth - 1):
        event = [event]
    return ak.from_iter([event, *values])[1:]


def there_and_back(array: Any, depth: int) -> Any:
    flat, layout = flatten(array, depth)
    assert len(flat) == layout.n_rows
    return unflatten(np.asarray(flat), layout)


class TestUnflattenFlatten:
    @given(events)
    def test_is_identity_for_jagged_events(self, values: Any) -> None:
        array = typed(values, 2)
        back = there_and_back(array, 2)
        assert ak.to_list(back) == values
        assert back.type == array.type

    @given(events_with_none)
    def test_is_identity_with_none_at_both_levels(self, values: Any) -> None:
        assert ak.to_list(there_and_back(typed(values, 2), 2)) == values

    @given(hits)
    def test_is_identity_three_levels_deep(self, values: Any) -> None:
        assert ak.to_list(there_and_back(typed(values, 3), 3)) == values

    @given(events, st.data())
    def test_is_identity_after_a_selection(self, values: Any, data: st.DataObject) -> None:
        """A selection leaves an indexed array whose contents are not contiguous."""
        array = typed(values, 2)
        array = array[array > data.draw(numbers)]
        if len(array):
            array = array[data.draw(st.lists(st.integers(0, len(array) - 1), max_size=6))]
        assert ak.to_list(there_and_back(array, 2)) == ak.to_list(array)

    @given(
        hnp.arrays(
            np.float32, hnp.array_shapes(min_dims=2, max_dims=4, min_side=0), elements=st.floats(width=32)
        )
    )
    def test_is_identity_for_numpy(self, array: Any) -> None:
        back = there_and_back(array, 2)
        assert isinstance(back, np.ndarray)
        np.testing.assert_array_equal(back, array)

    def test_keeps_regular_dimensions_regular(self) -> None:
        array = ak.from_numpy(np.arange(6).reshape(2, 3), regulararray=True)
        assert there_and_back(array, 2).type == array.type

    def test_keeps_the_type_of_no_events(self) -> None:
        array = typed([], 2)
        assert str(there_and_back(array, 2).type) == "0 * var * int64"

    def test_makes_records_of_several_outputs(self) -> None:
        flat, layout = flatten(ak.Array([[1, 2], [], [3]]), 2)
        made = unflatten({"a": np.asarray(flat), "b": np.ones((3, 4), np.float32)}, layout)
        assert str(made.type) == "3 * var * {a: int64, b: 4 * float32}"
        assert ak.to_list(made.a) == [[1, 2], [], [3]]

    def test_makes_records_for_numpy(self) -> None:
        flat, layout = flatten(np.zeros((2, 3, 5), np.float32), 2)
        assert flat.shape == (6, 5)
        made = unflatten({"a": np.arange(6), "b": np.ones((6, 4), np.float32)}, layout)
        assert ak.to_list(made.a) == [[0, 1, 2], [3, 4, 5]]


class TestPosition:
    def test_names_event_and_jet(self) -> None:
        layout = flatten(ak.Array([[1, 2], [], [3, 4, 5]]), 2)[1]
        assert [layout.position(i) for i in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]

    def test_counts_missing_events_and_jets(self) -> None:
        array = ak.Array([None, [None, 7], [8, None, 9]])
        layout = flatten(array, 2)[1]
        assert [array[layout.position(i)] for i in range(3)] == [7, 8, 9]

    def test_works_for_numpy(self) -> None:
        assert flatten(np.zeros((2, 3, 4)), 2)[1].position(4) == (1, 1)


class TestContent:
    def test_refuses_none_within_a_row(self) -> None:
        with pytest.raises(InputError, match="pt has None inside a row"):
            content(ak.Array([[1.0, None], []]), "pt")
        with pytest.raises(InputError, match="pt has None inside a row"):
            content(ak.Array([1.0, None]), "pt")

    def test_refuses_text_and_deep_nesting(self) -> None:
        with pytest.raises(SpecError, match="name is"):
            content(ak.Array(["a", "b"]), "name")
        with pytest.raises(SpecError, match="at most one of its dimensions"):
            content(ak.Array([[[1], [2, 3]], []]), "pt")

    def test_refuses_masked_numpy(self) -> None:
        with pytest.raises(InputError, match="masked"):
            content(np.ma.masked_array([1.0, 2.0], [True, False]), "pt")


def slow_pad(row: list[float], length: int, mode: str, fill: float) -> list[float]:
    """What padding means, item by item."""
    if mode == "wrap":
        return [row[i % len(row)] for i in range(length)] if row else [0.0] * length
    return [row[i] if i < len(row) else fill for i in range(length)]


@given(rows, st.integers(1, 12), st.sampled_from(["constant", "wrap"]), st.sampled_from([0.0, -3.5]))
def test_pad_is_what_a_loop_does(rows: list[list[float]], length: int, mode: str, fill: float) -> None:
    """Shorter, longer and empty rows, two columns written into one tensor."""
    flat = np.asarray([x for row in rows for x in row], np.float32)
    counts = np.asarray([len(row) for row in rows])
    out = np.full((len(rows), 2, length), np.nan, np.float32)
    pad([flat, -flat], counts, [out[:, 0], out[:, 1]], mode, [fill, 1.0])
    expected = np.asarray([slow_pad(row, length, mode, fill) for row in rows], np.float32)
    np.testing.assert_array_equal(out[:, 0], expected)
    other = np.asarray([slow_pad([-x for x in row], length, mode, 1.0) for row in rows], np.float32)
    np.testing.assert_array_equal(out[:, 1], other)
