"""The Python environment that holds Triton Inference Server, apart from the user's own.

Triton comes from the wheel ``nvidia-pytriton``: the server itself and its Python backend. The wheel
pins NumPy below 2, so it goes into an environment of its own in the user's cache folder, made at first
use, where its pins bind nobody. An administrator can make one for all
(``daskonic serve --install-only`` with ``XDG_CACHE_HOME`` set) and name it in the Dask configuration as
``daskonic.server.installation``.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask.config

import daskonic.config  # noqa: F401  the default of daskonic.server.installation
from daskonic.errors import ConfigError, LocalServerError

__all__ = ["TRITON_VERSION", "Installation", "cache_folder", "find", "install"]

TRITON_VERSION = "2.51.0"
WHEEL = "nvidia-pytriton==0.7.0"  # the last that holds a server; it is Triton 2.51.0
ONNXRUNTIME = "onnxruntime>=1.17,<2"
MARKER = "daskonic-complete.json"
GLIBC_NEEDED = (2, 35)
PYTHONS = ((3, 9), (3, 13))  # oldest and newest that the wheel has a backend for

Progress = Callable[[str], None]

logger = logging.getLogger(__name__)

INSPECT = """
import ctypes, json, os, sys, sysconfig
version = "%d.%d" % sys.version_info[:2]
var = sysconfig.get_config_var
soname = "libpython%s.so.1.0" % version
libdir = var("LIBDIR") or ""
folders = [libdir, os.path.join(libdir, var("MULTIARCH") or ""), os.path.join(sys.base_prefix, "lib")]
shared = next((f for f in folders if f and os.path.exists(os.path.join(f, soname))), None)
if shared is None:
    try:
        ctypes.CDLL(soname)
        shared = ""
    except OSError:
        pass
print(json.dumps([version, sysconfig.get_path("purelib"), shared]))
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """Triton in an environment that is ready to use.

    Attributes
    ----------
    path : Path
        The environment.
    triton : Path
        Folder with the server's ``bin`` and ``backends``.
    python_version : str
        Such as ``"3.11"``: which of the wheel's Python backends fits.
    library_path : str
        ``LD_LIBRARY_PATH`` of server and Python backend.
    """

    path: Path
    triton: Path
    python_version: str
    library_path: str

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.path / "bin" / "python"


def find(progress: Progress | None = None) -> Installation:
    """The installation of the Dask configuration, else the one in the cache, made now if needed.

    Parameters
    ----------
    progress : callable of str, optional
        Called with one line before anything that takes long.

    Raises
    ------
    LocalServerError
        There is no Triton for this machine, it cannot be fetched, or the folder configured holds none.
    """
    configured = dask.config.get("daskonic.server.installation")
    if configured is not None:
        return _configured(configured)
    refuse_platform()
    python = _suitable_python()
    version = f"py{python.version.replace('.', '')}"
    path = cache_folder() / f"tritonserver-{TRITON_VERSION}-{version}"
    return install(path, python=python.path, progress=progress)


def install(
    path: Path, *, python: Path | None = None, numpy: str | None = None, progress: Progress | None = None
) -> Installation:
    """Make an environment with Triton, unless it is there and complete.

    Safe against other processes that want the same one at the same time, and against having been
    interrupted: what is not complete is made anew.

    Parameters
    ----------
    path : Path
        Folder of the environment.
    python : Path, optional
        Interpreter to base it on; default is the running one.
    numpy : str, optional
        Requirement. Default is ``numpy==1.26.4``, which the wheel asks for; on Python 3.13, which has no
        such wheel, NumPy 2, with which models must pass tensors by DLPack.
    progress : callable of str, optional
        Called with one line before anything that takes long.
    """
    path = Path(path).absolute()
    python = Path(sys.executable) if python is None else python
    if numpy is None:
        numpy = "numpy>=2.1,<3" if _inspect(python).numbers >= (3, 13) else "numpy==1.26.4"
    wanted = {"requirements": [numpy, ONNXRUNTIME, WHEEL]}
    if _marker(path) != wanted:
        with _lock(path, progress):
            if _marker(path) != wanted:  # another process may have made it while this one waited
                _build(path, python, wanted, progress)
    return _installation(path)


