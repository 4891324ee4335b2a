"""Graphs of nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskonic.errors import ConfigError
from daskonic.features.items import Items

__all__ = ["nearest_neighbours"]


def nearest_neighbours(*coordinates: Any, k: int) -> tuple[Any, Any]:
    """Edges from the nearest points of the same row to each point.

    Needs SciPy, whose tree looks for the neighbours of all rows at once.

    Parameters
    ----------
    *coordinates : ak.Array, n_events * var * float (or any other nesting), or numpy.ndarray
        One for each dimension of space.
    k : int
        Neighbours of each point, itself left out; all others in a row of ``k`` points or less.

    Returns
    -------
    source, target : ak.Array, n_events * var * int64
        Numbers of points in their row, counted from 0: edges by target, the nearest first.

    Raises
    ------
    ConfigError
        SciPy is not installed.
    SpecError
        The coordinates do not nest alike.
    InputError
        A coordinate is not finite.
    """
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise ConfigError("neighbours are found with SciPy: pip install scipy") from error
    if k < 1 or not coordinates:
        raise ConfigError(f"k is {k} in {len(coordinates)} dimensions; at least 1 of both are needed")
    items = Items.of(**{f"coordinate {i}": c for i, c in enumerate(coordinates)})
    points = np.stack([c.astype(np.float64) for c in items.columns.values()], axis=1)
    n_points, row = len(points), items.row
    if not n_points:
        return (items.nest_lists(row, items.counts),) * 2
    # In one more dimension, which adds exactly 0 within a row, rows lie apart by twice what one can measure.
    reach = 1.0 + float(np.linalg.norm(np.ptp(points, axis=0)))
    tree = KDTree(np.column_stack([points, 2 * reach * row]))
    asked = np.arange(1, min(k + 1, n_points) + 1)
    found = tree.query(tree.data, k=asked, distance_upper_bound=reach)[1]
    other = (found < n_points) & (found != np.arange(n_points)[:, None])
    other &= np.cumsum(other, axis=1) <= k
    edges = other.sum(axis=1)
    begin = np.cumsum(items.counts) - items.counts
    source, target = found[other], np.repeat(np.arange(n_points), edges)
    counts = np.bincount(row, edges, len(items.counts)).astype(np.int64)
    return tuple(items.nest_lists(ends - begin[row[ends]], counts) for ends in (source, target))
