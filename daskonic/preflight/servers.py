"""Each server asked by itself: can it be reached, may we in, and has it the model."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from daskonic.config import Settings, host_of, target_of
from daskonic.errors import (
    ConfigError,
    DaskonicError,
    DeadlineError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
)
from daskonic.lock import ask
from daskonic.pool.discovery import servers_now
from daskonic.preflight.report import CheckReport, Kind
from daskonic.tensors import Array, ModelSpec
from daskonic.transport import Listed
from daskonic.transport.grpc import GrpcTransport
from daskonic.transport.status import Trouble, trouble

__all__ = ["Server", "ask_all"]

AT_ONCE = 16
"""Servers that are asked together; the first contact of a hundred takes seconds."""

PROBE_S = 3.0

Answer = Literal["no host", "refused", "silent", "tls", "http", "closed"]

ADVICE: dict[Answer, tuple[Kind, str]] = {
    "no host": ("host", "no such host; mend the name, or the network of this machine"),
    "refused": (
        "port",
        "nothing listens on this port; is the server running, and is this its gRPC port (Triton's is usually 8001)?",
    ),
    "silent": (
        "port",
        "no answer; is the server frozen, or a firewall in between? Ask for a way from here to the port",
    ),
    "tls": ("tls", "the server speaks TLS: write grpcs:// in front of the address"),
    "http": ("port", "this is an HTTP port; name the gRPC port (Triton: HTTP usually 8000, gRPC 8001)"),
    "closed": (
        "port",
        "something listens here and closes every connection; not a gRPC port, or a proxy without servers",
    ),
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that has the model.

    Attributes
    ----------
    spec : ModelSpec
        As the server describes it, without what the user declares of the batch dimension.
    """

    transport: GrpcTransport
    spec: ModelSpec
    timeout_s: float

    @property
    def address(self) -> str:
        """Where it is."""
        return self.transport.address

    def score(self, tensors: dict[str, Array], outputs: tuple[str, ...], n_rows: int) -> dict[str, Array]:
        """One request, sent once."""
        return ask(self.transport, self.spec, tensors, n_rows, self.timeout_s, outputs)


def ask_all(settings: Settings, model: str, version: str, report: CheckReport) -> list[Server]:
    """Those of the servers that have the model; what is wrong with the others, and between them, is reported."""
    servers = servers_now(settings.servers)
    with ThreadPoolExecutor(min(AT_ONCE, len(servers))) as executor:
        asked = list(executor.map(lambda address: _ask(settings, address, model, version), servers))
    for findings, _ in asked:
        for kind, message in findings:
            report.add(kind, message)
    found = [server for _, server in asked if server is not None]
    if found:
        _compare(found, report)
        report.passed["servers"] = (
            f"{len(found)} of {len(servers)} can be used, version {found[0].spec.version} of the model"
        )
    return found


def _ask(
    settings: Settings, address: str, model: str, version: str
) -> tuple[list[tuple[Kind, str]], Server | None]:
    """What is wrong with one server, and the server if it can be used."""
    try:
        transport = GrpcTransport(address, settings.credentials, shared_memory="never")
    except ConfigError as error:
        return [(_setting(error), f"{address}: {error}")], None
    timeout_s = settings.connect_timeout_s
    findings: list[tuple[Kind, str]] = []
    try:
        listed, refused = _index(transport, timeout_s)
        if refused is not None and trouble(refused) == "gate":
            findings.append(("load gate", _gated(address)))
        try:
            spec = transport.model_spec(model, version, timeout_s)
        except ModelNotFoundError as error:
            return [*findings, _absent(address, model, version, listed, str(error))], None
        return findings, Server(transport, spec, settings.attempt_timeout_s)
    except DaskonicError as error:
        return [*findings, _why(error, address)], None


def _index(transport: GrpcTransport, timeout_s: float) -> tuple[tuple[Listed, ...], ServerError | None]:
    """The server's repository, or why it is not told; what concerns every call is raised."""
    try:
        return transport.index(timeout_s), None
    except ServerError as error:
        if trouble(error) in ("connection", "tls"):
            raise
        return (), error  # not every server tells, nor to everybody


