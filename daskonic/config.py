"""Settings: YAML defaults in Dask's configuration, resolved once, where the user is.

``daskonic.yaml`` beside this file has every key with its meaning; users override it in Dask's own
configuration files, by ``DASK_DASKONIC__...`` variables or with ``dask.config.set``. Workers do not
inherit the client's settings, so a resolved :class:`Settings` travels inside the plugin.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

from daskonic.errors import ConfigError

__all__ = [
    "FLEET",
    "NO_CREDENTIALS",
    "NO_LIMITS",
    "Credentials",
    "Limits",
    "Settings",
    "fleet_folder",
    "host_of",
    "refuse_plain_secrets",
    "resolve",
    "target_of",
]

DEFAULTS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("daskonic.yaml").read_text())
dask.config.update_defaults(DEFAULTS)

ADDRESS = re.compile(r"^(?:(?P<scheme>grpcs?)://)?(?P<target>unix:.+|\[[0-9a-fA-F:.]+\]:\d+|[^/:\s]+:\d+)$")
FLEET = "fleet:"
"""What servers begin with that stand for those of a fleet: ``fleet:NAME``, or ``fleet:`` and the path of its folder."""
HEADER = re.compile(r"^(?!grpc-)[a-z0-9_.-]+(?<!-bin)$")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where a worker finds what proves who it is: paths on its machine and names, never a secret.

    Attributes
    ----------
    ca_file, certificate_file, key_file : str
        PEM files: who signed the servers, and the client's own certificate; empty for none.
    token_file, token_env : str
        File or environment variable with a bearer token.
    header, header_file, header_env : str
        A further header and where its value is.
    over_plain_text : bool
        Whether token and header may be sent without TLS.
    """

    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    token_file: str = ""
    token_env: str = ""
    header: str = ""
    header_file: str = ""
    header_env: str = ""
    over_plain_text: bool = False

    @property
    def has_secrets(self) -> bool:
        """Whether a request carries a token or header."""
        return bool(self.token_file or self.token_env or self.header)


NO_CREDENTIALS = Credentials()


class Limits(NamedTuple):
    """What a site allows all workers of a cluster together; infinite for no limit, and false if there is none.

    Attributes
    ----------
    requests : float
        Requests in flight.
    nbytes_per_s : float
        Bytes of requests sent in a second.
    """

    requests: float = math.inf
    nbytes_per_s: float = math.inf

    def __bool__(self) -> bool:
        return any(map(math.isfinite, self))


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Settings:
    """What a pool needs to know; hashable, so equal settings share one pool.

    Attributes
    ----------
    servers : tuple of str
        gRPC targets: ``host:port``, and ``grpcs://host:port`` for those spoken to by TLS; ``fleet:/path`` for those that a
        fleet has at the moment.
    window : int or None
        Requests in flight per server; None where it is found.
    endpoints_per_worker : int
        Servers in use at one time.
    timeout_s, attempt_timeout_s, connect_timeout_s : float
        Wall time of a request with its retries, of one attempt, of the first contact.
    batch_nbytes : int
        Largest request.
    shared_memory : {"auto", "never"}
        Whether large requests to a server on this host go through shared memory.
    credentials : Credentials
    fallback : {"none", "inprocess", "server"}
        Where to go on when no server can serve.
    fallback_repository : str
        Models for that, on the worker's file system.
    partitions_held : int
        Partitions that wait for scores at one time in a process.
    limits : Limits
        For all workers of a cluster together.
    tolerance : float
        Largest difference between servers; infinite where they are not compared.
    locks : tuple of str
        What the files of :class:`~daskonic.lock.Lock` hold.
    """

    servers: tuple[str, ...]
    window: int | None
    endpoints_per_worker: int
    timeout_s: float
    attempt_timeout_s: float
    connect_timeout_s: float
    batch_nbytes: int
    shared_memory: str = "auto"
    credentials: Credentials = NO_CREDENTIALS
    fallback: str = "none"
    fallback_repository: str = ""
    partitions_held: int = 8
    limits: Limits = NO_LIMITS
    tolerance: float = math.inf
    locks: tuple[str, ...] = ()


