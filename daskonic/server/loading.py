"""Models that a run brings to servers, and takes away again.

It needs servers that let their clients do so: Triton in ``--model-control-mode=explicit``. The entry's files travel in
the request; nothing has to be on the server's disk.

Each run loads a model of its own, under a name that no other has: ``tagger.alice.5f0c2d9e``. Triton counts no users of
a model, keeps no model that is nobody's, and has no place where clients could count, so sharing one between runs would
mean that the first to end takes it from the others. Within a process users are counted: blocks that bring the same
content to the same servers share it, and the last one takes it away. The workers of a run use the model by its name and
count for nothing. What it costs is memory of the server for each run; many jobs that belong together share one model by
:func:`load` before the first and :func:`unload` after the last.

A run that is to be resumed names its model (``name=``), for the name is part of what was computed; then the second
call finds the same configuration as the first, as long as the content is the same.

Who is killed (SIGKILL, power) leaves the model loaded. Owner, time and content are in its configuration, where
:func:`listed` finds them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import hashlib
import logging
import os
import platform
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskonic.config import FLEET, Settings, resolve
from daskonic.errors import ConfigError, DaskonicError, InferenceError, InputError
from daskonic.server.entry import check_name, read_config
from daskonic.transport.grpc import CONTENT, OWNER, SINCE, GrpcTransport
from daskonic.transport.status import GrpcStatus

__all__ = ["Loaded", "listed", "load", "loaded", "unload"]

logger = logging.getLogger(__name__)

NOT_EXPLICIT = "explicit model load / unload is not allowed"
MESSAGE_NBYTES = 2**31 - 2**20  # gRPC's limit, less what is not files
CALL_S = 10.0

_lock = threading.Lock()
_users: dict[tuple[str, tuple[str, ...], str | None], tuple[str, int]] = {}
"""Blocks of this process by content, servers and the name asked for: the name there, and how many use it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that somebody brought to a server.

    Attributes
    ----------
    server, name : str
    owner : str
        ``user@host (process)``.
    since : str
        When it was loaded, in UTC.
    content : str
        Digest of the entry's configuration and files.
    """

    server: str
    name: str
    owner: str
    since: str
    content: str


@contextlib.contextmanager
def loaded(
    entry: str | os.PathLike[str],
    servers: Iterable[str] | str | None = None,
    *,
    name: str | None = None,
    timeout_s: float = 300.0,
    **settings: Any,
) -> Iterator[str]:
    """A model of one's own on the servers, for as long as the ``with`` block lasts.

    It is taken away at the end, after an exception and after Ctrl-C too. Blocks of this process that bring the same
    content to the same servers share it.

    Parameters
    ----------
    entry : path
        Folder of a model with its ``config.pbtxt``, as :func:`~daskonic.server.add_onnx` makes it.
    servers : iterable of str, optional
        Addresses ``host:port``; default is ``daskonic.servers``.
    name : str, optional
        What it is to be called there, if no server has a model of that name; default is a name that no other has.
    timeout_s : float
        How long one server may take to load it.
    **settings
        Further keys of ``daskonic.yaml``, such as credentials.

    Yields
    ------
    str
        Name of the model there, for ``dk.Model(name)``.

    Raises
    ------
    ConfigError
        No server is named, one does not let its clients load models, or has a model of that name.
    InputError
        The entry cannot be read or sent, or a server cannot load it: says why, as the server said it.
    ServerError
        A server does not answer.

    Examples
    --------
    >>> with dk.loaded("models/tagger", servers=["gpu7:8001"]) as name:  # doctest: +SKIP
    ...     scores = dk.Model(name, servers=["gpu7:8001"])(x)
    """
    resolved = resolve(servers, **settings)
    brought = _Entry.read(Path(entry))
    key = brought.digest, resolved.servers, name
    with _lock:
        made, users = _users.get(key, ("", 0))
        if not users:
            made = _load(brought, resolved, name, timeout_s)
        _users[key] = made, users + 1
    try:
        yield made
    finally:
        with _lock:
            _, users = _users.pop(key)
            if users > 1:
                _users[key] = made, users - 1
            else:
                _unload(made, resolved)


def load(
    entry: str | os.PathLike[str],
    servers: Iterable[str] | str | None = None,
    *,
    name: str | None = None,
    timeout_s: float = 300.0,
    **settings: Any,
) -> str:
    """Bring a model to the servers; it stays until :func:`unload`, or until a server ends.

    Parameters
    ----------
    entry, servers, name, timeout_s, **settings
        As in :func:`loaded`.

    Returns
    -------
    str
        Name of the model there.

    Raises
    ------
    ConfigError, InputError, ServerError
        As in :func:`loaded`.
    """
    return _load(_Entry.read(Path(entry)), resolve(servers, **settings), name, timeout_s)


def unload(name: str, servers: Iterable[str] | str | None = None, **settings: Any) -> list[str]:
    """Take away a model that somebody brought; requests under way are answered.

    Parameters
    ----------
    name : str
        Of :func:`listed`; the servers' own models are left alone.
    servers, **settings
        As in :func:`loaded`.

    Returns
    -------
    list of str
        Servers that had it.

    Raises
    ------
    ConfigError
        No server has such a model, or it is one of its own.
    ServerError
        A server does not answer.
    """
    resolved = resolve(servers, **settings)
    had = [found.server for found in listed(resolved.servers, **settings) if found.name == name]
    if not had:
        raise ConfigError(f"nobody brought a model {name!r} to {', '.join(resolved.servers)}")
    for transport in _transports(resolved):
        if transport.address in had:
            transport.unload(name, CALL_S)
    return had


def listed(servers: Iterable[str] | str | None = None, **settings: Any) -> list[Loaded]:
    """Models that were brought to the servers, whoever did it.

    Parameters
    ----------
    servers, **settings
        As in :func:`loaded`.

    Raises
    ------
    ServerError
        A server does not answer, or keeps no statistics.
    """
    return [
        Loaded(transport.address, config.name, *(config.parameters[key].string_value for key in (OWNER, SINCE, CONTENT)))
        for transport in _transports(resolve(servers, **settings))
        for config in transport.configs(CALL_S)
        if OWNER in config.parameters
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is sent of an entry: configuration, files by their paths in it, and a digest of both."""

    name: str
    config: Any
    files: dict[str, bytes]
    digest: str

    @classmethod
    def read(cls, folder: Path) -> _Entry:
        """The whole folder; InputError if it cannot be read or is too large for a message."""
        config = read_config(folder / "config.pbtxt")
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(folder)))
        sizes = {p: p.stat().st_size for p in paths if p != folder / "config.pbtxt"}
        if not any(p.relative_to(folder).parts[0].isdigit() for p in sizes):
            raise InputError(f"{folder} has no version: no folder with a number, such as 1/")
        if sum(sizes.values()) > MESSAGE_NBYTES:
            raise InputError(
                f"{folder} has {sum(sizes.values()) / 1e9:.2f} GB; gRPC carries 2 GB, so it has to be on the servers' disk"
            )
        try:
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sizes}
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
        digest = hashlib.sha256(config.SerializeToString(deterministic=True))
        for path, content in files.items():
            digest.update(f"\0{path}\0{len(content)}\0".encode() + content)
        return cls(folder.resolve().name, config, files, digest.hexdigest())


def _is_hidden(path: Path) -> bool:
    """Whether it is what an editor or Python left."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _own_name(name: str) -> str:
    """A name that no other has, which says whose it is."""
    user = "".join(c for c in _user() if c.isascii() and (c.isalnum() or c in "_-"))
    return f"{name}.{user}.{uuid.uuid4().hex[:8]}"


def _user() -> str:
    """Who runs this; containers may have no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid{os.getuid()}"


def _transports(settings: Settings) -> Iterator[GrpcTransport]:
    """A connection to each server, in turn."""
    if not settings.servers:
        raise ConfigError(
            "no server is named: pass servers=[...], or set daskonic.servers in Dask's configuration"
        )
    for address in settings.servers:
        if address.startswith(FLEET):
            raise ConfigError(f"servers of {address} come and go: put the model into the fleet's repository")
        transport = GrpcTransport(address, settings.credentials, shared_memory="never")
        try:
            yield transport
        finally:
            transport.close()


def _load(entry: _Entry, settings: Settings, wanted: str | None, timeout_s: float) -> str:
    """Load it everywhere, or nowhere."""
    from google.protobuf import json_format

    if wanted is not None:
        _refuse_taken(wanted, settings)
    name = wanted or _own_name(entry.name)
    config = type(entry.config)()
    config.CopyFrom(entry.config)
    config.name = name
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    owner = f"{_user()}@{platform.node()} ({os.getpid()})"
    for key, value in ((OWNER, owner), (SINCE, now), (CONTENT, entry.digest)):
        config.parameters[key].string_value = value
    text = json_format.MessageToJson(config, preserving_proto_field_name=True)
    try:
        for transport in _transports(settings):
            try:
                transport.load(name, text, entry.files, timeout_s)
            except DaskonicError as error:
                raise _explained(error, transport.address, entry) from error
            logger.info("%s has loaded %s", transport.address, name)
    except BaseException:  # also Ctrl-C while a server is at it
        _unload(name, settings, failed=True)
        raise
    return name


def _refuse_taken(name: str, settings: Settings) -> None:
    """ConfigError if a server has a model of that name."""
    check_name(name, 1)
    for transport in _transports(settings):
        if any(config.name == name for config in transport.configs(CALL_S)):
            raise ConfigError(f"{transport.address} has a model {name!r} already; take another name, or none")


def _explained(error: DaskonicError, address: str, entry: _Entry) -> DaskonicError:
    """What a refusal means."""
    text = error.__cause__.text if isinstance(error.__cause__, GrpcStatus) else ""
    if NOT_EXPLICIT in text:
        return ConfigError(
            f"{address} does not let its clients load models: it was not started with --model-control-mode=explicit"
        )
    if isinstance(error, InferenceError):
        return InputError(f"{address} cannot load the entry {entry.name!r}: {text or error}")
    return error


def _unload(name: str, settings: Settings, *, failed: bool = False) -> None:
    """Take it away wherever it is; what cannot be reached is told, for nobody waits for an error here."""
    for transport in _transports(settings):
        try:
            transport.unload(name, CALL_S)
        except DaskonicError as error:
            if not failed:
                logger.warning("%s may still have the model %s: %s", transport.address, name, error)
        else:
            logger.info("%s has unloaded %s", transport.address, name)