def _absent(address: str, model: str, version: str, listed: Iterable[Listed], told: str) -> tuple[Kind, str]:
    """Which way a model is not there."""
    mine = [m for m in listed if m.name == model]
    ready = sorted(m.version for m in mine if m.is_ready)
    if ready:
        return "version", (
            f"{address}: {model!r} is there in version {', '.join(ready)}, not in {version!r}; "
            "name one of these, or none for the newest"
        )
    if mine:
        states = "; ".join(
            f"version {m.version or '?'} is {m.state or 'not loaded'}"
            + (f" ({m.reason})" if m.reason else "")
            for m in mine
        )
        return "not ready", (
            f"{address}: {model!r} is in the repository, but not ready: {states}; "
            "have it loaded (explicit mode: --load-model), or the reason mended"
        )
    return "model", f"{told}; mend the name, or ask for the model to be put there"


def _why(error: DaskonicError, address: str) -> tuple[Kind, str]:
    """Kind and one line for a server that cannot be used."""
    if isinstance(error, ConfigError):
        return _setting(error), str(error)
    what = trouble(error)
    if isinstance(error, DeadlineError) or what == "connection":
        kind, advice = ADVICE[_knock(address)]
        return kind, f"{address}: {advice}"
    if isinstance(error, OverloadedError):
        return "load gate", _gated(address)
    kinds: dict[Trouble, Kind] = {
        "tls": "tls",
        "token": "token",
        "not ready": "not ready",
        "gate": "load gate",
    }
    remedy = {
        "token": "; renew the token, or name it in daskonic.credentials (token-file, token-env, header)",
        "not ready": "; wait until it is loaded, or have it unloaded and loaded again",
    }
    return kinds.get(what, "failed"), f"{error}{remedy.get(what, '')}"


def _setting(error: ConfigError) -> Kind:
    """Whether a setting that is wrong is about tokens, certificates or something else."""
    text = str(error)
    if "token" in text or "header" in text:
        return "token"
    return "tls" if any(word in text for word in ("ca-file", "certificate-file", "key-file")) else "setting"


def _gated(address: str) -> str:
    """What a gate means."""
    return (
        f"{address}: a gate in front of the servers takes nobody new now, since they are full; "
        "start later, with fewer workers, or at another site"
    )


def _knock(address: str) -> Answer:
    """What is behind an address with which there is no gRPC connection."""
    host, port = host_of(address), target_of(address).rpartition(":")[2]
    if not host:  # a Unix socket
        return "closed"
    place = host, int(port)
    for answer, question in _QUESTIONS.items():
        try:
            with socket.create_connection(place, PROBE_S) as connection:
                connection.settimeout(PROBE_S)
                if question(connection):
                    return answer
        except socket.gaierror:
            return "no host"
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silent"
        except OSError:  # closed: not what was asked for
            continue
    return "closed"


def _speaks_tls(connection: socket.socket) -> bool:
    """Whether a handshake succeeds, with anybody: nothing is sent after it."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    anybody.set_alpn_protocols(["h2"])
    with anybody.wrap_socket(connection):
        return True


def _speaks_http(connection: socket.socket) -> bool:
    """Whether an HTTP/1 request is answered as one."""
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: daskonic\r\nConnection: close\r\n\r\n")
    return connection.recv(7) == b"HTTP/1."


_QUESTIONS: dict[Answer, Callable[[socket.socket], bool]] = {"tls": _speaks_tls, "http": _speaks_http}


def _compare(servers: list[Server], report: CheckReport) -> None:
    """Whether all servers offer the same."""
    first = servers[0]
    for other in servers[1:]:
        a, b = first.spec, other.spec
        if a.version != b.version:
            report.add(
                "version",
                f"{first.address} prefers version {a.version} of {a.name!r}, {other.address} version {b.version}; "
                "name the version that you want",
            )
        elif (a.inputs, a.outputs, a.max_batch_size) != (b.inputs, b.outputs, b.max_batch_size):
            report.add(
                "servers differ",
                f"{first.address} and {other.address} have different models under the name {a.name!r}: "
                f"{_tensors(a)} against {_tensors(b)}; use servers of one kind",
            )


def _tensors(spec: ModelSpec) -> str:
    """Inputs, outputs and batch in one line."""
    inputs, outputs = ("; ".join(map(str, tensors)) for tensors in (spec.inputs, spec.outputs))
    return f"{inputs} -> {outputs}, {spec.max_batch_size} rows"
