"""What the commands show: progress, a summary, and as little as possible of Dask's own account."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from daskonic.errors import DaskonicError

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import WorkerPlugin

    from daskonic.report import Report
    from daskonic.tagging import Progress, Summary

__all__ = [
    "OutOfTime",
    "ends_in_order",
    "ends_later",
    "facts_of",
    "interrupts_ignored",
    "logged_to",
    "print_summary",
    "progress_bar",
    "quiet",
    "quiet_workers",
]

ENDINGS = (signal.SIGTERM, signal.SIGALRM)


def quiet() -> None:
    """Errors come as one line; Dask's own account of the same is for its developers."""
    for name in ("distributed", "asyncio", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"distributed|dask")


def quiet_workers() -> WorkerPlugin:
    """Retries are in the summary, and what they end in is the error; workers need not print them too."""
    from distributed.diagnostics.plugin import WorkerPlugin

    class Quiet(WorkerPlugin):
        """Sets the level once, on every worker."""

        name = "daskonic-quiet"

        def setup(self, worker: object) -> None:  # noqa: ARG002
            """Errors only; the driver's own process, which may hold results for a while, tells more."""
            if multiprocessing.parent_process() is not None:
                logging.getLogger("daskonic").setLevel(logging.ERROR)

    return Quiet()


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """No Ctrl-C in the block, nor ever in the processes that are started in it.

    The terminal sends it to the workers as well, which would die with a traceback each; they end
    with this process anyway. A blocked signal would be better, but multiprocessing unblocks it.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ends_later() -> Iterator[None]:
    """What :func:`ends_in_order` listens to waits for the end of the block: a cluster that starts cannot be closed."""
    came: list[int] = []
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in ENDINGS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if came:
        signal.raise_signal(came[0])


class OutOfTime(KeyboardInterrupt):
    """The end of the job that this process is in is near."""


@contextmanager
def ends_in_order() -> Iterator[None]:
    """In the block SIGTERM is as Ctrl-C, and a job that nears its end raises :class:`OutOfTime` in time to tidy up.

    What comes while all is tidied up already is ignored: that must not be left half done.
    """
    from daskonic.ending import job_end_s, job_margin_s

    left_s = job_end_s() - time.time() - job_margin_s()
    endings = ENDINGS if left_s < math.inf else ENDINGS[:1]  # the timer may be somebody else's

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        for each in endings:
            signal.signal(each, signal.SIG_IGN)
        raise OutOfTime if number == signal.SIGALRM else KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in endings}
    if left_s < math.inf:
        signal.setitimer(signal.ITIMER_REAL, max(left_s, 0.1))
    try:
        yield
    finally:
        if left_s < math.inf:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def logged_to(path: Path | None) -> Iterator[None]:
    """What daskonic says goes to a file as well, from INFO on; to stderr go warnings, as ever."""
    if path is None:
        yield
        return
    logger, file = logging.getLogger("daskonic"), logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    assert logging.lastResort is not None
    handlers, level = [file, logging.lastResort], logger.level
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except DaskonicError as error:
        file.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, "%s", (error,), None))
        raise
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
        file.close()


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr with jets per second, the time left and where time goes; nothing where stderr is a file."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from daskonic.report import waiting_for

    console = Console(stderr=True)
    columns = (
        TextColumn("tagging"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[waiting]}"),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("tagging", total=None, rate="", waiting="")
        begin: list[float] = []

        def advance(progress: Progress) -> None:
            """Move the bar."""
            if not begin:
                begin.append(time.monotonic())
            rate = progress.rows / max(time.monotonic() - begin[0], 1e-3)
            text = f"{rate:,.0f} jets/s" if progress.rows else ""
            waiting = waiting_for(progress.report.spent_s())
            bar.update(
                task, completed=progress.events, total=progress.events_total, rate=text, waiting=waiting
            )

        yield advance


def facts_of(summary: Summary, seconds: float) -> dict[str, Any]:
    """The summary for a script."""
    report = summary.report
    return {
        "output": summary.output,
        "manifest": os.path.join(summary.output, "manifest.json"),
        "columns": list(summary.columns),
        "files": summary.files,
        "events": summary.events,
        "jets": summary.rows,
        "partitions": summary.partitions,
        "partitions_computed": summary.computed,
        "jets_computed": summary.computed_rows,
        "seconds": round(seconds, 3),
        "jets_per_s": round(summary.rows_per_s, 1),
        "requests": report.requests,
        "retries": report.retries,
        "jets_cut": report.cut,
        "sent_nbytes": report.sent_nbytes,
        "useful_nbytes": report.useful_nbytes,
        "server_s": {name: round(s, 3) for name, s in report.server_s.items()},
        "servers": dict(report.endpoints),
        "model": summary.model,
        "model_version": summary.model_version,
        "stages_s": {name: round(s, 3) for name, s in _stages(summary)},
    }


def print_summary(summary: Summary, seconds: float, more: Mapping[str, str] | None = None) -> None:
    """The summary for a person, and what else the command found."""
    from rich.console import Console
    from rich.table import Table

    report = summary.report
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in (
        *summary.facts(),
        (
            "time",
            f"{summary.seconds:.1f} s, and {max(seconds - summary.seconds, 0):.1f} s for the Dask cluster",
        ),
        ("stages", _shares(summary)),
        ("cut", f"{report.cut:,} jets have more constituents than the inputs hold" if report.cut else ""),
        ("requests", f"{report.requests:,}, {report.retries:,} of them retries"),
        ("bytes", _bytes(report)),
        (
            "server",
            # Of a short run the servers' mean times may be more than its own requests took.
            "  ".join(
                f"{name} {s / report.requests * 1e3:.1f} ms" for name, s in report.server_s.items() if s > 0
            ),
        ),
        ("servers", ", ".join(f"{a} ({n:,})" for a, n in sorted(report.endpoints.items()))),
        *(more or {}).items(),
    ):
        if value:
            table.add_row(name, value)
    Console(soft_wrap=True).print(table)


def _bytes(report: Report) -> str:
    """What was sent, and how much of it padding is."""
    if not report.useful_nbytes:
        return ""
    return f"{report.sent_nbytes / 1e6:,.1f} MB, {report.sent_nbytes / report.useful_nbytes:.2f} times the useful ones"


def _shares(summary: Summary) -> str:
    """Where the worker threads spent their time, in percent."""
    spent = _stages(summary)
    total = sum(s for _, s in spent)
    return "  ".join(f"{n} {s / total:.0%}" for n, s in spent if s >= 0.005 * total)


def _stages(summary: Summary) -> list[tuple[str, float]]:
    """Seconds of the worker threads in each stage, in the order of the spine."""
    from daskonic.report import STAGES

    spent = summary.report.stages_s
    return [(name, spent[name]) for name in ("events", *STAGES, "write") if name in spent]