def resolve(servers: Iterable[str] | str | None = None, **overrides: Any) -> Settings:
    """Settings from the arguments given, else from Dask's configuration.

    Parameters
    ----------
    servers : iterable of str, optional
        Addresses; default is ``daskonic.servers``.
    **overrides
        Keys of ``daskonic.yaml`` with underscores, such as ``window=4`` or ``timeout="30 s"``.

    Raises
    ------
    ConfigError
        An unknown key, or a value of the wrong kind.
    """
    known = dask.config.get("daskonic")
    if not isinstance(known, Mapping):
        raise ConfigError(f"daskonic in the Dask configuration is {known!r}, not a mapping of settings")
    _refuse_unknown(known, DEFAULTS["daskonic"], "daskonic")
    given = {key.replace("_", "-"): value for key, value in overrides.items() if value is not None}
    _refuse_unknown(given, DEFAULTS["daskonic"], "daskonic")
    values = {key.replace("_", "-"): value for key, value in known.items()} | given
    tls, credentials = _credentials(values["credentials"])
    addresses = _addresses(values["servers"] if servers is None else servers, tls=tls)
    for address in addresses:
        refuse_plain_secrets(address, credentials)
    return Settings(
        servers=addresses,
        window=None if values["window"] is None else _count(values, "window"),
        endpoints_per_worker=_count(values, "endpoints-per-worker"),
        timeout_s=_seconds(values, "timeout"),
        attempt_timeout_s=_seconds(values, "attempt-timeout"),
        connect_timeout_s=_seconds(values, "connect-timeout"),
        batch_nbytes=_nbytes(values, "batch-bytes"),
        shared_memory=_one_of(values, "shared-memory", ("auto", "never")),
        credentials=credentials,
        fallback=_one_of(values, "fallback", ("none", "inprocess", "server")),
        fallback_repository=_repository(values),
        partitions_held=_count(values, "partitions-held"),
        limits=_limits(values["cluster"]),
        tolerance=_tolerance(values["tolerance"]),
        locks=_locks(values["locks"]),
    )


def _tolerance(value: object) -> float:
    """A number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(
            f"daskonic.tolerance is {value!r}; a difference such as 0.01, or .inf to compare nothing, is needed"
        )
    return float(value)


def _locks(paths: object) -> tuple[str, ...]:
    """Contents of the files of locks, read where the user is."""
    if isinstance(paths, str | Path):
        paths = [paths]
    if not isinstance(paths, Iterable):
        raise ConfigError(f"daskonic.locks is {paths!r}; files that daskonic lock wrote are needed")
    try:
        return tuple(Path(path).expanduser().read_text() for path in paths)
    except (OSError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(f"daskonic.locks: {error}") from error


def _limits(given: object) -> Limits:
    """What a whole cluster may use."""
    defaults = DEFAULTS["daskonic"]["cluster"]
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"daskonic.cluster is of type {type(given).__name__}, not a mapping; known: {', '.join(defaults)}"
        )
    values = {f"cluster.{k}": v for k, v in defaults.items()}
    values |= {f"cluster.{k.replace('_', '-')}": v for k, v in given.items()}
    requests, nbytes = "cluster.requests-in-flight", "cluster.bytes-per-second"
    return Limits(
        math.inf if values[requests] is None else _count(values, requests),
        math.inf if values[nbytes] is None else _nbytes(values, nbytes),
    )


def _repository(values: Mapping[str, Any]) -> str:
    """The fallback's model repository, needed where there is a fallback."""
    path = values["fallback-repository"]
    if values["fallback"] != "none" and not (isinstance(path, str) and path):
        raise ConfigError(
            f"daskonic.fallback is {values['fallback']!r}, and daskonic.fallback-repository names no model repository; "
            "set it to a folder that the workers see, as made by daskonic.server.add_onnx"
        )
    return path or ""


def _refuse_unknown(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
    """ConfigError for a key that no default has."""
    for key, value in given.items():
        name = key.replace("_", "-")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"known: {', '.join(defaults)}"
            raise ConfigError(f"unknown setting {where}.{key}; {hint}")
        of_name = defaults[name]
        if (
            isinstance(of_name, Mapping) and of_name and isinstance(value, Mapping)
        ):  # empty: names are the user's own
            _refuse_unknown(value, of_name, f"{where}.{name}")


def target_of(address: str) -> str:
    """What gRPC connects to: the address without its scheme."""
    return address.removeprefix("grpcs://")


def host_of(address: str) -> str:
    """Name or number of the host in an address; empty for a Unix socket."""
    target = target_of(address)
    return "" if target.startswith("unix:") else target.rpartition(":")[0].strip("[]")


def refuse_plain_secrets(address: str, credentials: Credentials) -> None:
    """ConfigError where a token would be sent for all to read."""
    if credentials.has_secrets and not (
        address.startswith(("grpcs://", "unix:")) or credentials.over_plain_text
    ):
        raise ConfigError(
            f"daskonic.credentials has a token or header, and {address} is spoken to in plain text, where others "
            f"could read it: write grpcs://{address} or set daskonic.credentials.tls: true; where the "
            "network is trusted, set daskonic.credentials.token-over-plain-text: true"
        )


def _credentials(given: object) -> tuple[bool, Credentials]:
    """Whether addresses without a scheme mean TLS, and where credentials are."""
    defaults = DEFAULTS["daskonic"]["credentials"]
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"daskonic.credentials is of type {type(given).__name__}, not a mapping; known: {', '.join(defaults)}"
        )
    values = defaults | {key.replace("_", "-"): value for key, value in given.items()}
    for key, value in values.items():
        if not isinstance(value, bool if isinstance(defaults[key], bool) else str | None):
            kind = "true or false" if isinstance(defaults[key], bool) else "text"
            raise ConfigError(
                f"daskonic.credentials.{key} is of type {type(value).__name__}; {kind} is needed"
            )
    texts = {k.replace("-", "_"): v or "" for k, v in values.items() if not isinstance(v, bool)}
    found = Credentials(**texts, over_plain_text=values["token-over-plain-text"])
    _refuse_half(found)
    return values["tls"], found


