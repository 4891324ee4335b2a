"""What all calls of this process have done so far, those under way included: what progress is told from."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter

from daskonic.report import Report

__all__ = ["entered", "total"]

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
