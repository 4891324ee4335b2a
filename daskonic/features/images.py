"""Images: of a jet's constituents, and of the surroundings of hits on a wire plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from daskonic.errors import InputError
from daskonic.features.items import Items

__all__ = ["hit_patches", "jet_images"]


def jet_images(x: Any, y: Any, weights: Any | Sequence[Any], *, pixels: int, extent: float) -> Any:
    """Sums of weights in square pixels, one image for each jet.

    All images are in memory at one time: 224 x 224 pixels of three channels are 600 kB a jet.

    Parameters
    ----------
    x, y : ak.Array, n_events * var * var * float (or any other nesting), or numpy.ndarray
        Coordinates of the constituents relative to the jet, such as deta and dphi in rad.
    weights : array that nests like ``x``, or list of such arrays
        What is summed, such as pt in GeV; a list becomes the last dimension of the image.
    pixels : int
        Along each side.
    extent : float
        Half of a side, in the unit of ``x``; what lies outside ``[-extent, extent)`` is left out.

    Returns
    -------
    ak.Array or numpy.ndarray, n_events * var * pixels * pixels (* channels) * float32
        First ``x``, then ``y``.

    Raises
    ------
    SpecError
        The arrays do not nest alike.
    InputError
        A value is not finite.
    """
    listed = list(weights) if isinstance(weights, list | tuple) else [weights]
    items = Items.of(x=x, y=y, **{f"weights[{i}]": w for i, w in enumerate(listed)})
    place, inside = [], np.ones(int(items.counts.sum()), np.bool_)
    for axis in "xy":
        pixel = np.floor((items.columns[axis].astype(np.float64) + extent) * (pixels / (2 * extent)))
        inside &= (pixel >= 0) & (pixel < pixels)
        place.append(pixel)
    where = (items.row[inside], *(pixel[inside].astype(np.int64) for pixel in place))
    images = np.zeros((len(items.counts), pixels, pixels, len(listed)), np.float32)
    for i in range(len(listed)):
        np.add.at(images[..., i], where, items.columns[f"weights[{i}]"][inside])
    return items.nest_rows(images if isinstance(weights, list | tuple) else images[..., 0])


def hit_patches(row: Any, column: Any, value: Any, *, shape: tuple[int, int], size: int) -> Any:
    """For each hit, the square of its plane that it is in the middle of.

    All patches are in memory at one time: 48 x 48 are 9 kB a hit.

    Parameters
    ----------
    row, column : ak.Array of int, n_planes * var (or any other nesting), or numpy.ndarray
        Pixel of each hit, such as wire and time sample, counted from 0.
    value : array that nests like ``row``
        Charge of each hit; hits in one pixel are summed.
    shape : (int, int)
        Rows and columns of the plane; outside of it the patches are 0.
    size : int
        Pixels along each side; the hit is in pixel ``size // 2``.

    Returns
    -------
    ak.Array, n_planes * var * size * size * float32

    Raises
    ------
    SpecError
        The arrays do not nest alike.
    InputError
        A hit is outside of the plane, or a value is not finite.
    """
    items = Items.of(row=row, column=column, value=value)
    rows, columns = (items.columns[name].astype(np.int64) for name in ("row", "column"))
    if ((rows < 0) | (rows >= shape[0]) | (columns < 0) | (columns >= shape[1])).any():
        raise InputError(f"hits are outside of the plane of {shape[0]} rows and {shape[1]} columns")
    patches = np.empty((len(rows), size, size), np.float32)
    end = 0
    for count in items.counts:  # one plane in memory at a time
        begin, end = end, end + int(count)
        where = rows[begin:end], columns[begin:end]
        plane = np.zeros((shape[0] + size - 1, shape[1] + size - 1), np.float32)
        np.add.at(plane[size // 2 :, size // 2 :], where, items.columns["value"][begin:end])
        patches[begin:end] = sliding_window_view(plane, (size, size))[where]
    return items.nest_lists(patches, items.counts)
