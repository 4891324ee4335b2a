"""Grids of cells, in each of which the foremost item is described."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskonic.features.items import Items

__all__ = ["cell_grid"]


def cell_grid(x: Any, y: Any, priority: Any, values: Any, *, cells: int, size: float) -> Any:
    """Variables of the foremost item in each cell, as DeepTau has its candidates around a tau [1]_.

    All grids are in memory at one time: 21 x 21 cells of 188 variables are 330 kB a tau.

    Parameters
    ----------
    x, y : ak.Array, n_events * var * var * float (or any other nesting), or numpy.ndarray
        Coordinates of the items relative to the middle of the grid, such as deta and dphi in rad.
    priority : array that nests like ``x``
        The largest one in a cell decides, such as pt in GeV; of equal ones the first.
    values : array that nests like ``x``, ``... * n_variables``
    cells : int
        Along each side.
    size : float
        Side of a cell, in the unit of ``x``; items outside of the grid are left out.

    Returns
    -------
    ak.Array or numpy.ndarray, n_events * var * cells * cells * n_variables * float32
        First ``x``, then ``y``; 0 where a cell is empty.

    Raises
    ------
    SpecError
        The arrays do not nest alike.
    InputError
        A value is not finite.

    References
    ----------
    .. [1] CMS Collaboration, Identification of hadronic tau lepton decays using a deep neural network,
       arXiv:2201.08458.
    """
    items = Items.of(x=x, y=y, priority=priority, values=values)
    place = [np.floor(items.columns[axis].astype(np.float64) / size + cells / 2) for axis in "xy"]
    inside = np.flatnonzero(np.logical_and.reduce([(p >= 0) & (p < cells) for p in place]))
    where = items.row[inside], *(p[inside].astype(np.int64) for p in place)
    cell = np.ravel_multi_index(where, (len(items.counts), cells, cells))
    order = np.lexsort((-items.columns["priority"][inside].astype(np.float64), cell))
    taken, first = np.unique(cell[order], return_index=True)
    values = items.columns["values"]
    grid = np.zeros((len(items.counts) * cells * cells, values.shape[1]), np.float32)
    grid[taken] = values[inside[order[first]]]
    return items.nest_rows(grid.reshape(-1, cells, cells, values.shape[1]))
