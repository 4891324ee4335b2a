"""A served model as its user means it: what the batch dimension is, which outputs are wanted, and what they are called."""

from __future__ import annotations

from typing import Protocol

from daskonic.errors import SpecError
from daskonic.features import Features
from daskonic.tensors import ANY, Array, ModelSpec, TensorSpec

__all__ = ["Meant", "batched", "named", "outputs_of"]


class Meant(Protocol):
    """A model, as far as it says how it is meant."""

    @property
    def features(self) -> Features:
        """They tell whether rows are graphs."""

    @property
    def batch_size(self) -> int | None:
        """Most rows in one request."""

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """Outputs wanted; None for all."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names for the last dimension of the output."""


def batched(model: Meant, spec: ModelSpec) -> ModelSpec:
    """The servers' description, with the batch dimension that the user declares where they do not."""
    if spec.max_batch_size > 0 or model.features.is_graph:
        return spec
    if model.batch_size is None:
        raise SpecError(
            f"model {spec.name!r} does not say that it takes batches (max_batch_size is 0 or not told), so rows of "
            "different objects cannot be put in one request safely; if the first dimension of every "
            "tensor is the batch, say so with dk.Model(..., batch_size=N); if the tensors are nodes and edges of "
            "graphs, declare them with dk.Features(..., graph=dk.Graph(...))"
        )
    return spec.with_batch_dimension(model.batch_size)


def outputs_of(model: Meant, spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """The outputs asked for."""
    names = [t.name for t in spec.outputs]
    unknown = sorted(set(model.outputs or ()) - set(names))
    if unknown:
        raise SpecError(f"model {spec.name!r} has no output {', '.join(unknown)}; it has {', '.join(names)}")
    wanted = tuple(t for t in spec.outputs if model.outputs is None or t.name in model.outputs)
    last = [t.shape[1:] if model.features.is_graph else t.shape for t in wanted]
    if model.classes is not None and not (len(last) == 1 and last[0] in ((len(model.classes),), (ANY,))):
        raise SpecError(
            f"{len(model.classes)} classes ({', '.join(model.classes)}) are named, but model {spec.name!r} gives "
            f"{'; '.join(map(str, wanted))}; name each class of one output (choose it with outputs=[...])"
        )
    return wanted


def named(arrays: dict[str, Array], model: Meant) -> Array | dict[str, Array]:
    """One array, or a record of them; the last dimension as fields where it has names."""
    if model.classes is not None:
        (values,) = arrays.values()
        return {label: values[:, i] for i, label in enumerate(model.classes)}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays
