"""A TCP proxy in front of a real server that fails in every way a network does: on command, and only then."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Literal, Self

CHUNK = 65536
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, GOAWAY = 0, 1, 3, 7
END_STREAM = 1
LARGE = 1500
"""Bytes of a call that is more than a question about a model."""
NO_ERROR, ENHANCE_YOUR_CALM = 0, 11
AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset and forgets what was not sent."""


class FaultProxy:
    """Forwards to ``target``; runs in a thread of its own until :meth:`close`.

    Parameters
    ----------
    target : str
        ``host:port`` of the server.

    Attributes
    ----------
    address : str
        ``127.0.0.1:PORT`` for clients.
    connections_total, most_open : int
        Connections accepted so far, and most at one time.
    calls : int
        HTTP/2 streams opened by clients: gRPC calls, whatever became of them.
    large, most_large : int
        Calls with a large request that have no answer yet, now and at most.
    sent : list of (float, int)
        When how many bytes came from clients.
    faults : int
        Messages that were cut, and connections that got a GOAWAY.
    """

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = host, int(port)
        self.connections_total = self.most_open = self.calls = self.faults = 0
        self.large = self.most_large = 0
        self.sent: list[tuple[float, int]] = []
        self._open: set[_Link] = set()
        self._cut: _Cut | None = None
        self._rate = 0.0
        self._delay_s = 0.0
        self._listening: asyncio.Server | None = None
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._hears = asyncio.Event()
        self._hears.set()
        self._socket = self._bound()
        self._do(self._listen())
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_open(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    def refuse(self) -> None:
        """Reset every connection and refuse new ones, as where a process was killed."""
        self._do(self._refuse())

    def deafen(self) -> None:
        """Accept, and pass nothing on in either direction, as where a process hangs."""
        self._do(self._set(hears=False))

    def slow(self, *, bytes_per_s: float = 0.0, delay_s: float = 0.0) -> None:
        """Pass on so many bytes in a second and direction, each piece so much later; 0 for no limit."""
        self._do(self._set(rate=bytes_per_s, delay_s=delay_s))

    def cut(self, after: int, *, of: Literal["requests", "answers"], how: Literal["reset", "close"]) -> None:
        """Once, when so many more bytes went one way, end that connection there: reset it, or close it as if at the end."""
        self._do(self._set(cut=_Cut(after, of, how)))

    def goaway(self, *, unseen: int = 0, code: int = NO_ERROR) -> None:
        """Tell each connection to end: a GOAWAY between two frames.

        Parameters
        ----------
        unseen : int
            Of the latest calls, so many are said not to have been seen; the client may send them again.
        code : int
            Reason; with another one than NO_ERROR the connection is closed right after it.
        """
        self._do(self._goaway(unseen, code))

    def heal(self) -> None:
        """Forward as if nothing had been."""
        self._do(self._heal())

    def close(self) -> None:
        """End every connection and the thread."""
        if self._thread.is_alive():
            self._do(self._refuse())
            self._socket.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _do(self, coroutine):
        """Run on the proxy's thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def _bound(self) -> socket.socket:
        """A socket that holds the port; while it does not listen, connections are refused."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self._port))
        self._port = sock.getsockname()[1]
        return sock

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._serve, sock=self._socket)

    async def _refuse(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            self._socket = self._bound()
        links = list(self._open)
        for link in links:
            link.end("reset")
        await asyncio.gather(*(link.over.wait() for link in links))

    async def _set(self, *, hears=True, rate=0.0, delay_s=0.0, cut=None) -> None:
        self._hears.set() if hears else self._hears.clear()
        self._rate, self._delay_s, self._cut = rate, delay_s, cut

    async def _heal(self) -> None:
        await self._set()
        if self._listening is None:
            await self._listen()

    async def _goaway(self, unseen: int, code: int) -> None:
        for link in list(self._open):
            link.goaway(unseen, code)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, both ways, until one side ends."""
        self.connections_total += 1
        try:
            upstream = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        link = _Link(self, (reader, writer), upstream)
        self._open.add(link)
        self.most_open = max(self.most_open, len(self._open))
        try:
            await link.run()
        finally:
            self._open.discard(link)
            link.over.set()


class _Cut:
    """Where the next message ends too early."""

    def __init__(self, after: int, of: str, how: str) -> None:
        self.left = after
        self.of = of
        self.how = how


class _Link:
    """One connection of a client and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, client, server) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._requests = _Frames(len(PREFACE), self._asked)
        self._answers = _Frames(0, self._answered)
        self._asking: dict[int, int] = {}
        self._goaway: tuple[int, int] | None = None
        self._tasks: list[asyncio.Task] = []
        self.over = asyncio.Event()

    async def run(self) -> None:
        self._tasks = [
            asyncio.ensure_future(self._pump(self._client[0], self._server[1], "requests")),
            asyncio.ensure_future(self._pump(self._server[0], self._client[1], "answers")),
        ]
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, writer in (self._client, self._server):
            writer.close()
        for stream in list(self._asking):
            self._over(stream)

    def _asked(self, kind: int, flags: int, stream: int, nbytes: int) -> None:
        """A frame from the client."""
        if kind == RST_STREAM:
            self._over(stream)
        elif kind == DATA:
            before = self._asking.get(stream, 0)
            self._asking[stream] = before + nbytes
            if before < LARGE <= before + nbytes:
                self._proxy.large += 1
                self._proxy.most_large = max(self._proxy.most_large, self._proxy.large)

    def _answered(self, kind: int, flags: int, stream: int, nbytes: int) -> None:
        """A frame from the server."""
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self._over(stream)

    def _over(self, stream: int) -> None:
        self._proxy.large -= self._asking.pop(stream, 0) >= LARGE

    def end(self, how: str) -> None:
        """Now."""
        if how == "reset":
            _reset(self._client[1])
        else:
            self._client[1].close()
        _reset(self._server[1])
        for task in self._tasks:
            task.cancel()

    def goaway(self, unseen: int, code: int) -> None:
        """Between two frames of the answers: now, or when the present one is through."""
        self._goaway = unseen, code
        if self._answers.between:
            self._say_goaway()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, of: str) -> None:
        """One direction."""
        proxy = self._proxy
        frames = self._requests if of == "requests" else self._answers
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await proxy._hears.wait()
                if proxy._delay_s:
                    await asyncio.sleep(proxy._delay_s)
                begun = frames.begun
                ends = frames.feed(data)
                if of == "requests":
                    proxy.calls += frames.begun - begun
                    proxy.sent.append((time.monotonic(), len(data)))
                cut = proxy._cut
                if cut is not None and cut.of == of:
                    cut.left -= len(data)
                    if cut.left <= 0:
                        proxy._cut = None
                        proxy.faults += 1
                        writer.write(data[: cut.left or None])
                        await writer.drain()
                        self.end(cut.how)
                        return
                if of == "answers" and self._goaway is not None and ends:
                    writer.write(data[: ends[0]])
                    data = data[ends[0] :]
                    self._say_goaway()
                await self._write(writer, data)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """At the rate that is set now."""
        while data:
            rate = self._proxy._rate
            piece = max(int(rate * 0.02), 1) if rate else len(data)
            writer.write(data[:piece])
            data = data[piece:]
            await writer.drain()
            if rate:
                await asyncio.sleep(0.02)

    def _say_goaway(self) -> None:
        unseen, code = self._goaway
        self._goaway = None
        last = max(self._requests.last_stream - 2 * unseen, 0)
        self._proxy.faults += 1
        self._client[1].write(struct.pack(">IBI", 8 << 8 | GOAWAY, 0, 0) + struct.pack(">II", last, code))
        if code != NO_ERROR:
            self._client[1].close()


class _Frames:
    """Where HTTP/2 frames end in a stream of bytes, and which streams they open."""

    def __init__(self, preface: int, seen: Callable[[int, int, int, int], None]) -> None:
        self._left = preface
        self._seen = seen
        self._head = b""
        self.begun = 0
        self.last_stream = 0

    @property
    def between(self) -> bool:
        """Whether the last byte was the end of a frame."""
        return not self._left and not self._head

    def feed(self, data: bytes) -> list[int]:
        """Places in ``data`` right after which no frame is under way."""
        ends, at = [], 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                step = min(9 - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                if len(self._head) == 9:
                    self._begin()
            at += step
            if self.between:
                ends.append(at)
        return ends

    def _begin(self) -> None:
        length, stream = int.from_bytes(self._head[:3]), int.from_bytes(self._head[5:]) & 0x7FFFFFFF
        self._seen(self._head[3], self._head[4], stream, length)
        if self._head[3] == HEADERS and stream > self.last_stream:
            self.begun += 1
            self.last_stream = stream
        self._left, self._head = length, b""


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()
