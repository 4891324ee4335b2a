"""A plain function in the place of a server: for tests of what lies above the transport."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from daskonic.errors import DaskonicError, ModelNotFoundError
from daskonic.tensors import Array, ModelSpec, Request, Response
from daskonic.transport.base import Account

__all__ = ["MemoryTransport"]


class MemoryTransport:
    """Answers with a function, after a delay, and fails when told to.

    Parameters
    ----------
    address : str
    spec : ModelSpec
        The one model that is offered.
    function : callable
        From named inputs to named outputs.
    delay_s : float
        Time of one request; requests run side by side.

    Attributes
    ----------
    failures : list of DaskonicError
        Raised by the next requests, first one first.
    rows : list of int
        Rows of each request that ran.
    most_in_flight : int
        Largest number of requests at one time.
    """

    def __init__(
        self,
        address: str,
        spec: ModelSpec,
        function: Callable[[Mapping[str, Array]], dict[str, Array]],
        delay_s: float = 0.0,
    ) -> None:
        self.address = address
        self.failures: list[DaskonicError] = []
        self.rows: list[int] = []
        self.spec_calls = 0
        self.most_in_flight = 0
        self._spec = spec
        self._function = function
        self._delay_s = delay_s
        self._in_flight = 0
        self._lock = threading.Lock()
        self._executor = self._threads()

    @staticmethod
    def _threads() -> ThreadPoolExecutor:
        """They start when needed."""
        return ThreadPoolExecutor(64, thread_name_prefix="daskonic-memory")

    def model_spec(self, model: str, version: str, timeout_s: float) -> ModelSpec:  # noqa: ARG002
        """The one model."""
        self.spec_calls += 1
        if self.failures:
            raise self.failures.pop(0)
        if model != self._spec.name or version not in ("", self._spec.version):
            raise ModelNotFoundError(
                f"{self.address} has no model {model!r} in version {version!r}; it has {self._spec.name}"
            )
        return self._spec

    def account(self, model: str, version: str, timeout_s: float) -> Account | None:  # noqa: ARG002
        """None is kept."""
        return None

    def encode(self, request: Request) -> Request:
        """Nothing to do."""
        return request

    def submit(self, message: Request, timeout_s: float) -> Future[tuple[str, dict[str, Array]]]:  # noqa: ARG002
        """Run on a thread."""
        return self._executor.submit(self._run, message)

    def decode(self, answer: tuple[str, dict[str, Array]]) -> Response:
        """Version and outputs."""
        return Response(*answer)

    def close(self) -> None:
        """Stop the threads; another request starts new ones, as a new connection would be made."""
        executor, self._executor = self._executor, self._threads()
        executor.shutdown(cancel_futures=True)

    def _run(self, request: Request) -> tuple[str, dict[str, Array]]:
        """One request, or the next failure."""
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            failure = self.failures.pop(0) if self.failures else None
        try:
            time.sleep(self._delay_s)
            if failure is not None:
                raise failure
            self.rows.append(request.rows)
            return self._spec.version, self._function(request.inputs)
        finally:
            with self._lock:
                self._in_flight -= 1
