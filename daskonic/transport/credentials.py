"""What proves who we are: read on the worker, at each use, and never kept.

A :class:`~daskonic.config.Credentials` travels inside the settings and has paths and names only. The
values exist for the length of one call: they are in no attribute, no message of an error and no log.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc

from daskonic.config import Credentials, refuse_plain_secrets, target_of
from daskonic.errors import ConfigError

__all__ = ["metadata", "open_channel"]

Metadata = tuple[tuple[str, str], ...]


def open_channel(address: str, credentials: Credentials, options: list[tuple[str, int]]) -> Any:
    """A channel, by TLS if the address says ``grpcs://``.

    Raises
    ------
    ConfigError
        A certificate or key cannot be read, or a token would go over the network in plain text.
    """
    refuse_plain_secrets(address, credentials)
    if not address.startswith("grpcs://"):
        return grpc.insecure_channel(address, options=options)
    tls = grpc.ssl_channel_credentials(
        root_certificates=_pem(credentials.ca_file, "ca-file"),
        private_key=_pem(credentials.key_file, "key-file"),
        certificate_chain=_pem(credentials.certificate_file, "certificate-file"),
    )
    return grpc.secure_channel(target_of(address), tls, options=options)


def metadata(credentials: Credentials) -> Metadata | None:
    """The headers of one request, from their files and variables as they are now.

    Raises
    ------
    ConfigError
        A file or variable is not there, is empty, or holds what no header can.
    """
    found = []
    if credentials.token_file or credentials.token_env:
        token = _secret(credentials.token_file, credentials.token_env, "token")
        found.append(("authorization", f"Bearer {token}"))
    if credentials.header:
        value = _secret(credentials.header_file, credentials.header_env, "header")
        found.append((credentials.header, value))
    return tuple(found) or None


def _secret(file: str, variable: str, key: str) -> str:
    """The value in a file or environment variable; no error of it may quote it."""
    if file:
        where, value = f"daskonic.credentials.{key}-file {file}", _read(file, f"{key}-file")
    else:
        where = (
            f"the environment variable {variable} (daskonic.credentials.{key}-env) of process {os.getpid()}"
        )
        if variable not in os.environ:
            raise ConfigError(f"{where} is not set")
        value = os.environb[os.fsencode(variable)]
    value = value.strip()
    if not value:
        raise ConfigError(f"{where} is empty")
    if not all(0x20 <= byte < 0x7F for byte in value):
        raise ConfigError(f"{where} holds more than one line of printable ASCII, which no header can carry")
    return value.decode("ascii")


def _pem(file: str, key: str) -> bytes | None:
    """A certificate or key in PEM form, None if none is set."""
    if not file:
        return None
    content = _read(file, key)
    if b"-----BEGIN " not in content:
        raise ConfigError(f"daskonic.credentials.{key} {file} is not in PEM form (-----BEGIN ...)")
    return content


def _read(file: str, key: str) -> bytes:
    """A whole file; ConfigError if there is none."""
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(
            f"daskonic.credentials.{key} {file} cannot be read on {os.uname().nodename}: {error.strerror}"
        ) from error
