"""Coffea processors that read the next chunk while the last one is being scored.

The words are those of CMSSW's external work: ``acquire`` sends what is to be scored, ``produce`` makes the result
of it. What happens in between is for the executor to use: under Dask the chunk steps aside and the worker's
thread takes the next one; with threads or processes another one runs.

Nothing here imports coffea, which takes any callable for a processor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Protocol

from daskonic.plugin import aside

__all__ = ["TwoPhaseProcessor"]


class Scores(Protocol):
    """Scores on their way: a :class:`~daskonic.Pending`, or what combines several."""

    def result(self) -> Any:
        """Wait for them."""

    def done(self) -> bool:
        """Whether they are there."""


class TwoPhaseProcessor(ABC):
    """A processor for coffea's ``Runner`` whose chunks wait for servers beside one another.

    Write :meth:`acquire` and :meth:`produce` in the place of ``process``, and ``postprocess`` if you need it. At most ``daskonic.partitions-held`` chunks of
    a worker wait at one time.

    Examples
    --------
    >>> class Tagged(dk.TwoPhaseProcessor):  # doctest: +SKIP
    ...     def __init__(self, top, qcd):
    ...         self.top, self.qcd = top, qcd
    ...
    ...     def acquire(self, events):
    ...         jets = events.FatJet
    ...         return {"top": self.top.submit(jets), "qcd": self.qcd.submit(jets)}
    ...
    ...     def produce(self, events, scores):
    ...         return {events.metadata["dataset"]: {"sum": ak.sum(scores["top"].signal)}}
    >>> runner(fileset, Tagged(top, qcd), treename="Events")  # doctest: +SKIP
    """

    @abstractmethod
    def acquire(self, events: Any) -> Scores | Mapping[str, Scores]:
        """Read, select, and start scoring.

        Parameters
        ----------
        events : NanoEvents
            A chunk.

        Returns
        -------
        Pending, or mapping of str to Pending
            What :meth:`daskonic.Model.submit` gave: all of it is in flight together.
        """

    @abstractmethod
    def produce(self, events: Any, scores: Any) -> Any:
        """Use the scores.

        Parameters
        ----------
        events : NanoEvents
            The chunk that ``acquire`` had; its file is still open.
        scores : ak.Array or dict of str to ak.Array
            In the place of each Pending its scores.

        Returns
        -------
        accumulator
            As from ``process``.
        """

    def process(self, events: Any) -> Any:
        """Both phases of a chunk, for coffea to call."""
        return self.produce(events, _scores(self.acquire(events)))

    def __call__(self, events: Any) -> Any:
        """The same; coffea calls what is not of its own class."""
        return self.process(events)


def _scores(pending: Scores | Mapping[str, Scores]) -> Any:
    """What comes of everything in flight; the task steps aside once for all of it."""
    listed = list(pending.values()) if isinstance(pending, Mapping) else [pending]
    with nullcontext() if all(p.done() for p in listed) else aside():
        results = [p.result() for p in listed]
    return dict(zip(pending, results, strict=True)) if isinstance(pending, Mapping) else results[0]
