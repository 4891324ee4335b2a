"""System shared memory, for a server on the same host: inputs are written once, where it reads them.

Inputs go this way, and outputs that are large and whose size the model's description tells. Scores
come back on the wire: 1000 rows of ten classes are 40 kB after 8 MB of inputs. A region is one
request's: without outputs in it, it is free when the request has been answered; with them, when the
last array that is a view of it is gone, however long somebody keeps it.

What keeps a crash from leaving anything behind:

* A region's file in /dev/shm is removed as soon as the server has it mapped. From then on it is
  memory of two processes, and has no name in any file system.
* The server remembers it by a name that tells process, start time and PID namespace. Whoever next
  shakes hands with that server takes out the names of processes that are gone, and their files, if
  they died within that first millisecond.
* A request that was cancelled or got lost may still be read by the server, so its region is not
  used again; Triton refuses to give up a region in use, and is asked again later. Releases before
  2.51 were not seen to refuse, and are sent everything over the wire.
"""

from __future__ import annotations

import errno
import logging
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from daskonic.errors import DaskonicError, DeadlineError, ServerError, UnavailableError
from daskonic.tensors import Array, Request
from daskonic.transport.region import (
    Region,
    aligned,
    disown,
    has_shared_memory,
    is_here,
    is_room_for,
    is_stale,
    remove_stale_files,
)

__all__ = ["SMALLEST_NBYTES", "Regions", "SharedAnswer", "SharedMessage"]

# benchmarks/bench_shm.py, sink model: 64 and 128 kB gain nothing, 256 kB a factor 1.2, 1 MB 1.5, 8 MB 3.5.
SMALLEST_NBYTES = 256 * 1024
MOST_NBYTES = 512 * 2**20  # of one endpoint; what does not fit goes over the wire
TIMEOUT_S = 2.0
ASK_AGAIN_S = 5.0  # after a handshake that got no answer
OLDEST_TRITON = (2, 51)

Ask = Callable[[str, Any, float], Any]
"""Name of a call, request, timeout in seconds to response; raises DaskonicError."""

logger = logging.getLogger(__name__)


class SharedMessage:
    """A request whose inputs are in a region, and large outputs of known size, too.

    Attributes
    ----------
    content : bytes
        What is sent.
    request : Request
        To send it in another way.
    """

    __slots__ = ("_lease", "_places", "_region", "_regions", "content", "request")

    def __init__(
        self, regions: Regions, region: Region, request: Request, reserved: Mapping[str, int]
    ) -> None:
        self._regions = regions
        self._region: Region | None = region
        self._lease: weakref.ref[_Lease] | None = None
        self.request = request
        self.content, self._places = region.written(request, reserved)

    def __del__(self) -> None:
        region, self._region = self._region, None
        if region is not None:  # never sent, or answered and the answer never looked at
            self._regions.drop(region)

    def over(self, *, answered: bool, clean: bool) -> None:
        """Nothing more is sent; ``clean`` if the server has certainly done with the region."""
        if answered and self._places:
            return  # the outputs have still to be looked at
        region, self._region = self._region, None
        if region is not None:
            self._regions.give_back(region, clean=clean)

    def forget(self) -> None:
        """The server does not know the region."""
        if self._region is not None:
            self._regions.forget(self._region)

    def use_wire(self) -> None:
        """The request goes over the wire after all, and so does its answer."""
        self._places = {}

    def answer(self, content: bytes) -> bytes | SharedAnswer:
        """The raw answer with what is needed to read it."""
        return SharedAnswer(content, self) if self._places else content

    def outputs(self) -> dict[str, Array]:
        """Bytes of the outputs in the region, which is given back when nobody holds a view of them."""
        lease = self._lease() if self._lease is not None else None
        if lease is None and self._region is not None:
            lease = _Lease(self._regions, self._region)
            self._lease, self._region = weakref.ref(lease), None
        if lease is None:
            return {}
        memory = np.asarray(lease)
        return {name: memory[place] for name, place in self._places.items()}


