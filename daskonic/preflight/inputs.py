"""Features against the model: where they do not fit, which change of the model's description would make them fit.

The features say what is wrong in the order in which they find it, and cannot know that a shape is the right one with two
dimensions swapped. So the description is changed, one input at a time, until they fit: what had to be changed is the mistake.
"""

from __future__ import annotations

import dataclasses
import itertools
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np

from daskonic.errors import DaskonicError, InputError, SpecError
from daskonic.features import Features, GraphRows, Rows
from daskonic.preflight.report import CheckReport, Kind
from daskonic.tensors import ANY, Array, ModelSpec, TensorSpec

__all__ = ["batch_of", "made"]

DTYPES = ("float64", "int64", "bool")
"""What can be cast to one of them was made in a dtype of its kind."""

RANKS = range(5)
ALIKE: tuple[Kind, ...] = ("transposed", "dtype", "shape")
ADVICE = "; look at these objects, or select them away before they are scored"
GRAPH_ADVICE = "; indices count within their own graph, and dk.Graph shifts them by the graphs before"


def made(features: Features, objects: Any, spec: ModelSpec, report: CheckReport) -> Rows | GraphRows | None:
    """Rows for a model; None if there are none, and the report says why."""
    try:
        rows = features(objects, spec).flatten()
        batch_of(rows)
    except SpecError as error:
        for kind, message in diagnosed(features, objects, spec, error):
            report.add(kind, message)
    except InputError as error:
        advice = GRAPH_ADVICE if features.is_graph and "index" in str(error) else ADVICE
        report.add("values", f"{error}{advice}")
    except DaskonicError as error:
        report.add("features", str(error))
    except Exception as error:  # noqa: BLE001 - a function of the user raises anything
        report.add(
            "features", f"the features fail with {type(error).__name__}: {error} ({_where(error)}); mend them"
        )
    else:
        _look_at_masks(rows, report)
        return rows
    return None


def batch_of(rows: Rows | GraphRows, n_rows: int = 2**31) -> dict[str, Array]:
    """Tensors of the first rows, in full length."""
    batch = next(rows.split(n_rows, 2**31), None)
    return {} if batch is None else rows.tensors(rows.features(batch.which), batch.lengths)


def diagnosed(
    features: Features, objects: Any, spec: ModelSpec, error: SpecError
) -> Iterator[tuple[Kind, str]]:
    """What would have to be another thing for the features to fit, input by input; else the error as it is."""
    found = [cure for t in spec.inputs if (cure := _cure(features, objects, spec, t)) is not None]
    yield from found or _alike(features, objects, spec) or [(_stage(features, objects, spec), str(error))]


def _cure(features: Features, objects: Any, spec: ModelSpec, tensor: TensorSpec) -> tuple[Kind, str] | None:
    """What is wrong with one input, if a change of its description alone makes the features fit."""
    without = dataclasses.replace(spec, inputs=tuple(t for t in spec.inputs if t is not tensor))
    if without.inputs and _fit(features, objects, without):
        return _missing(tensor, spec)
    for kind, other in _changes(tensor):
        inputs = tuple(other if t is tensor else t for t in spec.inputs)
        tensors = _fit(features, objects, dataclasses.replace(spec, inputs=inputs))
        if tensors:
            return kind, _told(kind, tensor, tensors[tensor.name], spec)
    return None


def _changes(tensor: TensorSpec) -> Iterator[tuple[Kind, TensorSpec]]:
    """Other descriptions of an input, the likeliest mistake first."""
    shape = tensor.shape
    for other in dict.fromkeys(itertools.permutations(shape)):
        if other != shape:
            yield "transposed", dataclasses.replace(tensor, shape=other)
    for dtype in DTYPES:
        yield "dtype", dataclasses.replace(tensor, dtype=np.dtype(dtype))
    yield "shape", dataclasses.replace(tensor, shape=(ANY,) * len(shape))
    for rank in sorted(RANKS, key=lambda n: (abs(n - len(shape)), -n)):
        if rank != len(shape):
            yield "rank", dataclasses.replace(tensor, shape=(ANY,) * rank)


