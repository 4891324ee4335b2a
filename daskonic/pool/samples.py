"""Whether all endpoints have the same model: a few rows of the run are scored by each of them before it is used."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from daskonic.errors import ServerError
from daskonic.lock import ask
from daskonic.pool.endpoint import Endpoint, ModelKey
from daskonic.tensors import Array, ModelSpec, Request
from daskonic.tolerance import apart

__all__ = ["Samples"]

ROWS = 8


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Some rows, and who answered them how."""

    inputs: Mapping[str, Array]
    rows: int
    address: str
    answers: Mapping[str, Array]


class Samples:
    """Rows of the first request for each model, and the answers of the endpoint that had them first.

    Without a lock nobody can say which of two answers is right, but two for the same rows are an error. An endpoint scores the
    sample once, and again after it was away or has loaded the model anew.

    Parameters
    ----------
    tolerance : float
        Infinite: nothing is compared.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._taken: dict[ModelKey, _Sample] = {}
        self._agreed: dict[tuple[str, ModelKey], ModelSpec] = {}
        self._asking: dict[tuple[str, ModelKey], threading.Lock] = defaultdict(threading.Lock)

    def compare(
        self, endpoint: Endpoint, key: ModelKey, request: Request, spec: ModelSpec, timeout_s: float
    ) -> None:
        """Let an endpoint score the sample, unless it has.

        Parameters
        ----------
        request : Request
            The first rows become the sample, where there is none.
        spec : ModelSpec
            As its user means the model: whether a request can be cut.

        Raises
        ------
        ServerError
            Its answers are others than those of the endpoint that was asked first, or it does not answer.
        """
        served, who = endpoint.specs.get(key), (endpoint.address, key)
        if (
            served is None
            or served.fingerprint
            or math.isinf(self._tolerance)
            or self._agreed.get(who) is served
        ):
            return
        with self._asking[who]:  # its other requests wait for this one
            if self._agreed.get(who) is served:
                return
            first, answers = self._answered(endpoint, key, request, spec, served, timeout_s)
            difference = apart(first.answers, answers)
            if difference > self._tolerance:
                raise ServerError(_told(endpoint.address, first.address, served, difference, self._tolerance))
            self._agreed[who] = served

    def _answered(
        self,
        endpoint: Endpoint,
        key: ModelKey,
        request: Request,
        spec: ModelSpec,
        served: ModelSpec,
        timeout_s: float,
    ) -> tuple[_Sample, Mapping[str, Array]]:
        """The sample, and what this endpoint makes of it."""
        while True:
            sample = self._taken.get(key) or _cut(request, spec, endpoint.address)
            answers = ask(endpoint.transport(), served, sample.inputs, sample.rows, timeout_s)
            endpoint.answered[key] += 1
            first = self._taken.setdefault(key, dataclasses.replace(sample, answers=answers))
            if first.inputs is sample.inputs:  # else another endpoint was quicker, with other rows
                return first, answers


def _cut(request: Request, spec: ModelSpec, address: str) -> _Sample:
    """The first rows of a request; all of it where there is no batch dimension."""
    rows = min(ROWS, request.rows) if spec.max_batch_size else request.rows
    whole = rows == request.rows
    inputs = {name: x if whole else x[:rows].copy() for name, x in request.inputs.items()}
    return _Sample(inputs, rows, address, {})


def _told(address: str, first: str, spec: ModelSpec, difference: float, tolerance: float) -> str:
    """What is wrong, and how to find out more."""
    model = f"model {spec.name!r}, version {spec.version or 'not told'}"
    if address == first:
        what = f"{address} scores the same rows otherwise than before: {model}, was replaced during the run;"
    else:
        what = (
            f"{address} and {first} score the same rows differently: other weights under one name ({model});"
        )
    return (
        f"{what} they differ by up to {difference:.2g} (daskonic.tolerance: {tolerance:g}). daskonic verify tells which server "
        "has a model that was locked, and with the lock in daskonic.locks only such are used"
    )
