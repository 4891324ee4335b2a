"""Servers that come and go: those of fleets, read from their folders while a pool is in use."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from daskonic.config import FLEET
from daskonic.errors import BatchSystemError, UnavailableError
from daskonic.roster import CLIENT_LOOKS_S, Folder, Pulse, Roster

__all__ = ["Discovery", "servers_now"]

logger = logging.getLogger(__name__)

SILENT_S = 30.0
"""A controller that has not been heard of for so long is worth a word."""


def servers_now(servers: Iterable[str]) -> tuple[str, ...]:
    """Addresses, with the servers that each fleet has at this moment in its place.

    Raises
    ------
    UnavailableError
        A fleet has none.
    """
    found: dict[str, None] = {}
    for server in servers:
        if not server.startswith(FLEET):
            found[server] = None
            continue
        fleet = _Fleet(Folder(server.removeprefix(FLEET)))
        fleet.look()
        if not fleet.servers:
            raise UnavailableError(
                f"{fleet.without()}; use one that is up, or start the fleet with a minimum of 1"
            )
        found |= dict.fromkeys(fleet.servers)
    return tuple(found)


class Discovery:
    """Tells a pool the servers of its fleets, and the fleets when the pool waits for a server.

    Parameters
    ----------
    servers : iterable of str
        Those of the settings.
    tell : callable of tuple of str
        Called with all addresses, at first and whenever there are others.
    """

    def __init__(self, servers: Iterable[str], tell: Callable[[tuple[str, ...]], None]) -> None:
        self._servers = tuple(servers)
        self._fleets = {
            s: _Fleet(Folder(s.removeprefix(FLEET))) for s in self._servers if s.startswith(FLEET)
        }
        self._tell = tell
        self._known: tuple[str, ...] | None = None
        self._wanted_at = -float("inf")
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if not self._fleets:
            self._look()

    def __bool__(self) -> bool:
        return bool(self._fleets)

    def start(self) -> None:
        """Look, and go on looking."""
        with self._lock:
            if self._fleets and self._thread is None and not self._over.is_set():
                self._look()
                self._thread = threading.Thread(target=self._run, name="daskonic-discovery", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """No more."""
        self._over.set()

    def want(self, *, alone: bool) -> None:
        """Somebody has a request to send.

        Parameters
        ----------
        alone : bool
            Whether there is nobody to send it to.

        Raises
        ------
        BatchSystemError
            There is nobody, and a fleet says why there will not be.
        """
        self._wanted_at = time.monotonic()
        if alone:
            for fleet in self._fleets.values():
                if fleet.trouble:
                    raise BatchSystemError(f"{fleet.without()}")

    def promises(self, model: str) -> bool:
        """Whether a fleet has a model, though perhaps no server of it just now."""
        return any(model in fleet.models for fleet in self._fleets.values())

    def without(self) -> str:
        """Why fleets have no servers, in words; empty if all have some."""
        return "; ".join(fleet.without() for fleet in self._fleets.values() if not fleet.servers)

    def _run(self) -> None:
        """On a thread of its own."""
        while not self._over.wait(CLIENT_LOOKS_S):
            self._look()

    def _look(self) -> None:
        """Read all rosters; ask for servers where there are none and somebody wants one."""
        wanted = time.monotonic() < self._wanted_at + 2 * CLIENT_LOOKS_S
        for fleet in self._fleets.values():
            fleet.look()
            if wanted:
                fleet.ask()
        found = dict.fromkeys(
            a for s in self._servers for a in (self._fleets[s].servers if s in self._fleets else (s,))
        )
        if tuple(found) != self._known:
            self._known = tuple(found)
            self._tell(self._known)


class _Fleet:
    """What is known of one fleet."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._roster = Roster()
        self._pulse = Pulse()
        self._still_s = 0.0
        self._asked = self._is_there = False

    @property
    def servers(self) -> tuple[str, ...]:
        """Those that take requests."""
        return self._roster.servers

    @property
    def models(self) -> tuple[str, ...]:
        """What all servers have together."""
        return self._roster.models

    @property
    def trouble(self) -> str:
        """Why there will be no server; empty if there may be."""
        return self._roster.trouble

    def look(self) -> None:
        """Read the roster; while that is not possible, things are as they were, unless the fleet is gone."""
        roster = self._folder.roster()
        if roster is not None:
            self._still_s = self._pulse.still_s(roster)
            self._roster, self._is_there = roster, True
            self._asked &= not roster.servers
        elif self._folder.is_gone():
            self._roster, self._is_there = Roster(), False

    def ask(self) -> None:
        """For a first server."""
        if self._roster.servers:
            return
        if not self._asked:
            self._asked = True
            logger.warning("%s: requests wait", self.without())
        with suppress(OSError):  # the reason is in without(), for whoever waits in vain
            self._folder.ask_for_servers()

    def without(self) -> str:
        """Why it has no server, in words."""
        path, roster = self._folder.path, self._roster
        if not self._is_there:
            return f"there is no fleet in {path} (on this machine, {os.uname().nodename})"
        if roster.trouble:
            return f"{self._folder} has no server: {roster.trouble}"
        if not roster.pid or self._still_s > SILENT_S:
            return (
                f"{self._folder} has no server, and nobody controls it: daskonic fleet attach {path.name}, or "
                f"dk.ServerFleet.attach({path.name!r})"
            )
        return f"{self._folder} has no server{f': {roster.note}' if roster.note else ' yet'}"
