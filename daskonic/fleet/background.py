"""Controllers without a user: ``python -m daskonic.fleet.background FOLDER`` controls a fleet until it is stopped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from daskonic.config import fleet_folder
from daskonic.errors import ConfigError, DaskonicError
from daskonic.fleet.fleet import ServerFleet
from daskonic.fleet.spec import Spec
from daskonic.roster import Folder

__all__ = ["control", "stop"]

POLL_S = 0.2
START_S = 60.0
STOP_S = 90.0

_started: list[subprocess.Popen[bytes]] = []
"""Those of this process, which Python would complain about if they were forgotten while they run."""


def control(name: str) -> int:
    """Control a fleet that exists from a process of its own, which outlives this one.

    Returns
    -------
    int
        Its number.

    Raises
    ------
    ConfigError
        There is no such fleet, or somebody controls it.
    """
    folder = Folder(fleet_folder(name))
    Spec.read(folder)
    log = folder.path / "controller.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "daskonic.fleet.background", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _started.append(process)
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        roster = folder.roster()
        if roster is not None and roster.pid == process.pid:
            return process.pid
        if process.poll() is not None:
            said = log.read_text(errors="replace").strip().rpartition("daskonic: ")[2]
            raise ConfigError(said or f"the controller of {folder} has ended with code {process.returncode}")
        time.sleep(POLL_S)
    process.terminate()
    raise ConfigError(f"the controller of {folder} has not begun within {START_S:g} s; see {log}")


def stop(name: str) -> None:
    """Cancel all jobs of a fleet and forget it, whoever controls it.

    Raises
    ------
    ConfigError
        There is no such fleet, or its controller does not stop.
    """
    folder = Folder(fleet_folder(name))
    Spec.read(folder)
    with suppress(FileNotFoundError):  # it has just ended
        folder.ask_to_stop()
    try:
        ServerFleet.attach(str(folder.path)).stop()
    except ConfigError as error:  # somebody controls it, and has been told
        end = time.monotonic() + STOP_S
        while not folder.is_gone():
            if time.monotonic() > end:
                raise ConfigError(f"{folder} has not ended within {STOP_S:g} s: {error}") from error
            time.sleep(POLL_S)


def main(path: str) -> int:
    """Control a fleet; SIGTERM leaves its servers to another controller. An exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        fleet = ServerFleet.attach(path)
    except DaskonicError as error:
        sys.stderr.write(f"daskonic: {error}\n")
        return error.exit_code
    signal.signal(signal.SIGTERM, lambda *_: fleet.release())
    os.chdir(Path(path).anchor)
    fleet.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
