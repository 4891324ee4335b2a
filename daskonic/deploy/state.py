"""What a batch system says: of its jobs, to commands, and in their logs."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daskonic.errors import BatchSystemError

__all__ = ["JobState", "call", "last_words"]

COMMAND_S = 60.0
LOG_NBYTES = 4096


@dataclass(frozen=True, slots=True)
class JobState:
    """What the batch system says of a job.

    Attributes
    ----------
    phase : {"waits", "runs", "ended"}
    words : str
        Its own words: state, reason, exit code.
    node : str
        Where it runs or ran; empty if nowhere.
    name : str
        Of the run that it belongs to, as the batch system shows it.
    """

    phase: Literal["waits", "runs", "ended"]
    words: str
    node: str = ""
    name: str = ""


async def call(*command: str) -> str:
    """Output of a command of the batch system.

    Raises
    ------
    BatchSystemError
        It is not there, takes too long, or fails; with what it says.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise BatchSystemError(
            f"cannot run {command[0]!r} ({error.strerror}); jobs are submitted from a machine that has the batch "
            "system's commands, such as a login node"
        ) from error
    try:
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
    except TimeoutError:
        process.kill()
        raise BatchSystemError(f"{command[0]} has not answered for {COMMAND_S:g} s") from None
    if process.returncode:
        words = "; ".join(dict.fromkeys(filter(None, map(str.strip, (err or out).decode().splitlines()))))
        raise BatchSystemError(f"{command[0]}: {words or f'exit code {process.returncode}'}")
    return out.decode()


def last_words(path: Path) -> str:
    """The last line of a log that says something; daskonic's own before others."""
    try:
        text = path.read_bytes()[-LOG_NBYTES:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    ours = [line for line in lines if line.startswith("daskonic: ")]
    return (ours or lines or [""])[-1]
