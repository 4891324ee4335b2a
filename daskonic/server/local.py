"""A Triton of one's own on this machine: for a laptop, a test, a fallback."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from daskonic.errors import ConfigError, LocalServerError
from daskonic.server.index import ask, load_failure, repository_index
from daskonic.server.installation import Installation, Progress, find
from daskonic.server.launch import (
    HOST,
    Ports,
    command,
    environment,
    free_ports,
    is_free,
    lay_out,
    refuse_nothing_to_serve,
    wheel,
)
from daskonic.server.log import last_lines, new_log, port_taken

__all__ = ["LocalServer", "local_server"]

STARTS = 5  # attempts, where other processes keep taking the ports that were free
POLL_S = 0.02
KILL_S = 15.0  # how long the supervisor may take to clear up after a kill

SUPERVISOR = Path(__file__).with_name("supervisor.py")

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


def local_server(
    repository: str | os.PathLike[str],
    *,
    grpc_port: int | None = None,
    http_port: int | None = None,
    metrics_port: int | None = None,
    model_control: Literal["none", "explicit", "poll"] = "none",
    log: str | os.PathLike[str] | None = None,
    timeout_s: float = 120.0,
    flags: Sequence[str] = (),
    progress: Progress | None = None,
) -> LocalServer:
    """Triton on this machine, for as long as the ``with`` block lasts.

    It listens on the loopback interface only. However this process ends, the server ends too.

    Parameters
    ----------
    repository : path
        Model repository: a folder with one folder a model.
    grpc_port, http_port, metrics_port : int, optional
        Default: ports that are free.
    model_control : {"none", "explicit", "poll"}
        Serve all models; those that clients ask for; all, and follow changes of the repository.
    log : path, optional
        Where the server's output goes; default is a new file in daskonic's cache folder.
    timeout_s : float
        How long all models may take to be ready.
    flags : sequence of str
        More flags of ``tritonserver``.
    progress : callable of str, optional
        Called with one line if Triton is fetched first.

    Returns
    -------
    LocalServer
        Not started yet: use it in a ``with`` statement, or call ``start()`` and ``stop()``.

    Examples
    --------
    >>> with dk.local_server("models/") as server:  # doctest: +SKIP
    ...     scores = dk.Model("toy", servers=[server.address])(x)
    """
    return LocalServer(
        repository,
        ports=(grpc_port, http_port, metrics_port),
        model_control=model_control,
        log=log,
        timeout_s=timeout_s,
        flags=flags,
        progress=progress,
    )


class LocalServer:
    """A Triton process that belongs to this one; made by :func:`local_server`.

    ``program`` is a command that starts another ``tritonserver`` than daskonic's own, in a container perhaps.

    Attributes
    ----------
    repository : Path
    log : Path
        The server's output.
    address : str
        ``127.0.0.1:PORT`` of gRPC, for ``servers=[...]``.
    http_address, metrics_address : str
        URLs of the HTTP interface and of the Prometheus metrics.
    pid : int
        The server's process.
    id : str
        What this server, and no other, calls itself.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        ports: tuple[int | None, int | None, int | None] = (None, None, None),
        model_control: str = "none",
        log: str | os.PathLike[str] | None = None,
        timeout_s: float = 120.0,
        flags: Sequence[str] = (),
        progress: Progress | None = None,
        program: Sequence[str] = (),
    ) -> None:
        if model_control not in ("none", "explicit", "poll"):
            raise ConfigError(f"model_control is {model_control!r}; known: none, explicit, poll")
        self.repository = Path(repository).absolute()
        self.log = new_log() if log is None else Path(log).absolute()
        self._given = ports
        self._model_control = model_control
        self._timeout_s = timeout_s
        self._flags = tuple(flags)
        self._progress = progress
        self._program = tuple(program)
        self._ports: Ports = (0, 0, 0)
        self._id = ""
        self._run = Path()
        self._pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = self.address if self._process is not None else "not running"
        return f"<LocalServer {self.repository} {state}>"

    @property
    def id(self) -> str:
        """Name that this server, and no other, gives in its metadata."""
        return self._id

    @property
    def address(self) -> str:
        """Where clients send requests."""
        return f"{HOST}:{self._running_ports()[0]}"

    @property
    def http_address(self) -> str:
        """URL of the HTTP interface."""
        return f"http://{HOST}:{self._running_ports()[1]}"

    @property
    def metrics_address(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{HOST}:{self._running_ports()[2]}/metrics"

    @property
    def pid(self) -> int:
        """Process id of the server itself."""
        self._running_ports()
        return self._pid

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an exception nobody waits for answers any more.
        self.stop(grace_s=10.0 if kind is None else 0.0)

    def start(self) -> Self:
        """Start, and return when every model is ready.

        Raises
        ------
        InputError
            The repository does not exist or has no model.
        LocalServerError
            Triton cannot be fetched or started, or a model cannot be loaded: says why, as Triton said it.
        """
        if self._process is not None:
            raise LocalServerError(f"{self!r} is running already")
        refuse_nothing_to_serve(self.repository, is_explicit=self._model_control == "explicit")
        for port in self._given:
            if port is not None and not is_free(port):
                raise LocalServerError(
                    f"port {port} of {HOST} is in use; choose another, or none for a free one"
                )
        installation = None if self._program else find(self._progress)
        for attempt in range(1, STARTS + 1):
            self._ports = free_ports(self._given)
            try:
                self._launch(installation)
                self._await_ready()
            except _PortTakenError as error:
                self.stop(grace_s=0)
                logger.info("attempt %d of %d: %s", attempt, STARTS, error)
                if attempt == STARTS or self._given == self._ports:
                    raise LocalServerError(str(error)) from error
            except BaseException:
                self.stop(grace_s=0)
                raise
            else:
                break
        logger.info("Triton serves %s on %s, log in %s", self.repository, self.address, self.log)
        return self

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Stop the server and wait until it, its model processes and its shared memory are gone.

        Parameters
        ----------
        grace_s : float
            How long requests under way may take; 0 ends them at once.
        """
        if os.getpid() != self._owner:  # a forked child has this object, but not the server
            return
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(b"%f\n" % grace_s)
            process.stdin.close()
        try:
            process.wait(grace_s + KILL_S)
        except subprocess.TimeoutExpired:
            logger.warning("the supervisor (process %d) of %s had to be killed", process.pid, self.repository)
            process.kill()
            process.wait()
        if process.returncode < 0:
            self._clear_up()
        logger.info("Triton on %s:%d has stopped", HOST, self._ports[0])

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server ends by itself.

        Returns
        -------
        int or None
            Its exit code, 128 and more for a signal; None if it still runs after ``timeout_s``.
        """
        process = self._process
        if process is None:
            raise LocalServerError(f"{self!r} was not started")
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def models(self) -> list[dict[str, str]]:
        """What the repository holds: ``name``, ``version``, ``state`` and ``reason`` of each model version."""
        return self._models(time.monotonic() + 30)

    def _clear_up(self) -> None:
        """What the supervisor does at its end, if it was killed before."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        for path in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self._run, ignore_errors=True)

    def _running_ports(self) -> Ports:
        """Ports of gRPC, HTTP and metrics; LocalServerError unless running."""
        if self._process is None:
            raise LocalServerError(
                f"the server of {self.repository} is not running: use it in a with statement"
            )
        return self._ports

    def _launch(self, installation: Installation | None) -> None:
        """Start the supervisor and through it the server; without an installation, the program that was given."""
        self._owner = os.getpid()
        self._id = f"daskonic-{uuid.uuid4().hex[:16]}"
        self._run = Path(tempfile.mkdtemp(prefix="daskonic-server-"))
        program: Sequence[str | Path] = self._program
        python, variables = sys.executable, dict(os.environ)
        try:
            if installation is not None:
                lay_out(installation, self._run / "backends")
                program = wheel(installation, self._run / "backends")
                python, variables = str(installation.python), environment(installation)
            triton = command(
                program,
                self.repository,
                server_id=self._id,
                ports=self._ports,
                model_control=self._model_control,
                shm_prefix=self._shm_prefix,
                flags=self._flags,
            )
            supervisor = [
                python,
                "-I",
                "-S",
                SUPERVISOR,
                os.getpid(),
                self._shm_prefix,
                self._run,
            ]
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "wb") as log:
                self._process = subprocess.Popen(
                    [*map(str, supervisor), *triton],
                    env=variables,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for this process, which then stops the server
                )
        except OSError as error:
            shutil.rmtree(self._run, ignore_errors=True)
            raise LocalServerError(f"Triton cannot be started: {error}") from error
        atexit.register(self.stop, grace_s=0)
        assert self._process.stdout is not None
        with self._process.stdout as told:
            self._pid = int(told.readline() or 0)

    @property
    def _shm_prefix(self) -> str:
        """What the names of the server's shared memory begin with."""
        return f"{self._id}_"

    def _await_ready(self) -> None:
        """Return when the models are loaded; LocalServerError if one is not, or time is up."""
        end = time.monotonic() + self._timeout_s
        served = [m for m in self._models(end) if not m["name"].startswith(".")]
        self._until(end, lambda: ask(self._ports[2], "GET", "/metrics"))  # the port opened last
        wrong = [m for m in served if m["state"] != "READY"]
        if wrong and self._model_control != "explicit":
            listed = "\n".join(load_failure(model, self._read_log()) for model in wrong)
            raise LocalServerError(f"Triton cannot load {len(wrong)} of {len(served)} models:\n{listed}\n"
                                   f"The server's log is {self.log}")  # fmt: skip

    def _models(self, end: float) -> list[dict[str, str]]:
        """The repository index, as soon as the server answers; it does when it has loaded the models."""
        return self._until(end, lambda: repository_index(self._ports[1], self._id))

    def _until(self, end: float, ask_once: Callable[[], Answer]) -> Answer:
        """The first answer; LocalServerError if the server ends or time is up."""
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                return ask_once()
            self._refuse_dead()
            if time.monotonic() > end:
                raise LocalServerError(
                    f"Triton is not ready after {self._timeout_s:g} s (timeout_s); its log {self.log} ends:\n"
                    + last_lines(self._read_log())
                )
            time.sleep(POLL_S)

    def _refuse_dead(self) -> None:
        """LocalServerError, with what the server said last, if it has ended."""
        process = self._process
        code = 0 if process is None else process.poll()
        if code is None:
            return
        log = self._read_log()
        taken = port_taken(log)
        if taken is not None:
            raise _PortTakenError(f"{taken} is in use by another process")
        raise LocalServerError(f"Triton ended with code {code}; its log {self.log} ends:\n{last_lines(log)}")

    def _read_log(self) -> str:
        """The server's output so far."""
        try:
            return self.log.read_text(errors="replace")
        except OSError as error:
            return f"({error})"


class _PortTakenError(LocalServerError):
    """A port that was free has been taken since."""
