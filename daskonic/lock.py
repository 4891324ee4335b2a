"""What a model is, written down: version, tensors, files, and its answers to a stored probe.

Two servers can have different weights under one name, version and configuration, and only what they answer tells them
apart. A lock holds a few rows of inputs with the answers of the model that was locked; a server is used only if
it gives the same ones.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from daskonic.errors import InputError, OutputError
from daskonic.tensors import Array, ModelSpec, Request, TensorSpec
from daskonic.tolerance import TOLERANCE, apart
from daskonic.transport import Transport

__all__ = ["LAYOUT", "Lock", "ask"]

LAYOUT = 1


@dataclass(frozen=True, slots=True)
class Lock:
    """A model, so that it can be recognised.

    Attributes
    ----------
    model, version, config_digest, platform : str
        As in :class:`~daskonic.tensors.ModelSpec`.
    inputs, outputs : tuple of TensorSpec
        As the server describes them, of one row.
    max_batch_size : int
    probe, answers : dict of str to array, [rows, ...]
        Inputs, and what the locked model made of them.
    tolerance : float
        Largest difference of an answer that counts as the same, as :func:`~daskonic.tolerance.apart` tells it.
    spread : float
        Largest difference that was seen when it was locked: between batch sizes, and between servers.
    features : str
        Digest of the features; empty where they have none.
    servers : dict of str to str
        Name and version of the software, by address, as it was locked.
    files : dict of str to str
        SHA-256 of the model's files, where they could be seen.
    """

    model: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    probe: Mapping[str, Array]
    answers: Mapping[str, Array]
    config_digest: str = ""
    platform: str = ""
    tolerance: float = TOLERANCE
    spread: float = 0.0
    features: str = ""
    servers: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Of the probe."""
        return len(next(iter(self.answers.values())))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what makes the numbers: model, version, tensors, and the answers to the probe."""
        parts = (self.model, self.version, *map(str, (*self.inputs, *self.outputs)))
        digest = hashlib.sha256("\n".join(parts).encode())
        for name, array in sorted((*self.probe.items(), *self.answers.items())):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def disagreement(self, spec: ModelSpec, transport: Transport, timeout_s: float) -> str | None:
        """Why what an endpoint has is not this model; None if it is.

        Parameters
        ----------
        spec : ModelSpec
            What the endpoint says of it.
        transport : Transport
            To the endpoint, which gets one request.
        timeout_s : float

        Raises
        ------
        ServerError
            It does not answer.
        """
        for what, locked, served in (
            ("version", self.version, spec.version),
            ("inputs", self.inputs, spec.inputs),
            ("outputs", self.outputs, spec.outputs),
        ):
            if locked != served:
                return f"{what} {_told(served)} where {_told(locked)} was locked"
        difference = apart(self.answers, ask(transport, spec, self.probe, self.rows, timeout_s))
        if difference > self.tolerance:
            return (
                f"its answers to the probe differ by up to {difference:.2g} from those that were locked "
                f"(tolerance {self.tolerance:g}): other weights, or other software"
            )
        return None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """From a file.

        Raises
        ------
        InputError
            It cannot be read, or is no lock.
        """
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the lock {path} cannot be read: {error}") from error
        try:
            return cls.from_text(text)
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise InputError(f"{path} is not a lock that daskonic lock wrote (layout {LAYOUT})") from error

    @classmethod
    @functools.lru_cache(maxsize=64)
    def from_text(cls, text: str) -> Self:
        """From the text of a file."""
        given = json.loads(text)
        if given.pop("layout") != LAYOUT:
            raise ValueError("another layout")
        given.pop("fingerprint")
        for name in ("inputs", "outputs"):
            given[name] = tuple(
                TensorSpec(t["name"], np.dtype(t["dtype"]), tuple(t["shape"])) for t in given[name]
            )
        for name in ("probe", "answers"):
            given[name] = {key: _array(value) for key, value in given[name].items()}
        return cls(**given)

    def text(self) -> str:
        """As it is written."""
        given: dict[str, Any] = {"layout": LAYOUT, "fingerprint": self.fingerprint}
        for name in self.__slots__:
            value = getattr(self, name)
            if name in ("inputs", "outputs"):
                value = [asdict(t) | {"dtype": t.dtype.name} for t in value]
            elif name in ("probe", "answers"):
                value = {key: _written(array) for key, array in value.items()}
            given[name] = value
        return json.dumps(given, indent=1) + "\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """To a file, whole or not at all.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        path = Path(path)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            aside.write_text(self.text())
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise OutputError(f"the lock {path} cannot be written: {error.strerror}") from error


def ask(
    transport: Transport,
    spec: ModelSpec,
    inputs: Mapping[str, Array],
    rows: int,
    timeout_s: float,
    outputs: tuple[str, ...] = (),
) -> dict[str, Array]:
    """What an endpoint answers to some rows, once and beside the pool; copies, of all outputs or of some."""
    request = Request(spec.name, spec.version, inputs, outputs or tuple(t.name for t in spec.outputs), rows)
    answer = transport.submit(transport.encode(request), timeout_s).result()
    return {name: np.array(array) for name, array in transport.decode(answer).outputs.items()}


def _told(what: Any) -> str:
    """A version, or tensors, in a sentence."""
    return what if isinstance(what, str) else "; ".join(map(str, what))


def _written(array: Array) -> dict[str, Any]:
    """An array as JSON."""
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "zlib": packed}


def _array(given: Mapping[str, Any]) -> Array:
    """An array from JSON."""
    raw = zlib.decompress(base64.b64decode(given["zlib"]))
    return np.frombuffer(raw, np.dtype(given["dtype"])).reshape(given["shape"])
