"""What endpoints promise and answer, held against each other."""

from __future__ import annotations

from daskonic.errors import ResponseError, ServerError
from daskonic.tensors import ModelSpec, Request, Response

__all__ = ["check_response", "is_of_another_version", "refuse_disagreement"]


def refuse_disagreement(specs: list[ModelSpec], addresses: list[str]) -> None:
    """ServerError if endpoints offer different models under one name."""
    first = specs[0]
    for other in specs[1:]:
        if (first.version, first.inputs, first.outputs) != (other.version, other.inputs, other.outputs):
            where = ", ".join(addresses)
            raise ServerError(
                f"servers disagree on model {first.name!r} ({where}): version {first.version} with "
                f"{_tensors(first)} against version {other.version} with {_tensors(other)}; "
                "name the version, or use servers of one kind"
            )


def _tensors(spec: ModelSpec) -> str:
    """Inputs and outputs in one line."""
    return f"{'; '.join(map(str, spec.inputs))} -> {'; '.join(map(str, spec.outputs))}"


def is_of_another_version(response: Response, spec: ModelSpec) -> bool:
    """Whether another version answered than was asked."""
    return bool(spec.version and response.version and response.version != spec.version)


def check_response(response: Response, request: Request, spec: ModelSpec, address: str) -> None:
    """ResponseError unless version, names, dtypes and shapes are those of the model."""
    if is_of_another_version(response, spec):
        raise ResponseError(
            f"{address}: version {response.version} of {spec.name!r} answered where version {spec.version} began; "
            "the model was replaced during the run"
        )
    for tensor in spec.outputs:
        if tensor.name not in request.outputs:
            continue
        array = response.outputs.get(tensor.name)
        if array is None:
            raise ResponseError(
                f"{address}: no output {tensor.name!r} in the answer, only {', '.join(response.outputs)}"
            )
        batched = spec.max_batch_size > 0
        shape = array.shape[1:] if batched else array.shape
        if (
            array.dtype != tensor.dtype
            or not tensor.accepts(shape)
            or (batched and len(array) != request.rows)
        ):
            raise ResponseError(
                f"{address}: output {tensor.name!r} came as {array.dtype.name}{list(array.shape)} for {request.rows} "
                f"rows; the model promises {tensor}"
            )