def _refuse_half(found: Credentials) -> None:
    """ConfigError where one setting of several that belong together is missing, or one too many is there."""
    where = "daskonic.credentials"
    if bool(found.certificate_file) != bool(found.key_file):
        raise ConfigError(f"{where}.certificate-file and {where}.key-file need each other; only one is set")
    if found.token_file and found.token_env:
        raise ConfigError(f"{where}.token-file and {where}.token-env are both set; one token is needed")
    if bool(found.header) != (bool(found.header_file) != bool(found.header_env)):
        raise ConfigError(
            f"{where}.header needs its value in exactly one of {where}.header-file and {where}.header-env"
        )
    if found.header and not HEADER.match(found.header):
        raise ConfigError(
            f"{where}.header is {found.header!r}; lower-case letters, digits, '-', '_' and '.' are possible"
        )


def _one_of(values: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str:
    """One of some words."""
    if values[key] not in known:
        raise ConfigError(f"daskonic.{key} is {values[key]!r}; known: {', '.join(known)}")
    return str(values[key])


def _addresses(servers: Iterable[str] | str, *, tls: bool = False) -> tuple[str, ...]:
    """Targets, those by TLS with their scheme, duplicates dropped, in the order given."""
    listed = [servers] if isinstance(servers, str) else list(servers)
    return tuple(dict.fromkeys(_address(s, tls=tls) for s in listed))


def fleet_folder(name: str) -> Path:
    """Folder of a fleet: a path is taken as it is, a name is one in ``daskonic.fleets``.

    Raises
    ------
    ConfigError
        It is neither.
    """
    if os.sep in name:
        return Path(name).expanduser().absolute()
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ConfigError(
            f"fleet {name!r} needs a name of letters, digits, '-', '_' and '.', or the path of a folder"
        )
    return Path(dask.config.get("daskonic.fleets")).expanduser().absolute() / name


def _address(server: object, *, tls: bool) -> str:
    """One ``host:port``, or ``fleet:/path``; ConfigError if it is neither."""
    if isinstance(server, str) and server.strip().startswith(FLEET):
        return f"{FLEET}{fleet_folder(server.strip().removeprefix(FLEET))}"
    found = ADDRESS.match(server.strip()) if isinstance(server, str) else None
    if found is None:
        raise ConfigError(
            f"server address {server!r} is not HOST:PORT of a gRPC port (for Triton usually 8001), "
            "such as triton-a:8001, or fleet:NAME"
        )
    target = found["target"]
    if target.startswith("unix:"):
        return target
    return f"grpcs://{target}" if found["scheme"] == "grpcs" or (tls and not found["scheme"]) else target


def _count(values: Mapping[str, Any], key: str) -> int:
    """A whole number of at least one."""
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"daskonic.{key} is {value!r}; a whole number of at least 1 is needed")
    return value


def _seconds(values: Mapping[str, Any], key: str) -> float:
    """A positive time in seconds, from a number or text such as ``"30 s"``."""
    try:
        seconds = float(parse_timedelta(values[key], default="s"))
    except (KeyError, ValueError, TypeError, AttributeError):
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(f"daskonic.{key} is {values[key]!r}; a time such as '30 s' or '5 m' is needed")
    return seconds


def _nbytes(values: Mapping[str, Any], key: str) -> int:
    """A positive size in bytes, from a number or text such as ``"4 MiB"``."""
    try:
        nbytes = int(parse_bytes(values[key]))
    except (ValueError, TypeError, AttributeError):
        nbytes = 0
    if nbytes < 1:
        raise ConfigError(f"daskonic.{key} is {values[key]!r}; a size such as '4 MiB' is needed")
    return nbytes
