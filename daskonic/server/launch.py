"""What starting Triton takes: its command line, its variables, its backend folder, free ports."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from daskonic.errors import ConfigError, InputError
from daskonic.server.installation import Installation

__all__ = [
    "HOST",
    "Ports",
    "command",
    "environment",
    "free_ports",
    "is_free",
    "lay_out",
    "refuse_nothing_to_serve",
    "wheel",
]

HOST = "127.0.0.1"

Ports = tuple[int, int, int]
"""Of gRPC, HTTP and metrics."""


def command(
    program: Sequence[str | Path],
    repository: Path,
    *,
    server_id: str,
    ports: Ports,
    model_control: str,
    shm_prefix: str,
    flags: Sequence[str],
) -> list[str]:
    """The command line of Triton, after the program and what belongs to it."""
    grpc_port, http_port, metrics_port = map(str, ports)
    return [
        *map(str, program),
        "--id", server_id,
        "--model-repository", str(repository),
        "--grpc-address", HOST, "--grpc-port", grpc_port,
        "--http-address", HOST, "--http-port", http_port,
        "--metrics-address", HOST, "--metrics-port", metrics_port,
        "--model-control-mode", model_control,
        "--repository-poll-secs", "1",
        "--exit-on-error=false",  # so that the index can be asked why a model did not load
        "--exit-timeout-secs=5",
        "--disable-auto-complete-config",  # seconds at every start, for what config.pbtxt says already
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *flags,
    ]  # fmt: skip


def wheel(installation: Installation, backends: Path) -> list[str | Path]:
    """Triton of the wheel, which has the Python backend and nothing for GPUs."""
    return [
        installation.triton / "bin" / "tritonserver",
        "--backend-directory", backends,
        "--cache-directory", installation.triton / "caches",
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
    ]  # fmt: skip


def environment(installation: Installation) -> dict[str, str]:
    """Variables of the server: its stubs find their packages through ``python3`` on PATH."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return inherited | {
        "PATH": f"{installation.python.parent}{os.pathsep}{inherited.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": installation.library_path,
        "VIRTUAL_ENV": str(installation.path),
        # Recent wheels of ONNX Runtime report to their maker over the network unless told not to.
        "ORT_DISABLE_TELEMETRY": inherited.get("ORT_DISABLE_TELEMETRY", "1"),
    }


def lay_out(installation: Installation, backends: Path) -> None:
    """The Python backend as Triton wants it: the stub of one Python version beside the library."""
    backend = backends / "python"
    backend.mkdir(parents=True)
    shipped = installation.triton / "backends" / "python"
    stubs = installation.triton / "python_backend_stubs" / installation.python_version
    for source in (
        shipped / "libtriton_python.so",
        shipped / "triton_python_backend_utils.py",
        stubs / "triton_python_backend_stub",
    ):
        (backend / source.name).symlink_to(source)


def refuse_nothing_to_serve(repository: Path, *, is_explicit: bool) -> None:
    """InputError unless it is a model repository, with models unless they are named one by one later."""
    if not repository.is_dir():
        what = "is a file, not" if repository.exists() else "does not exist; it has to be"
        raise InputError(f"the model repository {repository} {what} a folder with one folder a model")
    if (repository / "config.pbtxt").exists():
        raise InputError(f"{repository} is a model; its repository is {repository.parent}")
    models = [p for p in repository.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not models and not is_explicit:
        raise InputError(f"the model repository {repository} has no model")


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OverflowError as error:
            raise ConfigError(f"port {port} is not between 1 and 65535") from error
        except OSError:
            return False
        return True


def free_ports(given: tuple[int | None, int | None, int | None]) -> Ports:
    """The ports given, and free ones for those that are not."""
    with contextlib.ExitStack() as stack:  # all held until all are chosen: no port twice
        ports = []
        for port in given:
            if port is None:
                sock = stack.enter_context(socket.socket())
                sock.bind((HOST, 0))
                port = int(sock.getsockname()[1])
            ports.append(port)
    return ports[0], ports[1], ports[2]
