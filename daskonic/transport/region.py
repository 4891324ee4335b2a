"""A piece of memory with a name that tells whose it is, for a server to map too."""

from __future__ import annotations

import contextlib
import itertools
import logging
import mmap
import os
import re
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daskonic.tensors import Request
from daskonic.transport.message import header

__all__ = [
    "FOLDER",
    "NAME",
    "Region",
    "aligned",
    "disown",
    "has_shared_memory",
    "is_here",
    "is_room_for",
    "is_stale",
    "remove_stale_files",
]

ALIGNMENT = 64
SHARE_OF_FREE = 0.25
FOLDER = Path("/dev/shm")
NAME = re.compile(r"daskonic\.(?P<namespace>\d+)\.(?P<pid>\d+)\.(?P<start>\d+)\.\d+\.[0-9a-f]{8}")

logger = logging.getLogger(__name__)

_numbers = itertools.count()
_own: set[str] = set()  # names of this process's regions, over all transports


def has_shared_memory() -> bool:
    """Whether this system has it, at the place where servers look for it."""
    return FOLDER.is_dir()


def is_room_for(nbytes: int) -> bool:
    """Whether a region leaves enough: models' processes on the server live from the same few MB in containers."""
    free = os.statvfs(FOLDER)
    return nbytes <= SHARE_OF_FREE * free.f_bavail * free.f_frsize


def aligned(nbytes: int) -> int:
    """The next multiple of a cache line."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Region:
    """Memory that a server has mapped too.

    Parameters
    ----------
    nbytes : int

    Attributes
    ----------
    name : str
        What the server knows it by.
    memory : array of uint8, [nbytes]

    Raises
    ------
    OSError
        There is not so much shared memory.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.name = _new_name()
        self._path = FOLDER / self.name
        _own.add(self.name)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, nbytes)  # an error now, rather than SIGBUS when written
            mapped = mmap.mmap(descriptor, nbytes)
        except BaseException:
            self.hide()
            raise
        finally:
            os.close(descriptor)
        self.memory: npt.NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)

    def hide(self) -> None:
        """Remove the file: the server has mapped it, or never will."""
        self._path.unlink(missing_ok=True)

    def written(self, request: Request, reserved: Mapping[str, int]) -> tuple[bytes, dict[str, slice]]:
        """Write the inputs.

        Parameters
        ----------
        request : Request
        reserved : mapping of str to int
            Outputs that go into the region too, and their sizes in bytes.

        Returns
        -------
        bytes
            The message that says where everything is.
        dict of str to slice
            Where the outputs will be.
        """
        message = header(request)
        offset = 0
        for tensor, array in zip(message.inputs, request.inputs.values(), strict=True):
            target = self.memory[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
            np.copyto(target, array)
            offset = self._put(tensor, offset, array.nbytes)
        places = {}
        for tensor in message.outputs:
            if tensor.name in reserved:
                places[tensor.name] = slice(offset, offset + reserved[tensor.name])
                offset = self._put(tensor, offset, reserved[tensor.name])
        return message.SerializeToString(), places

    def _put(self, tensor: Any, offset: int, nbytes: int) -> int:
        """Say in the message where a tensor is; where the next one may be."""
        tensor.parameters["shared_memory_region"].string_param = self.name
        tensor.parameters["shared_memory_byte_size"].int64_param = nbytes
        if offset:
            tensor.parameters["shared_memory_offset"].int64_param = offset
        return offset + aligned(nbytes)


def is_stale(name: str) -> bool:
    """Whether a region's name is that of a process which is gone, or of a region which is."""
    found = NAME.fullmatch(name)
    if found is None or found["namespace"] != _namespace():
        return False
    pid = int(found["pid"])
    if pid == os.getpid():
        return name not in _own
    start = _start_time(pid)
    return start != found["start"] if start else not _is_there(pid)


def remove_stale_files() -> None:
    """Remove what processes left that died while a server was mapping a region of theirs."""
    with contextlib.suppress(OSError):
        for name in os.listdir(FOLDER):
            if is_stale(name):
                with contextlib.suppress(OSError):
                    (FOLDER / name).unlink()
                    logger.info("removed /dev/shm/%s of a process that is gone", name)


def disown(name: str) -> None:
    """A region of this process is of no use any more."""
    _own.discard(name)


def _new_name() -> str:
    """A name that tells whose it is, and that nobody can have by chance."""
    pid = os.getpid()
    return f"daskonic.{_namespace()}.{pid}.{_start_time(pid)}.{next(_numbers)}.{uuid.uuid4().hex[:8]}"


def _namespace() -> str:
    """The PID namespace: containers may share /dev/shm and not their process ids."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks after boot; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # the name before it may hold blanks


def _is_there(pid: int) -> bool:
    """Whether a process exists, though /proc may not show it to us."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_here(host: str) -> bool:
    """Whether a name or address is one of this host.

    Parameters
    ----------
    host : str
        Empty for a Unix socket.
    """
    if not host:
        return True
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    return bool(found) and all(_can_bind(family, address) for family, _, _, _, address in found)


def _can_bind(family: int, address: Any) -> bool:
    """Only an address of this host can be bound to."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        return True
    return False
