"""What a scan found, for readers and for files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from daskonic.errors import InputError, OutputError

__all__ = ["Point", "Scan"]


@dataclass(frozen=True, slots=True)
class Point:
    """One batch size with one number of requests in flight; medians over the rounds.

    Attributes
    ----------
    instances : int
        Copies of the model; 0 where a running server has as many as it has.
    batch_size : int
        Rows in a request; 0 for a model without a batch dimension, whose rows are requests.
    concurrency : int
        Requests in flight at each server.
    rows_per_s, rows_per_s_least, rows_per_s_most : float
    latency_ms, latency_ms_least, latency_ms_most : float
        Of a request, as the client sees it: medians of a round.
    compute_ms, queue_ms : float
        Means of a request by the server's own account; 0 where it keeps none.
    """

    instances: int
    batch_size: int
    concurrency: int
    rows_per_s: float
    rows_per_s_least: float
    rows_per_s_most: float
    latency_ms: float
    latency_ms_least: float
    latency_ms_most: float
    compute_ms: float
    queue_ms: float


@dataclass(frozen=True, slots=True)
class Scan:
    """All points of a scan.

    Attributes
    ----------
    model, version : str
    servers : tuple of str
    seconds, rounds : float, int
        How long, and how often each point was measured.
    points : tuple of Point
        By instances, batch size and requests in flight.
    """

    model: str
    version: str
    servers: tuple[str, ...]
    seconds: float
    rounds: int
    points: tuple[Point, ...]

    @property
    def best(self) -> Point:
        """The point with the most rows per second."""
        return max(self.points, key=lambda point: point.rows_per_s)

    @property
    def spread(self) -> float:
        """How many times the least rate the most is, for the point where it is most."""
        return max(p.rows_per_s_most / p.rows_per_s_least for p in self.points)

    def facts(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)

    def write(self, path: str | os.PathLike[str]) -> None:
        """As a JSON file.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        try:
            Path(path).write_text(json.dumps(self.facts(), indent=1) + "\n")
        except OSError as error:
            raise OutputError(f"the scan cannot be written to {path}: {error.strerror}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """From a file of :meth:`write`.

        Raises
        ------
        InputError
            It is another kind of file, or cannot be read.
        """
        try:
            facts = json.loads(Path(path).read_text())
            points = tuple(Point(**point) for point in facts.pop("points"))
            return cls(**facts | {"servers": tuple(facts["servers"]), "points": points})
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a scan, as daskonic scan writes it") from error

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Rows per second over the batch size, a line for each number of requests in flight.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        lines = sorted({(p.instances, p.concurrency) for p in self.points})
        several = len({instances for instances, _ in lines}) > 1
        for instances, concurrency in lines:
            points = [p for p in self.points if (p.instances, p.concurrency) == (instances, concurrency)]
            rates = [p.rows_per_s for p in points]
            spread = [
                [p.rows_per_s - p.rows_per_s_least for p in points],
                [p.rows_per_s_most - p.rows_per_s for p in points],
            ]
            label = f"{concurrency} in flight" + (f", {instances} instances" if several else "")
            sizes = [max(p.batch_size, 1) for p in points]
            axes.errorbar(sizes, rates, spread, marker="o", capsize=2, label=label)
        axes.set(xscale="log", xlabel="rows in a request", ylabel="rows/s", title=self.model)
        sizes = sorted({max(p.batch_size, 1) for p in self.points})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise OutputError(f"the plot cannot be written to {path}: {error}") from error
