"""A model that is somewhere else, called as if it were a local function.

The way of the data, one function each::

    events → features → flatten → split → encode → submit → infer → decode → join → unflatten → scores

:func:`_score` and :func:`_send` are that line. Batches are built one by one, right before they are sent,
while those before them are on their way.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from daskonic import display, ledger
from daskonic import trim as trimming
from daskonic.config import resolve
from daskonic.errors import ConfigError, InferenceError, ServerError
from daskonic.features import Batch, Features, GraphRows, Rows
from daskonic.interrupts import shielded
from daskonic.join import Joined
from daskonic.lazy import is_lazy, lazily
from daskonic.plugin import aside, claim_of_task, current_pool, honoured, pool_for
from daskonic.pool import Call, Claim, Pool
from daskonic.report import Report
from daskonic.tensors import ModelSpec, Request
from daskonic.wanted import batched, named, outputs_of

if TYPE_CHECKING:
    from daskonic.preflight import CheckReport

__all__ = ["Model", "Pending"]

logger = logging.getLogger(__name__)

NO_LIMIT = 2**31
PATIENCE_S = 0.005
"""Shorter waits are not worth handing the thread to another task, which costs about a millisecond."""


class Model:
    """A handle on a served model: a name and how to make its inputs; small, picklable, no sockets.

    Parameters
    ----------
    name : str
        Name in the server's model repository.
    version : str, optional
        Version to use. Without one, the version that the servers prefer at first contact, which is
        then asked for by its number, so it cannot change under a running analysis.
    features : Features, optional
        Makes the inputs. Without it the model must have one input and takes plain arrays.
    servers : iterable of str, optional
        Addresses ``host:port``; default is the worker's plugin, then ``daskonic.servers``.
    classes : iterable of str, optional
        Names for the last dimension of the output: the scores become a record with these fields.
    outputs : iterable of str, optional
        Outputs wanted; default is all.
    batch_size : int, optional
        Most rows in one request. Needed only where the server does not say, and then it also
        declares that the first dimension of every tensor is the batch.
    trim : {"auto", "always", "never"}
        Whether rows of variable length are sent shorter than the full length of the features, in
        batches of similar length, where the model leaves the length open. ``"auto"``: if
        the scores stay the same to 1e-5, which is tried on real rows, two for each new length, once per
        process and model; where they do not, a warning says so, and rows go in full length.
    on_failure : {"raise", "mask"}
        What becomes of rows that could not be scored within the timeout: an error, or None in their place
        and their number in the report.
    **settings
        With ``servers``: further keys of ``daskonic.yaml``, such as ``timeout="30 s"``.

    Examples
    --------
    >>> tagger = dk.Model("particlenet", features=dk.Features.from_weaver("pn.yaml"))  # doctest: +SKIP
    >>> tagger(events.FatJet)  # doctest: +SKIP
    """

    def __init__(
        self,
        name: str,
        version: str | int = "",
        features: Features | None = None,
        servers: Iterable[str] | str | None = None,
        classes: Iterable[str] | None = None,
        outputs: Iterable[str] | None = None,
        batch_size: int | None = None,
        trim: Literal["auto", "always", "never"] = "auto",
        on_failure: Literal["raise", "mask"] = "raise",
        **settings: Any,
    ) -> None:
        if settings and servers is None:
            raise ConfigError(f"{', '.join(settings)}: settings of a model need its own servers=[...]")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; at least 1 is needed")
        if trim not in trimming.MODES:
            raise ConfigError(f"trim is {trim!r}; there are {', '.join(trimming.MODES)}")
        if on_failure not in ("raise", "mask"):
            raise ConfigError(f"on_failure is {on_failure!r}; there are raise, mask")
        self.name = name
        self.version = str(version)
        self.features = features if features is not None else Features.plain()
        self.classes = None if classes is None else tuple(classes)
        self.outputs = None if outputs is None else tuple(outputs)
        self.batch_size = batch_size
        self.trim = trim
        self.on_failure = on_failure
        self._settings = None if servers is None else resolve(servers, **settings)

    def __repr__(self) -> str:
        version = f", version={self.version!r}" if self.version else ""
        where = f", servers={list(self._settings.servers)}" if self._settings else ""
        return f"Model({self.name!r}{version}{where})"

    def _repr_html_(self) -> str:
        servers = self._settings.servers if self._settings else ("the worker's, or the configuration's",)
        facts = {
            "version": self.version or "the one that the servers prefer",
            "servers": ", ".join(servers),
            "features": str(self.features),
            "outputs": ", ".join(self.classes or self.outputs or ("all",)),
            "rows a request": f"{self.batch_size:,} at most" if self.batch_size else "what the server takes",
        }
        return display.card("Model", self.name, display.table(facts.items()))

    def __call__(self, objects: Any) -> Any:
        """Score every row.

        Parameters
        ----------
        objects : ak.Array, n_events * var * Jet (or any other nesting), or numpy.ndarray
            What the features are made from: jagged, nested, with None, virtual, or rectangular.

        Returns
        -------
        ak.Array or numpy.ndarray
            Same nesting and counts as ``objects``, None where it has None; an empty input gives an
            empty output of the same type. One output: its array. Several: a record with the
            outputs' names. With ``classes``: a record with their names.

        Raises
        ------
        SpecError
            Names, shapes or dtypes of the features disagree with the model; nothing was sent.
        ServerError
            No server answered in time, or the model failed.
        """
        if is_lazy(objects):
            return lazily(self, objects)
        claim = claim_of_task()
        with honoured(claim):
            return _score(self, objects, self.pool(), claim)[0]

    def submit(self, objects: Any) -> Pending:
        """Start scoring; the scores come from :meth:`Pending.result`.

        Returns when the objects have been read, which virtual arrays need an open file and one thread for. All that
        comes after goes on by itself.

        Parameters
        ----------
        objects
            As in :meth:`__call__`.
        """
        pool, claim = self.pool(), claim_of_task() or Claim()
        return Pending(pool.start(_finish, *_begin(self, objects, pool, claim)), claim)

    def check(
        self,
        objects: Any,
        reference: str | os.PathLike[str] | None = None,
        *,
        n_rows: int | None = None,
        tolerance: float = 1e-5,
    ) -> CheckReport:
        """Find out with the first 200 events whether a run would fail or give wrong scores, and what it will cost.

        Each server is asked by itself, the features are held against the model, and the same rows are scored in batches
        of 1, 7 and the largest, among other neighbours, with less padding, and in this process.

        Parameters
        ----------
        objects
            As in :meth:`__call__`.
        reference : path, optional
            The model as an ONNX file, or a repository with it, to be scored in this process; default is
            ``daskonic.fallback-repository``.
        n_rows : int, optional
            Rows of the run, for the estimate; default is a million.
        tolerance : float
            Largest difference of scores, relative for numbers above 1, that is not a mistake.

        Returns
        -------
        CheckReport
            Mistakes do not raise: see its ``ok`` and ``findings``.

        Raises
        ------
        ConfigError
            No server is named, or ``reference`` has no such model.
        """
        from daskonic.preflight import check

        return check(self, objects, reference, n_rows, tolerance)

    def spec(self) -> ModelSpec:
        """What the servers say of the model; asked once per process."""
        return batched(self, self.pool().spec(self.name, self.version))

    def pool(self) -> Pool:
        """The pool used here and now: the model's own servers, the worker's, or the process's."""
        return current_pool() if self._settings is None else pool_for(self._settings)