def cache_folder() -> Path:
    """Where daskonic keeps what can be fetched again."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "daskonic"


def refuse_platform() -> None:
    """LocalServerError where the wheel cannot run."""
    remedy = (
        "Use a Triton elsewhere (daskonic.servers, or servers=[...]), a container image of Triton, "
        "or a Linux x86_64 machine with glibc 2.35 or newer"
    )
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise LocalServerError(f"there is no Triton wheel for {system} {machine}. {remedy}")
    library, version = platform.libc_ver()
    numbers = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
    if library != "glibc" or numbers < GLIBC_NEEDED:
        raise LocalServerError(f"the Triton wheel needs glibc 2.35, this is {library or 'another libc'} "
                               f"{version or ''}. {remedy}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Python:
    """What matters of an interpreter."""

    path: Path
    version: str
    site: Path
    shared_library: str | None

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.version.split("."))

    @property
    def fits(self) -> bool:
        """Whether the wheel has a backend for it whose libraries are there."""
        bundled = self.numbers == (3, 13)  # this backend brings its own libpython
        return PYTHONS[0] <= self.numbers <= PYTHONS[1] and (bundled or self.shared_library is not None)


def _suitable_python() -> _Python:
    """The running interpreter, or else another on PATH that the Python backend can work with."""
    own = _inspect(Path(sys.executable))
    if own.fits:
        return own
    for minor in range(PYTHONS[1][1], PYTHONS[0][1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        if other is not None:
            try:
                found = _inspect(Path(other))
            except LocalServerError:  # such as a shim of a version manager that has no such version
                continue
            if found.fits:
                return found
    lacks = (
        f"has no shared library libpython{own.version}.so.1.0"
        if PYTHONS[0] <= own.numbers <= PYTHONS[1]
        else "is not of a version that the Triton wheel supports (3.9 to 3.13)"
    )
    raise LocalServerError(
        f"Triton's Python backend cannot use {sys.executable} (Python {own.version}): it {lacks}, and no other "
        "python3.9 to python3.13 on PATH has what it needs. Install the package libpython3.X of your "
        "distribution, or use a Python that is built with --enable-shared, such as conda's or uv's"
    )


@functools.cache  # an interpreter takes 0.1 s to start
def _inspect(python: Path) -> _Python:
    """Ask an interpreter for its version, site-packages and shared library."""
    done = subprocess.run(
        [python, "-I", "-c", INSPECT], capture_output=True, text=True, check=False, env=_environment()
    )
    if done.returncode:
        raise LocalServerError(f"the interpreter {python} does not work: {done.stderr.strip()[-500:]}")
    version, site, shared = json.loads(done.stdout)
    return _Python(python, version, Path(site), shared)


def _configured(configured: object) -> Installation:
    """The installation in the folder that the configuration names, or in a folder within it."""
    if not isinstance(configured, str | os.PathLike):
        raise ConfigError(f"daskonic.server.installation is {configured!r}; the path of a folder is needed")
    path = Path(configured).expanduser().absolute()
    candidates = [path, *sorted(path.glob(f"tritonserver-{TRITON_VERSION}-py*"))]
    for candidate in candidates:
        if (candidate / "bin" / "python").exists():
            return _installation(candidate)
    raise LocalServerError(
        f"daskonic.server.installation is {path}, which {'has' if path.exists() else 'does not exist and so has'} "
        "no environment with Triton; `daskonic serve --install-only` makes one, "
        "and without this setting it is made at first use"
    )


def _installation(path: Path) -> Installation:
    """Describe an environment; LocalServerError if Triton is not in it."""
    python = _inspect(path / "bin" / "python")
    triton = python.site / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / python.version / "triton_python_backend_stub"
    for needed in (triton / "bin" / "tritonserver", stub):
        if not needed.exists():
            raise LocalServerError(f"{path} holds no {WHEEL} with a backend for Python {python.version}: "
                                   f"{needed} is missing")  # fmt: skip
    if not python.fits:
        raise LocalServerError(f"{path}: its Python has no shared library libpython{python.version}.so.1.0, "
                               "which Triton's Python backend needs")  # fmt: skip
    libraries = [str(python.site / "nvidia_pytriton.libs"), python.shared_library]
    return Installation(path, triton, python.version, ":".join(folder for folder in libraries if folder))


def _marker(path: Path) -> object:
    """What the environment was made from; None unless it is complete."""
    try:
        return json.loads((path / MARKER).read_text()) if (path / "bin" / "python").exists() else None
    except (OSError, ValueError):
        return None


@contextmanager
def _lock(path: Path, progress: Progress | None) -> Iterator[None]:
    """One process at a time; the lock ends with its process, however that ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_name(path.name + ".lock"), "w")  # noqa: SIM115  closed below
    except OSError as error:
        raise LocalServerError(
            f"the folder {path.parent} cannot be written ({error.strerror}); set XDG_CACHE_HOME to one that can, "
            "or daskonic.server.installation to a Triton that is installed"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(progress, "waiting for another process that is fetching Triton Inference Server ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise LocalServerError(
                f"the file system of {path.parent} has no locks ({error.strerror}); set XDG_CACHE_HOME to another"
            ) from error
        yield


def _build(path: Path, python: Path, wanted: dict[str, list[str]], progress: Progress | None) -> None:
    """Make the environment; the marker comes last, so that half of one is never taken for whole."""
    _say(progress, f"fetching Triton Inference Server {TRITON_VERSION} (about 55 MB, once) into {path} ...")
    shutil.rmtree(path, ignore_errors=True)
    *ordinary, wheel = wanted["requirements"]
    uv = shutil.which("uv")
    if uv is not None:
        _run([uv, "venv", "--quiet", "--python", str(python), str(path)])
        pip = [uv, "pip", "install", "--quiet", "--python", str(path / "bin" / "python")]
    else:
        _run([str(python), "-m", "venv", str(path)])
        pip = [str(path / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *ordinary])
    _run([*pip, "--no-deps", wheel])
    (path / MARKER).write_text(json.dumps(wanted))
    _say(progress, f"Triton Inference Server {TRITON_VERSION} is installed")


def _run(command: list[str]) -> None:
    """Run an installer; LocalServerError with its last lines if it fails."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=_environment()
    )
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise LocalServerError(
            f"Triton cannot be fetched: `{' '.join(command)}` failed. Its last lines:\n{last}\nWithout a network, "
            "set daskonic.server.installation to a Triton that is installed, or use servers elsewhere"
        )


def _environment() -> dict[str, str]:
    """Variables of this process without those that would lead another interpreter to our packages."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}


def _say(progress: Progress | None, line: str) -> None:
    """To the log, and to whoever shows progress."""
    logger.info("%s", line)
    if progress is not None:
        progress(line)
