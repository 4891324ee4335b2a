"""Daemons of a batch system as children of the tests, with all their files in one folder."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path


def free_ports(n: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in random.sample(range(20_000, 30_000, n), 100):
        try:
            for port in range(first, first + n):
                with socket.socket() as tried:
                    tried.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError(f"no {n} free ports in a row")


def eventually(condition, seconds: float = 30.0) -> bool:
    """Whether it becomes so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


class Daemons:
    """Programs in the foreground that end with this process, even if it is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {}
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str | Path, prefix: tuple[str, ...] = ()) -> None:
        """One more, its output in ``NAME.out``."""
        name = Path(command[0]).name
        with (self.folder / f"{name}.out").open("ab") as out:
            self._running.append(
                subprocess.Popen(
                    [*prefix, "setpriv", "--pdeathsig", "TERM", *map(str, command)],
                    stdout=out,
                    stderr=out,
                    env=os.environ | self.environment,
                    start_new_session=True,
                )
            )

    def ask(self, *command: str, seconds: float = 10.0) -> str:
        """What a command prints; empty if it fails."""
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=seconds,
                env=os.environ | self.environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout if done.returncode == 0 else ""

    def wait(self, is_ready, seconds: float = 60.0) -> None:
        """Until it is so, or an error with the ends of all logs."""
        end = time.monotonic() + seconds
        while not is_ready():
            ended = [process.args for process in self._running if process.poll() is not None]
            if ended or time.monotonic() > end:
                raise RuntimeError(f"not ready; ended: {ended}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of every log."""
        logs = [*self.folder.glob("*.out"), *self.folder.glob("**/*.log"), *self.folder.glob("log/*Log*")]
        return "\n".join(f"== {p}\n{p.read_text(errors='replace')[-600:]}" for p in logs)

    def stop(self) -> None:
        """The last one first."""
        for process in reversed(self._running):
            process.terminate()
        for process in reversed(self._running):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def run_until_interrupted(system_of) -> None:
    """Run a batch system in a folder of its own until Ctrl-C, and say how to talk to it."""
    system = system_of(Path(tempfile.mkdtemp(prefix=f"{system_of.name}-")))
    try:
        begin = time.monotonic()
        system.start()
        print(f"ready after {time.monotonic() - begin:.1f} s", flush=True)
        print(" ".join(f"export {k}={v};" for k, v in system.environment.items()), flush=True)
        while True:
            time.sleep(60)
    except KeyboardInterrupt:
        pass
    finally:
        system.stop()
        shutil.rmtree(system.folder)
