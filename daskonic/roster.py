"""The folder in which a fleet's controller, its server jobs and its clients find each other.

::

    spec.json          what was asked for; written once
    roster.json        jobs that are wanted, servers that are ready; written by the controller every second
    servers/KEY.json   what a job says of its server; written by the job every second
    demand             its time is set by clients that want a server while there is none
    stop               says so once somebody wants the fleet to end
    term-N             whoever made the highest of these controls the fleet

Files are replaced in one step and opened by name, never found by listing: a network file system shows the listing of a
minute ago, while what it opens is of now.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["CLIENT_LOOKS_S", "Entry", "Folder", "Pulse", "Roster"]

CLIENT_LOOKS_S = 2.0
"""How often a client reads the roster: as long as that it may send to a server that has left."""
REMOVALS, REMOVAL_PAUSE_S = 20, 0.2


@dataclass(frozen=True, slots=True)
class Roster:
    """A fleet, as its controller sees it.

    Attributes
    ----------
    term, beat : int
        Number of the controller, and of what it wrote.
    written_s : float
        When, by its clock (seconds since 1970).
    host, pid : str, int
        Where the controller runs; 0 once it has given the fleet up for another one.
    jobs : mapping of str to str
        Keys of the jobs that are wanted, and their numbers in the batch system, empty before they are known.
    servers : tuple of str
        Addresses that take requests.
    models : tuple of str
        What all servers have together.
    note, trouble : str
        What is waited for, and why there will be no server.
    """

    term: int = 0
    beat: int = 0
    written_s: float = 0.0
    host: str = ""
    pid: int = 0
    jobs: Mapping[str, str] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    note: str = ""
    trouble: str = ""

    @property
    def who(self) -> str:
        """The controller in words."""
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A server, as its job sees it.

    Attributes
    ----------
    beat : int
        Number of what it wrote.
    written_s : float
        When, by the clock of its node (seconds since 1970).
    state : {"starts", "serves", "leaves", "ended"}
    node, job : str
        Its host, and its number in the batch system where the job is told.
    address : str
        ``host:port`` for clients.
    models : tuple of str
    leaves_s : float
        When it takes itself off the list, for its job ends then; infinite if nobody says.
    requests : int
        Answered so far.
    queue_s, compute_s : float
        Sums over them.
    why : str
        What it leaves or ended for.
    """

    beat: int = 0
    written_s: float = 0.0
    state: Literal["starts", "serves", "leaves", "ended"] = "starts"
    node: str = ""
    job: str = ""
    address: str = ""
    models: tuple[str, ...] = ()
    leaves_s: float = float("inf")
    requests: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    why: str = ""


class Folder:
    """A fleet's folder.

    Parameters
    ----------
    path : path
        Seen under the same name by the controller, the nodes of the servers, and the clients.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return f"fleet {self.path.name!r}"

    def create(self, spec: Mapping[str, Any]) -> None:
        """Make it, for its user alone; OSError if it is there already."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700)
        (self.path / "servers").mkdir()
        (self.path / "demand").touch()
        (self.path / "stop").touch()
        _replace(self.path / "spec.json", spec)

    def remove(self) -> None:
        """With all that is in it."""
        for _ in range(REMOVALS):
            shutil.rmtree(self.path, ignore_errors=True)  # a job that ends may write just now
            if not self.path.exists():
                return
            time.sleep(REMOVAL_PAUSE_S)

    def spec(self) -> dict[str, Any] | None:
        """What was asked for; None where there is no fleet, or it cannot be read just now."""
        return _read(self.path / "spec.json")

    def is_gone(self) -> bool:
        """Whether there is certainly no fleet."""
        try:
            os.close(os.open(self.path / "spec.json", os.O_RDONLY))
        except FileNotFoundError:
            return True
        except OSError:
            pass
        return False

    def roster(self) -> Roster | None:
        """The controller's view; None where there is none, or it cannot be read just now."""
        found = _read(self.path / "roster.json")
        return None if found is None else Roster(**found)

    def write_roster(self, roster: Roster) -> None:
        """For all to read."""
        _replace(self.path / "roster.json", asdict(roster))

    def entry(self, key: str) -> Entry | None:
        """A job's view; None where there is none, or it cannot be read just now."""
        found = _read(self.path / "servers" / f"{key}.json")
        return None if found is None else Entry(**found)

    def write_entry(self, key: str, entry: Entry) -> None:
        """For the controller. It writes the first one, since a name that was not there is remembered as missing."""
        _replace(self.path / "servers" / f"{key}.json", asdict(entry))

    def drop_entry(self, key: str) -> None:
        """The job is gone."""
        with suppress(OSError):
            (self.path / "servers" / f"{key}.json").unlink(missing_ok=True)

    def ask_for_servers(self) -> None:
        """Somebody waits."""
        os.utime(self.path / "demand")

    def asked(self) -> int:
        """Changes whenever somebody waits."""
        try:
            with open(self.path / "demand", "rb") as mark:
                return os.fstat(mark.fileno()).st_mtime_ns
        except OSError:
            return 0

    def ask_to_stop(self) -> None:
        """Tell whoever controls the fleet to end it."""
        (self.path / "stop").write_text("stop")

    def is_to_stop(self) -> bool:
        """Whether somebody wants it to end."""
        try:
            return bool((self.path / "stop").read_bytes())
        except OSError:
            return False

    def claim(self, term: int) -> bool:
        """Whether the fleet is ours to control under this number; of several who try one succeeds."""
        try:
            os.close(os.open(self.path / f"term-{term}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        (self.path / f"term-{term - 1}").unlink(missing_ok=True)
        return True


class Pulse:
    """Whether somebody who writes a file again and again still does, by this machine's clock alone."""

    def __init__(self) -> None:
        self._beat: tuple[int, int] | None = None
        self._since = 0.0

    def still_s(self, written: Roster | Entry) -> float:
        """How long it has stood still; at first sight what the writer's clock says, which may be wrong by little."""
        beat, now = (getattr(written, "term", 0), written.beat), time.monotonic()
        if self._beat is None:
            self._since = now - max(time.time() - written.written_s, 0.0)
        elif beat != self._beat:
            self._since = now
        self._beat = beat
        return now - self._since


def _read(path: Path) -> dict[str, Any] | None:
    """A file's content, opened anew each time."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    """All at once, or not at all."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        staged.write_text(json.dumps(content))
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