class Pending:
    """Scores on their way."""

    def __init__(self, future: Future[tuple[Any, Report]], claim: Claim) -> None:
        self._future = future
        self._claim = claim

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the scores; raises what :meth:`Model.__call__` would have raised. Ctrl-C ends its requests too."""
        with honoured(self._claim), nullcontext() if self._future.done() else aside():
            try:
                return self._future.result(timeout_s)[0]
            except KeyboardInterrupt:
                self._claim.give_up()
                raise

    def done(self) -> bool:
        """Whether the scores, or an error, are there."""
        return self._future.done()

    @property
    def report(self) -> Report:
        """Account of the call; waits for its end."""
        return self._future.result()[1]


def _score(model: Model, objects: Any, pool: Pool, claim: Claim | None = None) -> tuple[Any, Report]:
    """The whole way of one call."""
    run, rows = _begin(model, objects, pool, claim or Claim())
    return shielded(run.claim.give_up, _finish, run, rows)


def _begin(model: Model, objects: Any, pool: Pool, claim: Claim) -> tuple[_Run, Rows | GraphRows]:
    """What needs the objects themselves."""
    spec = batched(model, pool.spec(model.name, model.version))
    report = Report(
        model=spec.name,
        model_version=spec.version,
        config_digest=spec.config_digest,
        fingerprint=spec.fingerprint,
    )
    with report.stage("features"):
        inputs = model.features(objects, spec)
    with report.stage("flatten"):
        rows = inputs.flatten()
    report.rows, report.saved = len(rows), rows.n_saved
    report.cut, report.useful_nbytes = rows.n_cut, rows.useful_nbytes
    return _Run(model, spec, pool, report, claim), rows


def _finish(run: _Run, rows: Rows | GraphRows) -> tuple[Any, Report]:
    """What needs the servers."""
    with ledger.entered(run.report):
        scores = _send(run, rows, _split(run, rows))
    run.report.model_version = run.report.model_version or scores.version
    with run.report.stage("unflatten"):
        nested = rows.unflatten(named(scores.arrays, run.model), scores.names)
        return (nested if scores.missing is None else rows.mask(nested, ~scores.missing)), run.report


@dataclass(frozen=True, slots=True)
class _Run:
    """One call: what is asked of whom, and the account of it."""

    model: Model
    spec: ModelSpec
    pool: Pool
    report: Report
    claim: Claim


def _split(run: _Run, rows: Rows | GraphRows) -> Iterator[Batch]:
    """Batches no larger than model and message allow; of rows of similar length where that changes no score."""
    model, spec = run.model, run.spec
    max_rows = min(n or NO_LIMIT for n in (spec.max_batch_size, model.batch_size))
    with run.report.stage("split"):
        buckets = None if model.trim == "never" else rows.buckets()
    floor = None
    if isinstance(rows, Rows) and buckets is not None and model.trim == "auto":
        how, send = (model.features.identity, model.outputs), functools.partial(_send, run, trial=True)
        try:
            floor = trimming.floor(run.pool, spec, how, rows, buckets, max_rows, send)
        except ServerError:
            if model.on_failure == "raise":
                raise
            buckets = None  # nothing can be tried just now
    return rows.split(max_rows, run.pool.settings.batch_nbytes, buckets, floor)


def _send(run: _Run, rows: Rows | GraphRows, batches: Iterable[Batch], *, trial: bool = False) -> Joined:
    """Outputs of all rows: several batches are on their way while the next one is made."""
    model, spec, report = run.model, run.spec, run.report
    scores = Joined(outputs_of(model, spec), rows)
    with _Window(run, scores, trial=trial) as window:
        for batch in batches:
            with report.stage("features"):
                block = rows.features(batch.which)
            with report.stage("encode"):
                tensors = rows.tensors(block, batch.lengths)
                request = Request(spec.name, spec.version, tensors, scores.names, batch.n_rows)
            with report.stage("submit"):
                window.add(batch, request)
            report.sent_nbytes += sum(t.nbytes for t in tensors.values())
            window.take()
    return scores


class _Window:
    """The batches of one call that are on their way, in order."""

    def __init__(self, run: _Run, scores: Joined, *, trial: bool) -> None:
        self._calls: deque[tuple[Batch, Call]] = deque()
        self._run, self._pool, self._report = run, run.pool, run.report
        self._key, self._scores = (run.model.name, run.model.version), scores
        self._mask, self._trial = run.model.on_failure == "mask" and not trial, trial
        # A trial holds a lock, on which the task that would have the thread meanwhile might wait.
        self._aside: Callable[[], AbstractContextManager[None]] = nullcontext if trial else aside

    def __enter__(self) -> Self:
        return self

    def add(self, batch: Batch, request: Request) -> None:
        """Send one more, as soon as it may go."""
        try:
            call = self._pool.submit(request, self._run.spec, self._key, self._run.claim)
        except (ServerError, InferenceError) as error:
            self._miss(batch, error)
            return
        self._calls.append((batch, call))
        # Its message was made when there was a permit, for the server that had it.
        self._report.move(call.encoded_s, "submit", "encode")

    def take(self) -> None:
        """Answers that are there are taken, and waited for when too many are not."""
        while self._calls and (self._calls[0][1].done() or len(self._calls) > self._pool.room()):
            self._collect()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            while self._calls and error is None:
                self._collect()
        finally:
            for _batch, call in self._calls:  # after an error nobody wants these
                call.cancel()

    def _miss(self, batch: Batch, error: ServerError | InferenceError) -> None:
        """Where that is the user's policy, rows that cannot be scored are missing, and the others go on."""
        if not self._mask:
            raise error
        logger.warning("%d rows are left without scores: %s", batch.n_rows, error)
        self._scores.miss(batch)
        self._report.masked += batch.n_rows

    def _collect(self) -> None:
        """Wait for the oldest batch and put its rows in their place."""
        batch, call = self._calls[0]
        try:
            self._join(batch, call)
        except (ServerError, InferenceError) as error:
            self._miss(batch, error)
        self._calls.popleft()
        self._report.requests += call.attempts
        self._report.retries += call.attempts - 1

    def _join(self, batch: Batch, call: Call) -> None:
        """The last steps of the way, for one batch."""
        report = self._report
        with report.stage("infer"), nullcontext() if call.ends_within(PATIENCE_S) else self._aside():
            answer = call.infer()
        with report.stage("decode"):
            response = call.decode(answer)
        with report.stage("join"):
            self._scores.join(batch, response)
        report.joined += 0 if self._trial else batch.n_rows
        report.endpoints[call.address] += 1
        if call.server_s is not None:
            report.add_server_s(*call.server_s)
