"""Measuring a model's throughput, by the requests that daskonic itself sends."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daskonic.config import resolve
from daskonic.errors import ConfigError, SpecError
from daskonic.pool import Pool
from daskonic.scan.result import Point, Scan
from daskonic.server import local_server
from daskonic.server.entry import read_config, write_config
from daskonic.tensors import ANY, Array, ModelSpec, Request
from daskonic.transport.grpc import GrpcTransport

__all__ = ["BATCH_SIZES", "CONCURRENCIES", "scan", "scan_entry"]

BATCH_SIZES = (1, 4, 16, 64, 256, 1024)
CONCURRENCIES = (1, 2, 4, 8)


def scan(
    name: str | Mapping[int, str],
    servers: Sequence[str] | str | None = None,
    *,
    version: str = "",
    batch_sizes: Sequence[int] = BATCH_SIZES,
    concurrencies: Sequence[int] = CONCURRENCIES,
    inputs: Mapping[str, Array] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float = 1.0,
    rounds: int = 3,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Scan:
    """Measure a model that is served, with requests as daskonic's workers send them.

    Each number of requests in flight is a pinned window. Points are measured in turns, in another order in each round,
    so that what else the servers do does not fall on one of them.

    Parameters
    ----------
    name : str, or mapping of int to str
        Of the model; or of several that differ in their number of instances, by that number.
    servers : sequence of str, optional
        Addresses; default is ``daskonic.servers``.
    version : str
    batch_sizes : sequence of int
        Rows in a request; those above the model's maximum are left out.
    concurrencies : sequence of int
        Requests in flight at each server.
    inputs : mapping of str to array, [rows, ...], optional
        Real rows, which are repeated as needed; default is normal numbers, and zeros for integers.
    shapes : mapping of str to sequence of int, optional
        Of a row, for inputs that leave dimensions open where there are no ``inputs``.
    seconds : float
        Of each point in each round.
    rounds : int
    progress : callable of (done, all), optional
    **settings
        Further keys of ``daskonic.yaml``, such as credentials.

    Raises
    ------
    ConfigError
        A number is out of range, or the shape of an input is not known.
    SpecError
        ``inputs`` are not those of the model.
    ModelNotFoundError, ServerError
        As a call of the model.
    """
    if min(min(batch_sizes, default=0), min(concurrencies, default=0), rounds) < 1 or seconds <= 0:
        raise ConfigError("batch sizes, requests in flight, rounds and seconds have to be above 0")
    names = {0: name} if isinstance(name, str) else name
    resolved = resolve(servers, **settings)
    pools = {n: Pool(dataclasses.replace(resolved, window=n)) for n in concurrencies}
    accounts = [GrpcTransport(address, resolved.credentials) for address in resolved.servers]
    try:
        points: list[_Point] = []
        for count, model in names.items():
            spec = pools[concurrencies[0]].spec(model, version)
            requests = _requests(spec, batch_sizes, inputs, shapes)
            points += [
                _Point(count, n, pools[n], spec, (model, version), request, accounts)
                for request, n in itertools.product(requests, concurrencies)
            ]
        for point in points:
            point.run(0.0)  # what the first request of a shape costs is not the model's rate
        order = random.Random(1)
        for done in range(rounds):
            for i, point in enumerate(order.sample(points, len(points))):
                point.measure(seconds)
                if progress is not None:
                    progress(done * len(points) + i + 1, rounds * len(points))
        found = tuple(point.result() for point in points)
        return Scan(next(iter(names.values())), spec.version, resolved.servers, seconds, rounds, found)
    finally:
        for pool in pools.values():
            pool.close()
        for transport in accounts:
            transport.close()


def scan_entry(
    repository: str | os.PathLike[str], name: str, *, instances: Sequence[int] = (), **given: Any
) -> Scan:
    """Measure a model of a repository with a server on this machine, and several numbers of instances.

    Parameters
    ----------
    repository : path
    name : str
    instances : sequence of int
        Copies of the model; default is what the entry says.
    **given
        As in :func:`scan`.

    Raises
    ------
    InputError
        There is no such entry.
    LocalServerError
        The server cannot be started, or not load the model.
    ConfigError, SpecError, ServerError
        As in :func:`scan`.
    """
    entry = Path(repository, name)
    config = read_config(entry / "config.pbtxt")
    names = {count: f"{name}-{count}" if count else name for count in instances or (0,)}
    with tempfile.TemporaryDirectory(prefix="daskonic-scan-") as folder:
        for count, copy in names.items():
            shutil.copytree(entry, Path(folder, copy))
            config.name = copy
            if count:
                del config.instance_group[1:]
                group = config.instance_group[0] if config.instance_group else config.instance_group.add()
                group.count = count
            write_config(Path(folder, copy, "config.pbtxt"), config)
        with local_server(folder) as server:
            measured = scan(names, server.address, **given)
    return Scan(name, measured.version, ("this machine",), measured.seconds, measured.rounds, measured.points)


@dataclass(frozen=True, slots=True)
class _Round:
    """What a point did in one round."""

    rows_per_s: float
    latency_ms: float
    compute_ms: float
    queue_ms: float


class _Point:
    """One batch size with one number of requests in flight, and what it did."""

    def __init__(
        self,
        instances: int,
        concurrency: int,
        pool: Pool,
        spec: ModelSpec,
        key: tuple[str, str],
        request: Request,
        accounts: list[GrpcTransport],
    ) -> None:
        self._instances, self._concurrency = instances, concurrency
        self._pool, self._spec, self._key, self._request = pool, spec, key, request
        self._accounts = accounts
        self._rounds: list[_Round] = []

    def measure(self, seconds: float) -> None:
        """One round."""
        before = self._account()
        begin = time.perf_counter()
        latencies = self.run(seconds)
        elapsed_s = time.perf_counter() - begin
        requests, queue_s, compute_s = (b - a for a, b in zip(before, self._account(), strict=True))
        self._rounds.append(
            _Round(
                rows_per_s=len(latencies) * max(self._request.rows, 1) / elapsed_s,
                latency_ms=1e3 * statistics.median(latencies),
                compute_ms=1e3 * compute_s / max(requests, 1),
                queue_ms=1e3 * queue_s / max(requests, 1),
            )
        )

    def run(self, seconds: float) -> list[float]:
        """Requests for that long, at least one each: how many seconds they took."""
        clients = self._concurrency * len(self._accounts)
        with ThreadPoolExecutor(clients, thread_name_prefix="daskonic-scan") as threads:
            taken = [threads.submit(self._ask, time.perf_counter() + seconds) for _ in range(clients)]
            return [latency for future in taken for latency in future.result()]

    def result(self) -> Point:
        """Medians, with the least and the most."""
        rates, latencies = ([getattr(r, key) for r in self._rounds] for key in ("rows_per_s", "latency_ms"))
        return Point(
            self._instances, self._request.rows, self._concurrency,
            statistics.median(rates), min(rates), max(rates),
            statistics.median(latencies), min(latencies), max(latencies),
            statistics.median(r.compute_ms for r in self._rounds),
            statistics.median(r.queue_ms for r in self._rounds),
        )  # fmt: skip

    def _ask(self, end: float) -> list[float]:
        """One request after another."""
        latencies: list[float] = []
        while not latencies or time.perf_counter() < end:
            begin = time.perf_counter()
            call = self._pool.submit(self._request, self._spec, self._key)
            call.decode(call.infer())
            latencies.append(time.perf_counter() - begin)
        return latencies

    def _account(self) -> tuple[float, float, float]:
        """Requests and their time in queue and computing, over all servers."""
        told = [a.account(self._spec.name, self._spec.version, 5.0) for a in self._accounts]
        known = [account for account in told if account is not None]
        return (
            sum(account.requests for account in known),
            sum(account.queue_s for account in known),
            sum(account.compute_s for account in known),
        )


def _requests(
    spec: ModelSpec,
    batch_sizes: Sequence[int],
    inputs: Mapping[str, Array] | None,
    shapes: Mapping[str, Sequence[int]] | None,
) -> list[Request]:
    """A request of each size that the model takes; one, of 0 rows, where there is no batch dimension."""
    sizes = [n for n in batch_sizes if n <= spec.max_batch_size] if spec.max_batch_size else [0]
    if not sizes:
        raise ConfigError(f"{spec.name!r} takes {spec.max_batch_size} rows at most; scan smaller batches")
    unknown = sorted({*(inputs or {}), *(shapes or {})} - {t.name for t in spec.inputs})
    if unknown:
        raise SpecError(
            f"{spec.name!r} has no input {', '.join(unknown)}; it takes {'; '.join(map(str, spec.inputs))}"
        )
    rng = np.random.default_rng(1)
    rows: dict[str, Array] = {}
    for tensor in spec.inputs:
        if inputs is not None:
            if tensor.name not in inputs:
                raise SpecError(f"the inputs lack {tensor}")
            rows[tensor.name] = np.asarray(inputs[tensor.name], tensor.dtype)
            if not tensor.accepts(rows[tensor.name].shape[1 if spec.max_batch_size else 0 :]):
                raise SpecError(
                    f"the inputs have rows of shape {list(rows[tensor.name].shape[1:])} for {tensor}"
                )
            continue
        shape = tuple((shapes or {}).get(tensor.name, tensor.shape))
        if ANY in shape or not tensor.accepts(shape):
            raise ConfigError(
                f"{spec.name!r} takes {tensor}; say the shape of a row, as in shapes={{{tensor.name!r}: (...)}}, or give inputs"
            )
        drawn = rng.normal(size=(max(*sizes, 1), *shape) if spec.max_batch_size else shape)
        rows[tensor.name] = (drawn if tensor.dtype.kind == "f" else 0 * drawn).astype(tensor.dtype)
    outputs = tuple(t.name for t in spec.outputs)
    return [Request(spec.name, spec.version, _cut(rows, n), outputs, n) for n in sizes]


def _cut(rows: Mapping[str, Array], n: int) -> dict[str, Array]:
    """So many rows, repeated where there are less; all for a model without a batch dimension."""
    if not n:
        return dict(rows)
    return {name: np.ascontiguousarray(np.resize(x, (n, *x.shape[1:]))) for name, x in rows.items()}
