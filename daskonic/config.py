"""Settings: YAML defaults in Dask's configuration, resolved once, where the user is.

``daskonic.yaml`` beside this file has every key with its meaning; users override it in Dask's own
configuration files, by ``DASK_DASKONIC__...`` variables or with ``dask.config.set``. Workers do not
inherit the client's settings, so a resolved :class:`Settings` travels inside the plugin.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

from daskonic.errors import ConfigError

__all__ = ["Settings", "resolve"]

DEFAULTS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("daskonic.yaml").read_text())
dask.config.update_defaults(DEFAULTS)

ADDRESS = re.compile(r"^(?:grpc://)?(?P<target>unix:.+|\[[0-9a-fA-F:.]+\]:\d+|[^/:\s]+:\d+)$")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a pool needs to know; hashable, so equal settings share one pool.

    Attributes
    ----------
    servers : tuple of str
        gRPC targets, ``host:port``.
    window : int
        Requests in flight per server.
    timeout_s, attempt_timeout_s, connect_timeout_s : float
        Wall time of a request with its retries, of one attempt, of the first contact.
    batch_nbytes : int
        Largest request.
    """

    servers: tuple[str, ...]
    window: int
    timeout_s: float
    attempt_timeout_s: float
    connect_timeout_s: float
    batch_nbytes: int


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
    return Settings(
        servers=_addresses(values["servers"] if servers is None else servers),
        window=_count(values, "window"),
        timeout_s=_seconds(values, "timeout"),
        attempt_timeout_s=_seconds(values, "attempt-timeout"),
        connect_timeout_s=_seconds(values, "connect-timeout"),
        batch_nbytes=_nbytes(values, "batch-bytes"),
    )


def _refuse_unknown(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
    """ConfigError for a key that no default has."""
    for key, value in given.items():
        name = key.replace("_", "-")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"known: {', '.join(defaults)}"
            raise ConfigError(f"unknown setting {where}.{key}; {hint}")
        if isinstance(defaults[name], Mapping) and isinstance(value, Mapping):
            _refuse_unknown(value, defaults[name], f"{where}.{name}")


def _addresses(servers: Iterable[str] | str) -> tuple[str, ...]:
    """Targets without a scheme, duplicates dropped, in the order given."""
    listed = [servers] if isinstance(servers, str) else list(servers)
    return tuple(dict.fromkeys(_address(s) for s in listed))


def _address(server: object) -> str:
    """One ``host:port``; ConfigError if it is not one."""
    found = ADDRESS.match(server.strip()) if isinstance(server, str) else None
    if found is None:
        raise ConfigError(
            f"server address {server!r} is not HOST:PORT of a gRPC port (for Triton usually 8001), "
            "such as triton-a:8001"
        )
    return found["target"]


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
