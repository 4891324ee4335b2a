"""Whether somebody still wants the answers of some calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daskonic.pool.call import Call

__all__ = ["Claim"]


class Claim:
    """A hold on calls; given up from another thread, it ends them, those to come included.

    Parameters
    ----------
    owner : hashable
        Who wants the answers: a Dask task's key.

    Attributes
    ----------
    is_given_up : bool
    """

    def __init__(self, owner: Hashable = None) -> None:
        self.owner = owner
        self.is_given_up = False
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, call: Call) -> None:
        """One more call."""
        with self._lock:
            self._calls.add(call)
            late = self.is_given_up
        if late:
            call.cancel()

    def give_up(self) -> None:
        """Nobody wants the answers any more."""
        with self._lock:
            self.is_given_up = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()
