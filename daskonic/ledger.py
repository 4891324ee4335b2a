"""What all calls of this process have done so far, those under way included: what progress is told from.

Also for how long cores were held up: without anything to do, as tasks waited for servers.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from daskonic.report import Report

__all__ = ["beside", "entered", "held_s", "spare", "total", "waiting"]

Result = TypeVar("Result")

_lock = threading.Lock()
_under_way: dict[int, Report] = {}
_ended = Report()


class entered:
    """While a ``with`` block lasts its report counts as it is, and then for good."""

    __slots__ = ("_report",)

    def __init__(self, report: Report) -> None:
        self._report = report

    def __enter__(self) -> None:
        with _lock:
            _under_way[id(self._report)] = self._report

    def __exit__(self, *_: object) -> None:
        global _ended
        with _lock:
            del _under_way[id(self._report)]
            _ended = Report.merge([_ended, self._report])


def total() -> Report:
    """Everything so far."""
    with _lock:
        reports = [_ended, *_under_way.values()]
    return Report.merge(_copied(report) for report in reports)


def _copied(report: Report) -> Report:
    """As it is now; each table is copied in one step, since its call may add to it meanwhile."""
    return dataclasses.replace(
        report,
        endpoints=Counter(report.endpoints),
        stages_s=dict(report.stages_s),
        server_s=dict(report.server_s),
    )


class _Held:
    """Threads of tasks that wait, less those that work beside them and those that are spare, summed over time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare = self._n = 0
        self._since, self._seconds = time.monotonic(), 0.0

    def change(self, by: int, spare: int | None = None) -> float:
        """So many more wait from now on; seconds until now."""
        with self._lock:
            now = time.monotonic()
            self._seconds += max(self._n - self._spare, 0) * (now - self._since)
            self._n, self._since = self._n + by, now
            if spare is not None:
                self._spare = spare
            return self._seconds


_held = _Held()


class waiting:
    """While a ``with`` block lasts its thread waits for servers, and keeps the task that it belongs to from going on."""

    def __enter__(self) -> None:
        _held.change(1)

    def __exit__(self, *_: object) -> None:
        _held.change(-1)


def beside(work: Callable[..., Result], *arguments: Any) -> Result:
    """Do something for a task on another thread than its own, which may wait for that meanwhile."""
    _held.change(-1)
    try:
        return work(*arguments)
    finally:
        _held.change(1)


def spare(threads: int) -> None:
    """So many may wait while others keep the cores busy."""
    _held.change(0, threads)


def held_s() -> float:
    """Seconds for which cores were held up by servers, summed over cores."""
    return _held.change(0)
