"""Runs one Triton and outlives its owner by as long as it takes to leave nothing behind.

A script of its own, run by the interpreter of Triton's environment; standard library only.

Usage: ``supervisor.py OWNER_PID SHM_PREFIX RUN_FOLDER COMMAND...``. The first line on standard output
is the server's process id. A line with seconds on standard input stops the server, in-flight requests
having that long to finish; the end of standard input without one means that the owner is gone, by
SIGKILL perhaps, and ends the server at once. The exit code is the server's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TERMINATED_GRACE_S = 5.0
REAP_S = 10.0


def main(owner: int, shm_prefix: str, run_folder: Path, command: list[str]) -> int:
    """Start the server, watch server and owner, clean up."""
    libc = ctypes.CDLL(None)
    # A stub whose server died becomes a child of this process, so that none can be overlooked.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    terminated: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: terminated.append(n))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509  no threads here
    )
    with contextlib.suppress(OSError):  # the owner may be gone already
        os.write(1, b"%d\n" % server.pid)
    grace_s = 0.0
    while server.poll() is None:
        # The end of standard input may be held up by a forked child of the owner, which has it too.
        readable, _, _ = select.select([0, awake], [], [], 1.0)
        if 0 in readable:
            grace_s = _seconds(os.read(0, 64))
            break
        if awake in readable:
            os.read(awake, 64)
        if terminated:
            grace_s = TERMINATED_GRACE_S
            break
        if os.getppid() != owner:
            break
    code = _end(server, grace_s)
    for path in Path("/dev/shm").glob(shm_prefix + "*"):
        path.unlink(missing_ok=True)
    shutil.rmtree(run_folder, ignore_errors=True)
    return code


def _seconds(line: bytes) -> float:
    """The time that the owner gives; none if it is gone."""
    try:
        return float(line)
    except ValueError:
        return 0.0


def _end(server: subprocess.Popen[bytes], grace_s: float) -> int:
    """Stop the server if it runs, then every process that came from it."""
    if grace_s > 0 and server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(grace_s)
    # A stub that is inside a model's execute() ignores SIGTERM and its server's death.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    code = server.wait()
    end = time.monotonic() + REAP_S
    while time.monotonic() < end:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            for child in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
    return code if code >= 0 else 128 - code


def _children() -> list[int]:
    """Processes whose parent is this one."""
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return []


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:]))
