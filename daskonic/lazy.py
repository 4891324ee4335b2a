"""Arrays without values: what a graph of dask-awkward is built with.

A typetracer is answered with the type of the scores and without a request for inference: a row less than one is scored. The model's
description is asked for, once in a process, since only it tells what the scores look like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import awkward as ak
import numpy as np

__all__ = ["is_lazy", "lazily"]


def is_lazy(objects: Any) -> bool:
    """Whether these are types only, or an array of dask-awkward, which is not imported for that."""
    if isinstance(objects, ak.Array):
        return bool(ak.backend(objects) == "typetracer")
    return type(objects).__module__.startswith("dask_awkward.")


def lazily(score: Callable[[Any], Any], objects: Any) -> Any:
    """The scores' type for a typetracer, whose columns that are needed are marked; a graph for a graph.

    Parameters
    ----------
    score : callable
        Scores an array with values; called with an empty one.
    objects : ak.Array of typetracers, or dask_awkward.Array
    """
    if not isinstance(objects, ak.Array):
        return objects.map_partitions(score)
    read: set[str] = set()
    form = objects.layout.form_with_key("{id}")
    scores = score(_empty(form, read, objects))
    for path, key in _leaves(form):
        if key in read:
            ak.typetracer.touch_data(objects[path] if path else objects)
    return ak.Array(scores.layout.to_typetracer(forget_length=True))


def _empty(form: Any, read: set[str], like: Any) -> Any:
    """An array of length zero that tells which of its columns are read."""

    def buffer(name: str, dtype: Any) -> Callable[[], Any]:
        def values() -> Any:
            read.add(name.split("-")[0])
            return np.zeros(int(name.endswith("-offsets")), dtype)

        return values

    expected = form.expected_from_buffers()
    container = {name: buffer(name, dtype) for name, dtype in expected.items()}
    return ak.from_buffers(form, 0, container, behavior=like.behavior, attrs=like.attrs)


def _leaves(form: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Fields from the outermost to each column, and the column's key."""
    if form.is_record:
        for name in form.fields:
            yield from _leaves(form.content(name), (*path, name))
    elif form.is_numpy:
        yield path, form.form_key
    elif not (form.is_union or form.is_unknown):
        yield from _leaves(form.content, path)
