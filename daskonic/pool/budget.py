"""How workers of one cluster share what a site allows all of them together: policy without I/O, locks or clock.

It runs at the Dask scheduler, and in a simulation. Of a budget nobody gets more than it wants, and who wants more than
there is gets as much as the others. Shares are whole numbers: where that leaves a remainder, or there are fewer
places than workers that want one, they take turns.

The budget holds at every moment, not only on average: what one worker loses is given to another only when the first has
said that it no longer uses it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Budget"]

IN_HAND = 4
"""Of what nobody wants just now, each worker has up to this part of an equal share, or its next request would wait."""


@dataclass(slots=True)
class _Holder:
    """One worker: what it wants, may use, may still be using, and how much of its due it has not had (times seconds)."""

    want: int = 0
    share: int = 0
    held: int = 0
    serial: int = 0
    credit: float = 0.0


class Budget:
    """Something that workers share: places for requests, or parts of a bandwidth.

    Parameters
    ----------
    total : int

    Attributes
    ----------
    turn_s : float
        How long one keeps what it has beyond an equal share, before it is another's turn. Long against the time
        between two divisions, since handing over takes one.
    """

    def __init__(self, total: int) -> None:
        self.turn_s = 2.0
        self._total = total
        self._holders: dict[str, _Holder] = {}
        self._now = 0.0

    def report(self, worker: str, want: int, held: int, serial: int) -> None:
        """What a worker wants, and what it holds since it heard of the share with this number."""
        holder = self._holders.setdefault(worker, _Holder())
        holder.want = want
        if serial == holder.serial:
            holder.held = held

    def leave(self, worker: str) -> None:
        """It is gone, and so are its connections."""
        self._holders.pop(worker, None)

    def divide(self, now: float) -> dict[str, tuple[int, int]]:
        """Shares that change now, each with a number that the worker's next reports carry."""
        fair = self._fair()
        self._count_credit(now, fair)
        target = self._whole(fair)
        changed = {w for w, holder in self._holders.items() if target[w] < holder.share}
        for worker in changed:
            self._holders[worker].share = target[worker]
        free = self._total - sum(max(h.share, h.held) for h in self._holders.values())
        for worker in sorted(target, key=lambda w: -self._holders[w].credit):
            holder = self._holders[worker]
            free += max(holder.share, holder.held)  # what it gave up itself, it may have again
            share = min(target[worker], max(free, holder.share))
            if share > holder.share:
                holder.share = share
                changed.add(worker)
            free -= max(holder.share, holder.held)
        for worker in changed:
            holder = self._holders[worker]
            holder.held = max(holder.held, holder.share)
            holder.serial += 1
        return {w: (self._holders[w].share, self._holders[w].serial) for w in changed}

    def _fair(self) -> dict[str, float]:
        """Equal shares, but no more than wanted; of the rest a little in hand."""
        fair = _leveled({w: h.want for w, h in self._holders.items()}, self._total)
        in_hand = self._total // (IN_HAND * max(len(fair), 1))
        more = _leveled({w: max(in_hand - f, 0.0) for w, f in fair.items()}, self._total - sum(fair.values()))
        return {w: f + more[w] for w, f in fair.items()}

    def _count_credit(self, now: float, fair: dict[str, float]) -> None:
        """Who has less than its due is owed it."""
        seconds, self._now = now - self._now, now
        for worker, holder in self._holders.items():
            owed = holder.credit + seconds * (fair[worker] - holder.share)
            holder.credit = min(max(owed, -2 * self.turn_s), 2 * self.turn_s) if holder.want else 0.0

    def _whole(self, fair: dict[str, float]) -> dict[str, int]:
        """Whole numbers with the same sum; who is owed most gets what cannot be divided, and keeps it for its turn."""
        whole = {w: int(f + 1e-9) for w, f in fair.items()}
        in_parts = [w for w, f in fair.items() if f - whole[w] > 1e-6]

        def owed(worker: str) -> float:
            holder = self._holders[worker]
            return holder.credit + (self.turn_s if holder.share > whole[worker] else 0.0)

        left = round(sum(fair.values())) - sum(whole.values())
        for worker in sorted(in_parts, key=owed, reverse=True)[:left]:
            whole[worker] += 1
        return whole


def _leveled(wants: dict[str, float] | dict[str, int], total: float) -> dict[str, float]:
    """Of a total, to each as much as it wants, or as much as to the others that want more than there is."""
    shares, left = {}, float(total)
    for i, worker in enumerate(sorted(wants, key=lambda w: wants[w])):
        shares[worker] = min(float(wants[worker]), left / (len(wants) - i))
        left -= shares[worker]
    return shares
