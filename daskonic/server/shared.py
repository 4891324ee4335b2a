"""One Triton for all processes of a node and user that need it: whoever is first starts it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from daskonic.errors import LocalServerError
from daskonic.server.index import repository_index
from daskonic.server.local import LocalServer, local_server

__all__ = ["shared_server"]

logger = logging.getLogger(__name__)

_own: dict[str, LocalServer] = {}
_own_lock = threading.Lock()


def shared_server(repository: str | os.PathLike[str]) -> str:
    """Address of the node's server of a repository; started here if there is none.

    It ends with the process that started it. Who notices that asks again, and then the next process starts one.

    Parameters
    ----------
    repository : path
        Model repository on this node.

    Returns
    -------
    str
        ``127.0.0.1:PORT``.

    Raises
    ------
    InputError
        The repository does not exist or has no model.
    LocalServerError
        Triton cannot be started.
    """
    folder = Path(repository).resolve()
    with _own_lock, _locked(folder) as note:
        address = _running(note)
        if address is None:
            server = local_server(folder).start()
            _own[str(folder)] = server
            address = server.address
            told = {"address": address, "http": server.http_address, "id": server.id, "pid": os.getpid()}
            note.write_text(json.dumps(told))
            logger.warning("this node's own Triton serves %s on %s", folder, address)
        return address


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """The note on a repository's server, for one process at a time."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/daskonic-{os.getuid()}")
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    if runtime.stat().st_uid != os.getuid():
        raise LocalServerError(
            f"{runtime} belongs to another user; set XDG_RUNTIME_DIR to a folder of your own"
        )
    note = runtime / f"daskonic-server-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
    with open(note.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield note


def _running(note: Path) -> str | None:
    """The address in a note, if a server answers there and the process that owns it lives."""
    try:
        told = json.loads(note.read_text())
        os.kill(told["pid"], 0)
        repository_index(int(told["http"].rsplit(":", 1)[1]), told["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(told["address"])
