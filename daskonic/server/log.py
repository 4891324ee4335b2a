"""The output of Triton: where it is kept, and what it says about failures."""

from __future__ import annotations

import re
import tempfile
import time
import uuid
from pathlib import Path

from daskonic.server.installation import cache_folder

__all__ = ["last_lines", "new_log", "port_taken"]

LOGS_KEPT = 20


def new_log() -> Path:
    """A file for the server's output; of the older ones the newest are kept."""
    folder = cache_folder() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = sorted(folder.glob("triton-*.log"), key=lambda p: p.stat().st_mtime)
        for path in old[: 1 - LOGS_KEPT]:
            path.unlink(missing_ok=True)
    except OSError:  # a home that cannot be written, or another process that tidies up just now
        folder = Path(tempfile.gettempdir())
    return folder / f"triton-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}.log"


def port_taken(log: str) -> str | None:
    """The address that somebody else listens on already."""
    found = re.search(r"Socket '([^']+)' already in use", log)
    return None if found is None else found[1]


def last_lines(log: str, count: int = 15) -> str:
    """The end of a log, without the tables of options and the usage text that follows a wrong flag."""
    said, _, _ = log.partition("Usage: tritonserver")
    lines = [line for line in said.splitlines() if line.strip() and line[0] not in "+|"]
    return "\n".join(lines[-count:])
