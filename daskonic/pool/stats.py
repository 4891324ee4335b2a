"""What a pool has done so far."""

from __future__ import annotations

from dataclasses import dataclass

from daskonic import display

__all__ = ["EndpointStats", "PoolStats"]


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """One endpoint at one moment.

    Attributes
    ----------
    requests_total, failures_total, rejections_total : int
        Attempts sent, those that ended in an error, and those that found the server's queue full.
    in_flight : int
        Attempts under way.
    window : float
        Attempts that may be under way.
    connected : bool
        Whether there is a connection.
    healthy : bool
        Whether it answers, as far as known.
    """

    address: str
    requests_total: int
    failures_total: int
    rejections_total: int
    in_flight: int
    window: float
    connected: bool
    healthy: bool


@dataclass(frozen=True, slots=True, repr=False)
class PoolStats:
    """All endpoints of a pool at one moment.

    Attributes
    ----------
    retries_total, hedges_total : int
        Attempts after one that failed, and beside one that took long.
    in_flight, waiting : int
        Requests under way, and threads that wait for a permit.
    """

    endpoints: tuple[EndpointStats, ...]
    retries_total: int
    hedges_total: int
    waiting: int

    @property
    def requests_total(self) -> int:
        """Attempts sent to all endpoints."""
        return sum(e.requests_total for e in self.endpoints)

    @property
    def in_flight(self) -> int:
        """Attempts under way at all endpoints."""
        return sum(e.in_flight for e in self.endpoints)

    def __repr__(self) -> str:
        rows = [COLUMNS, *(_cells(e) for e in self.endpoints)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        return "\n".join([f"Pool: {self._account()}", *(f"  {line}" for line in lines)])

    def _repr_html_(self) -> str:
        return display.card("Pool", self._account(), display.table(map(_cells, self.endpoints), COLUMNS))

    def _account(self) -> str:
        """Totals in a line."""
        return (
            f"{self.requests_total:,} requests, {self.retries_total:,} retries, {self.hedges_total:,} asked twice; now "
            f"{self.in_flight:,} in flight, {self.waiting:,} threads waiting"
        )


COLUMNS = ("server", "state", "in flight", "window", "requests", "failed", "queue full")


def _cells(endpoint: EndpointStats) -> tuple[str, ...]:
    """One endpoint in words."""
    state = "away" if not endpoint.healthy else "connected" if endpoint.connected else "not connected"
    return (
        endpoint.address,
        state,
        f"{endpoint.in_flight:,}",
        f"{endpoint.window:.1f}",
        f"{endpoint.requests_total:,}",
        f"{endpoint.failures_total:,}",
        f"{endpoint.rejections_total:,}",
    )
