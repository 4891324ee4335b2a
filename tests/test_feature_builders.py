"""Images, patches, grids and graphs are what a straightforward loop makes of the same items."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskonic.errors import InputError, SpecError
from daskonic.features import cell_grid, hit_patches, jet_images, nearest_neighbours

ITEMS = st.lists(st.lists(st.integers(0, 7), max_size=4), max_size=4)
"""Items of each row of each event."""


def items(nested, seed=0):
    """Coordinates around 0, weights and variables: ``n_events * var * var``."""
    rng = np.random.default_rng(seed)
    counts = np.array([n for event in nested for n in event], np.int64)
    total = int(counts.sum())
    fields = {
        "x": rng.uniform(-1.2, 1.2, total),
        "y": rng.uniform(-1.2, 1.2, total),
        "row": rng.integers(0, 9, total),
        "column": rng.integers(0, 7, total),
        "pt": rng.integers(1, 4, total).astype(np.float32),
        "vars": rng.normal(size=(total, 3)).astype(np.float32),
    }
    flat = ak.zip({n: ak.from_numpy(v, regulararray=True) for n, v in fields.items()}, depth_limit=1)
    return ak.unflatten(ak.unflatten(flat, counts), np.array([len(event) for event in nested], np.int64))


def rows(array):
    """All rows, without the events."""
    return list(ak.flatten(array, axis=1)) if len(array) else []


def assert_rows(got, events, expected):
    """The same nesting as the rows, and these values."""
    assert ak.to_list(ak.num(got, axis=1)) == ak.to_list(ak.num(events, axis=1))
    for one, other in zip(rows(got), expected, strict=True):
        np.testing.assert_allclose(ak.to_numpy(one), other, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(nested=ITEMS, pixels=st.integers(1, 6))
def test_jet_images(nested, pixels):
    """Each constituent is added to the pixel that it lies in, in each channel."""
    jets = items(nested)
    expected = []
    for jet in rows(jets):
        image = np.zeros((pixels, pixels, 2))
        for part in jet:
            i, j = (int(np.floor((part[axis] + 1) / 2 * pixels)) for axis in "xy")
            if 0 <= i < pixels and 0 <= j < pixels:
                image[i, j] += part.pt, 2 * part.pt
        expected.append(image)
    both = jet_images(jets.x, jets.y, [jets.pt, 2 * jets.pt], pixels=pixels, extent=1.0)
    assert_rows(both, jets, expected)
    assert_rows(
        jet_images(jets.x, jets.y, jets.pt, pixels=pixels, extent=1.0), jets, [e[..., 0] for e in expected]
    )


@settings(max_examples=50, deadline=None)
@given(nested=ITEMS, size=st.integers(1, 6))
def test_hit_patches(nested, size):
    """Every pixel of every patch holds the charge of all hits there, and nothing from other planes."""
    planes = items(nested)
    expected = []
    for plane in rows(planes):
        patches = np.zeros((len(plane), size, size))
        for patch, middle in zip(patches, plane, strict=True):
            for hit in plane:
                i, j = hit.row - middle.row + size // 2, hit.column - middle.column + size // 2
                if 0 <= i < size and 0 <= j < size:
                    patch[i, j] += hit.pt
        expected.append(patches)
    patches = hit_patches(planes.row, planes.column, planes.pt, shape=(9, 7), size=size)
    assert_rows(patches, planes, expected)


@settings(max_examples=50, deadline=None)
@given(nested=ITEMS, cells=st.integers(1, 5))
def test_cell_grid(nested, cells):
    """A cell holds the variables of its first item of the highest pt."""
    taus = items(nested)
    expected = []
    for tau in rows(taus):
        grid, best = np.zeros((cells, cells, 3)), np.zeros((cells, cells))
        for part in tau:
            i, j = (int(np.floor(part[axis] / 0.5 + cells / 2)) for axis in "xy")
            if 0 <= i < cells and 0 <= j < cells and part.pt > best[i, j]:
                grid[i, j], best[i, j] = part.vars, part.pt
        expected.append(grid)
    assert_rows(cell_grid(taus.x, taus.y, taus.pt, taus.vars, cells=cells, size=0.5), taus, expected)


@settings(max_examples=50, deadline=None)
@given(nested=ITEMS, k=st.integers(1, 9), coarse=st.booleans())
def test_nearest_neighbours(nested, k, coarse):
    """Each point gets its k nearest others of the same row, the nearest first, also where points coincide."""
    graphs = items(nested)
    x, y = (graphs.row, graphs.column) if coarse else (graphs.x, graphs.y)
    source, target = nearest_neighbours(x, y, k=k)
    assert ak.to_list(ak.num(source, axis=1)) == ak.to_list(ak.num(graphs, axis=1))
    for xs, ys, begins, ends in zip(*map(rows, (x, y, source, target)), strict=True):
        n = len(xs)
        distances = np.hypot(*(np.subtract.outer(c, c) for c in (ak.to_numpy(xs), ak.to_numpy(ys))))
        assert ak.to_list(ends) == [i for i in range(n) for _ in range(min(k, n - 1))]
        assert len({(b, e) for b, e in zip(begins, ends, strict=True)}) == len(ends)
        for i in range(n):
            mine = ak.to_numpy(begins)[ak.to_numpy(ends) == i]
            assert i not in mine
            others = np.sort(np.delete(distances[i], i))[:k]
            np.testing.assert_allclose(distances[i, mine], others, rtol=1e-12)


def test_numpy_arrays():
    """Rectangles in, rectangles out."""
    x = np.random.default_rng(0).uniform(-1, 1, (4, 10))
    images = jet_images(x, -x, np.ones_like(x), pixels=8, extent=1.0)
    assert isinstance(images, np.ndarray)
    assert images.shape == (4, 8, 8)
    assert images.sum() == 40
    assert str(nearest_neighbours(x, k=2)[0].type) == "4 * var * int64"


def test_arrays_that_nest_differently_are_refused():
    """A weight more than there are coordinates names both."""
    x = ak.Array([[0.1, 0.2], [0.3]])
    with pytest.raises(SpecError, match=r"x and weights\[0\] do not nest alike"):
        jet_images(x, x, ak.Array([[1.0], [1.0, 1.0]]), pixels=2, extent=1.0)
    with pytest.raises(SpecError, match="at least 2"):
        nearest_neighbours(np.zeros(3), k=1)


def test_what_cannot_be_placed_is_refused():
    """A hit beyond the plane, and a coordinate that is not a number."""
    wire = ak.Array([[1, 2], [3]])
    with pytest.raises(InputError, match="outside of the plane of 3 rows"):
        hit_patches(wire, wire, wire, shape=(3, 9), size=4)
    with pytest.raises(InputError, match="coordinate 1 has values that are not finite"):
        nearest_neighbours(wire, ak.Array([[1.0, np.nan], [3.0]]), k=1)
