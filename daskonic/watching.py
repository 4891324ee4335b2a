"""How far a run is, how fast, and what it is waiting for: in a notebook as HTML, in a terminal as a line."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskonic import display, ledger
from daskonic.report import SHARES, Report, waiting_for

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["progress"]

logger = logging.getLogger(__name__)

EVERY_S = 0.5
WINDOW = 20
"""Looks that rate and waiting are told from: the last ten seconds."""

SILENT_S = 5.0
"""Without any new score for so long, this is what is said."""

Show = Callable[["_Look", float], None]


@contextmanager
def progress(client: Client | None = None, total: int | None = None) -> Iterator[None]:
    """Show how the calls of a ``with`` block get on.

    Parameters
    ----------
    client : distributed.Client, optional
        Whose workers are looked at; default is this process alone. After Ctrl-C the tasks that were begun in the block are
        cancelled, with their requests, and the workers are free for others.
    total : int, optional
        Rows in all; default is the rows of the calls that have begun, of which more may come.

    Examples
    --------
    >>> with dk.progress():  # doctest: +SKIP
    ...     scores = tagger(events.FatJet)
    >>> with dk.progress(client):  # doctest: +SKIP
    ...     output = runner(fileset, processor_instance=TopProcessor())
    """
    before = set() if client is None else set(client.futures)
    seen = _Seen(client, total)
    over = threading.Event()
    with _shown() as show:
        thread = threading.Thread(
            target=_keep_looking, args=(seen, show, over), name="daskonic-progress", daemon=True
        )
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            if client is not None:
                _cancel(client, set(client.futures) - before)
            raise
        finally:
            over.set()
            thread.join()


@dataclass(frozen=True, slots=True)
class _Look:
    """What is shown.

    Attributes
    ----------
    rows, total : int
        Rows with scores, and all.
    rows_per_s : float
        Of late.
    spent_s : dict of str to float
        Of late, as in :meth:`~daskonic.Report.spent_s`.
    silent_s : float
        Time since the last score.
    """

    rows: int
    total: int
    rows_per_s: float
    spent_s: dict[str, float]
    silent_s: float

    @property
    def account(self) -> str:
        """Rows and rate."""
        rows = f"{self.rows:,}" + (f" of {self.total:,}" if self.total else "") + " rows"
        if self.rows < self.total and self.silent_s > SILENT_S:
            return f"{rows}, no new score for {self.silent_s:.0f} s"
        return f"{rows}, {self.rows_per_s:,.0f} rows/s"

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.account, waiting_for(self.spent_s))))


class _Seen:
    """Accounts of the processes, looked at again and again."""

    def __init__(self, client: Client | None, total: int | None) -> None:
        self._client, self._total = client, total
        self._of: dict[str, Report] = {}
        self._first = self._now()
        self._looks: deque[tuple[float, int, dict[str, float]]] = deque(
            [(time.monotonic(), 0, self._first.spent_s())], WINDOW
        )
        self._last_row = time.monotonic()

    def look(self) -> _Look:
        """What has changed since the beginning, and of late."""
        now, report = time.monotonic(), self._now()
        rows = report.joined - self._first.joined
        if rows != self._looks[-1][1]:
            self._last_row = now
        spent_s = report.spent_s()
        self._looks.append((now, rows, spent_s))
        since, rows_before, spent_before_s = self._looks[0]
        of_late = {name: max(s - spent_before_s.get(name, 0.0), 0.0) for name, s in spent_s.items()}
        total = report.rows - self._first.rows if self._total is None else self._total
        rate = (rows - rows_before) / max(now - since, 1e-3)
        return _Look(rows, total, rate, of_late, now - self._last_row)

    def _now(self) -> Report:
        """Of this process, or of all workers; of one that has ended, the last that was heard."""
        if self._client is None:
            return ledger.total()
        self._of |= self._client.run(ledger.total, on_error="ignore")
        return Report.merge(self._of.values())


def _keep_looking(seen: _Seen, show: Show, over: threading.Event) -> None:
    """On a thread of its own, until the block is over; then once more."""
    begin = time.monotonic()
    while True:
        last = over.wait(EVERY_S)
        try:
            show(seen.look(), time.monotonic() - begin)
        except Exception:  # a cluster that is gone ends the run, and a picture of it must not
            logger.debug("no progress can be shown", exc_info=True)
            return
        if last:
            return


@contextmanager
def _shown() -> Iterator[Show]:
    """Where people look: the notebook's page, or the terminal; nowhere if there is neither."""
    page = _page()
    if page is not None:
        yield lambda look, seconds: page(_html(look, seconds))
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.fields[look]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=None, look="")
        yield lambda look, _: bar.update(task, completed=look.rows, total=look.total or None, look=str(look))


def _page() -> Callable[[str], None] | None:
    """Replaces HTML in the output of the cell that runs; None outside of notebooks."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import HTML
    from IPython.display import display as show_in_cell

    page: Any = HTML
    handle: Any = show_in_cell(page(""), display_id=True)  # type: ignore[no-untyped-call]
    return lambda html: handle.update(page(html))


def _html(look: _Look, seconds: float) -> str:
    """A card with a bar."""
    done = look.rows / look.total if look.total else 0.0
    return display.card(
        "Scoring", f"{seconds:.0f} s", display.bar(done, look.account), display.shares(look.spent_s, SHARES)
    )


def _cancel(client: Client, keys: set[Any]) -> None:
    """Take tasks back; other tasks of the same client go on."""
    from distributed import Future

    if keys:
        logging.getLogger("asyncio").addFilter(_is_no_remainder)
        client.cancel([Future(key, client=client) for key in keys], force=True)  # type: ignore[no-untyped-call]
        logger.info("%d tasks are cancelled", len(keys))


def _is_no_remainder(record: logging.LogRecord) -> bool:
    """Whether a record is not of what Dask's own ``gather`` leaves when it is interrupted: a traceback for each task."""
    return "Client._gather" not in record.getMessage()