def _alike(features: Features, objects: Any, spec: ModelSpec) -> list[tuple[Kind, str]]:
    """The same mistake in all inputs, such as channels that come last."""
    for kind in ALIKE:
        changed = [next((other for k, other in _changes(t) if k == kind), t) for t in spec.inputs]
        tensors = _fit(features, objects, dataclasses.replace(spec, inputs=tuple(changed)))
        if tensors:
            wrong = (t for t, other in zip(spec.inputs, changed, strict=True) if other is not t)
            return [(kind, _told(kind, t, tensors[t.name], spec)) for t in wrong]
    return []


def _fit(features: Features, objects: Any, spec: ModelSpec) -> dict[str, Array]:
    """The tensors that features make for a description; none if they do not fit it."""
    try:
        return batch_of(features(objects, spec).flatten())
    except Exception:  # noqa: BLE001 - whatever it is, they do not fit
        return {}


def _missing(tensor: TensorSpec, spec: ModelSpec) -> tuple[Kind, str]:
    """An input that the features do not make."""
    if "mask" in tensor.name.lower():
        return "mask", (
            f"the features make no {tensor}, which tells model {spec.name!r} items from padding; add one that is 1 for each "
            f"item and padded with 0: {{{tensor.name!r}: [ak.ones_like(constituents.pt)]}} with pad={{{tensor.name!r}: "
            "dk.Pad(...)}, or an input of that name in the YAML"
        )
    return (
        "name",
        f"the features make no {tensor}, which model {spec.name!r} takes; make it, or give one that they make this name",
    )


def _told(kind: Kind, tensor: TensorSpec, have: Array, spec: ModelSpec) -> str:
    """One line for an input that a changed description fits."""
    rows = f"rows of {have.dtype.name}{list(have.shape[1:])}"
    takes = f"input {tensor.name!r} has {rows}; model {spec.name!r} takes {tensor}"
    return {
        "transposed": (
            f"{takes}: dimensions are swapped; np.swapaxes them, or give columns as a list with "
            "dk.Pad(channels='first' or 'last')"
        ),
        "dtype": (
            f"input {tensor.name!r} is made of numbers that {tensor.dtype.name} cannot hold; model {spec.name!r} takes {tensor}: "
            "convert them in the features if that is meant (np.rint, astype)"
        ),
        "shape": f"{takes}: another length; is a variable missing or one too many, or is it padded to another length?",
        "rank": f"{takes}: {len(have.shape) - 1} dimensions for {len(tensor.shape)}; add one (x[..., np.newaxis]) or take one away",
    }[kind]


def _stage(features: Features, objects: Any, spec: ModelSpec) -> Kind:
    """What the features look at first are names."""
    try:
        features(objects, spec)
    except SpecError:
        return "name"
    return "features"


def _look_at_masks(rows: Rows | GraphRows, report: CheckReport) -> None:
    """A mask that is the same everywhere tells no padding."""
    if not isinstance(rows, Rows) or not len(rows):
        return
    tensors = batch_of(rows, 256)
    padded = rows.useful_nbytes / len(rows) < sum(t.nbytes / len(t) for t in tensors.values())
    for name, values in tensors.items():
        if padded and "mask" in name.lower() and values.min() == values.max():
            report.add(
                "mask",
                f"input {name!r} is {values.flat[0]:g} everywhere, also where rows are padded, so the model takes padding for "
                "items; make it 1 for each item, and let it be padded with 0",
            )


def _where(error: Exception) -> str:
    """File and line of the user's code: the innermost that is not of a package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and "daskonic" not in f.filename] or frames[
        -1:
    ]
    return f"{own[-1].filename}:{own[-1].lineno}"