@dataclass(frozen=True, slots=True, eq=False)
class SharedAnswer:
    """A raw answer some outputs of which are in a region."""

    content: bytes
    message: SharedMessage


class _Lease:
    """What the arrays of an answer are based on: as long as one is alive, so is this."""

    def __init__(self, regions: Regions, region: Region) -> None:
        self._regions = regions
        self._region = region
        layout = region.memory.__array_interface__
        self.__array_interface__ = layout | {"data": (layout["data"][0], True)}  # read-only

    def __del__(self) -> None:
        self._regions.drop(self._region)


class Regions:
    """The regions shared with one server.

    Parameters
    ----------
    address : str
        For messages.
    host : str
        Where the server is said to be.
    ask : callable
        Makes one short call to it.
    """

    def __init__(self, address: str, host: str, ask: Ask) -> None:
        self._address = address
        self._host = host
        self._ask = ask
        self._lock = threading.Lock()
        self._handshake = threading.Lock()
        self._shares: bool | None = None  # None: not known yet
        self._not_before = 0.0
        self._free: dict[int, list[Region]] = {}
        self._in_use: set[Region] = set()
        self._retired: list[str] = []  # names that the server was still using
        self._nbytes = 0
        self._told_full = False
        self._dropped: deque[Region] = deque()

    def message(self, request: Request, reserved: Mapping[str, int]) -> SharedMessage | None:
        """A request in shared memory, or None: then use the wire.

        Parameters
        ----------
        request : Request
        reserved : mapping of str to int
            Largest size in bytes of outputs, where it is known.
        """
        large = {name: nbytes for name, nbytes in reserved.items() if nbytes >= SMALLEST_NBYTES}
        sizes = [array.nbytes for array in request.inputs.values()]
        region = self._take(sum(map(aligned, [*sizes, *large.values()]))) if all(sizes) else None
        return None if region is None else SharedMessage(self, region, request, large)

    def _take(self, nbytes: int) -> Region | None:
        """A region of this size, if that is worth while and possible."""
        if nbytes < SMALLEST_NBYTES or not self._is_shared():
            return None
        while self._dropped:
            self.give_back(self._dropped.popleft(), clean=True)
        size = 1 << (nbytes - 1).bit_length()
        with self._lock:
            region = self._free[size].pop() if self._free.get(size) else None
            evicted = [] if region is not None else self._make_room(size)
            if evicted is None:
                return None
            if region is not None:
                self._in_use.add(region)
                return region
            self._nbytes += size
        self._unregister([r.name for r in evicted])
        return self._new(size)

    def drop(self, region: Region) -> None:
        """Give back from a destructor, which may run anywhere, even while this thread holds the lock."""
        self._dropped.append(region)

    def give_back(self, region: Region, *, clean: bool) -> None:
        """A request is over; ``clean`` if the server has certainly done with it."""
        with self._lock:
            known = region in self._in_use
            self._in_use.discard(region)
            if known and clean:
                self._free.setdefault(region.nbytes, []).append(region)
                return
            if known:
                self._nbytes -= region.nbytes
                self._retired.append(region.name)

    def forget(self, region: Region) -> None:
        """The server does not know a region any more: it has restarted, and knows none."""
        with self._lock:
            if region not in self._in_use:
                return  # noticed already
            for dropped in self._drop_all():
                disown(dropped.name)
            self._shares = None
        logger.info("%s does not know its shared memory any more (restarted?): sharing anew", self._address)

    def close(self) -> None:
        """Take the regions out of the server."""
        with self._lock:
            names = self._retired + [r.name for r in self._drop_all()]
            self._retired = []
            self._shares = False
        self._unregister(names)

    def _drop_all(self) -> list[Region]:
        """Forget every region; those that were registered."""
        dropped = [r for free in self._free.values() for r in free] + list(self._in_use)
        self._free.clear()
        self._in_use.clear()
        self._nbytes = 0
        return dropped

    def _make_room(self, size: int) -> list[Region] | None:
        """Free regions of other sizes to give up, so that one more fits; None if it cannot."""
        evicted: list[Region] = []
        while self._nbytes + size > MOST_NBYTES:
            free = next((f for f in self._free.values() if f), None)
            if free is None:
                return None
            evicted.append(free.pop())
            self._nbytes -= evicted[-1].nbytes
        return evicted

    def _new(self, size: int) -> Region | None:
        """One more region, registered; its bytes are counted already."""
        region = self._registered(size)
        with self._lock:
            if region is None or self._shares is False:
                self._nbytes = max(self._nbytes - size, 0)
                return None
            self._in_use.add(region)
            retired, self._retired = self._retired, []
        self._unregister(retired)
        return region

    def _registered(self, size: int) -> Region | None:
        """A new region that the server has mapped, or None."""
        try:
            if not is_room_for(size):
                raise OSError(errno.ENOSPC, "hardly any free")
            region = Region(size)
        except OSError as error:
            if not self._told_full:
                logger.info(
                    "/dev/shm has no %d bytes for %s, so over the wire: %s", size, self._address, error
                )
            self._told_full = True
            return None
        try:
            self._ask(
                "SystemSharedMemoryRegister",
                pb.SystemSharedMemoryRegisterRequest(
                    name=region.name, key=f"/{region.name}", byte_size=region.nbytes
                ),
                TIMEOUT_S,
            )
        except (UnavailableError, DeadlineError):
            disown(region.name)
            return None
        except ServerError as error:
            disown(region.name)
            self._refuse(str(error))
            return None
        finally:
            region.hide()
        return region

    def _unregister(self, names: list[str]) -> None:
        """Take names out of the server; those in use are kept for the next time."""
        for i, name in enumerate(names):
            disown(name)
            try:
                self._ask(
                    "SystemSharedMemoryUnregister",
                    pb.SystemSharedMemoryUnregisterRequest(name=name),
                    TIMEOUT_S,
                )
            except (UnavailableError, DeadlineError):
                with self._lock:
                    self._retired += names[i:]
                return
            except DaskonicError as error:
                if "currently in use" in str(error):
                    with self._lock:
                        self._retired.append(name)

    # -- handshake -------------------------------------------------------------------------------

    def _is_shared(self) -> bool:
        """Whether the server sees this host's shared memory; asked at the first large request."""
        if self._shares is not None:
            return self._shares
        if time.monotonic() < self._not_before or not self._handshake.acquire(blocking=False):
            return False
        try:
            if self._shares is None:
                self._shake_hands()
            return self._shares is True
        finally:
            self._handshake.release()

    def _shake_hands(self) -> None:
        """Find out, and clear up after processes that are gone."""
        if not (has_shared_memory() and is_here(self._host)):
            self._shares = False
            return
        remove_stale_files()
        try:
            reason = self._unfit()
            if reason:
                self._refuse(reason)
                return
            status = self._ask("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), TIMEOUT_S)
            region = self._registered(SMALLEST_NBYTES)
        except (UnavailableError, DeadlineError):
            self._not_before = time.monotonic() + ASK_AGAIN_S
            return
        except DaskonicError as error:
            self._refuse(str(error))
            return
        if region is None:
            self._not_before = time.monotonic() + ASK_AGAIN_S
            return
        with self._lock:
            if self._shares is None:
                self._shares = True
                self._nbytes += region.nbytes
                self._free.setdefault(region.nbytes, []).append(region)
        logger.info("large requests to %s go through shared memory", self._address)
        self._unregister([name for name in status.regions if is_stale(name)])

    def _unfit(self) -> str:
        """What the server lacks, if anything."""
        metadata = self._ask("ServerMetadata", pb.ServerMetadataRequest(), TIMEOUT_S)
        if "system_shared_memory" not in metadata.extensions:
            return "it does not offer system shared memory"
        found = re.match(r"(\d+)\.(\d+)", metadata.version)
        if found is None or (int(found[1]), int(found[2])) < OLDEST_TRITON:
            return f"release {metadata.version} may give up a region in use"
        return ""

    def _refuse(self, reason: str) -> None:
        """From now on, everything goes over the wire."""
        with self._lock:
            self._shares = False
        logger.info("requests to %s go over the wire, not through shared memory: %s", self._address, reason)
