"""Lock a model, and verify later that servers still have it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from daskonic.config import Settings
from daskonic.errors import (
    ConfigError,
    DaskonicError,
    InferenceError,
    InputError,
    ModelNotFoundError,
    ServerError,
    SpecError,
)
from daskonic.lock import Lock, ask
from daskonic.model import Model
from daskonic.pool.discovery import servers_now
from daskonic.tensors import ANY, Array, ModelSpec, TensorSpec
from daskonic.tolerance import TOLERANCE, apart
from daskonic.transport.grpc import GrpcTransport

__all__ = ["Verified", "lock", "verify"]

logger = logging.getLogger(__name__)

ROWS = 4
OPEN_LENGTH = 16
"""Items of an invented row where the model leaves the length open."""


def lock(
    model: Model,
    objects: Any = None,
    *,
    tolerance: float = TOLERANCE,
    repository: str | os.PathLike[str] | None = None,
) -> Lock:
    """Write down what a model is, so that any server's can be recognised as the same.

    Parameters
    ----------
    model : Model
        All of its servers are asked, not only those that one worker would use.
    objects : ak.Array or numpy.ndarray, optional
        What the model is called with; the first four rows are the probe. Without them rows are invented: normally
        distributed numbers, integers 0 and 1, 16 items where the length is open.
    tolerance : float
        Difference up to which answers are the same, absolute up to 1 and relative above.
    repository : path, optional
        Model repository of the servers where this process can see it: the SHA-256 of the model's files is kept too.

    Returns
    -------
    Lock

    Raises
    ------
    ConfigError
        The same rows differ by more than the tolerance between batches of one and of four rows.
    ServerError
        Servers give different answers, or do not answer.
    InputError
        There are no rows, or no such files.
    SpecError
        The model cannot be probed without objects, or answers with something that is not a number.
    """
    pool = model.pool()
    spec = pool.spec(model.name, model.version)
    probe = _invented(spec, model) if objects is None else _first_rows(objects, model)
    answers, servers, spread = _answers(model, spec, probe, pool.settings, tolerance)
    return Lock(
        model=spec.name,
        version=spec.version,
        inputs=spec.inputs,
        outputs=spec.outputs,
        max_batch_size=spec.max_batch_size,
        probe=probe,
        answers=answers,
        config_digest=spec.config_digest,
        platform=spec.platform,
        tolerance=tolerance,
        spread=spread,
        features=model.features.digest,
        servers=servers,
        files={} if repository is None else dict(_files(Path(repository), spec)),
    )


@dataclass(frozen=True, slots=True)
class Verified:
    """What one server has.

    Attributes
    ----------
    address : str
    state : {"same", "other", "no answer"}
    why : str
        What differs, or went wrong; empty if nothing.
    notes : tuple of str
        What changed and may: the software, the configuration.
    """

    address: str
    state: Literal["same", "other", "no answer"]
    why: str = ""
    notes: tuple[str, ...] = ()


def verify(
    locked: Lock, settings: Settings, repository: str | os.PathLike[str] | None = None
) -> list[Verified]:
    """Ask every server whether it has the model of a lock.

    Parameters
    ----------
    locked : Lock
    settings : Settings
        Whom to ask, and how.
    repository : path, optional
        Model repository whose files are compared too.

    Raises
    ------
    InputError
        A file of the model differs from the one that was locked.
    """
    if repository is not None:
        _refuse_other_files(locked, Path(repository))
    return [_verified(locked, address, settings) for address in servers_now(settings.servers)]


def _verified(locked: Lock, address: str, settings: Settings) -> Verified:
    """One server."""
    with closing(_connected(address, settings)) as transport:
        try:
            software = transport.server(settings.connect_timeout_s)
            spec = transport.model_spec(locked.model, locked.version, settings.connect_timeout_s)
            difference = locked.disagreement(spec, transport, settings.attempt_timeout_s)
        except (ModelNotFoundError, InferenceError) as error:
            return Verified(address, "other", str(error))
        except DaskonicError as error:
            return Verified(address, "no answer", str(error))
    notes = []
    if spec.config_digest != locked.config_digest:
        notes.append("its configuration is another one than when it was locked")
    if software not in locked.servers.values():
        notes.append(f"runs {software}; locked on {', '.join(sorted(set(locked.servers.values())))}")
    return Verified(address, "other" if difference else "same", difference or "", tuple(notes))


def _connected(address: str, settings: Settings) -> GrpcTransport:
    """A connection of its own; without shared memory, since nothing large is sent."""
    return GrpcTransport(address, settings.credentials, "never")


def _first_rows(objects: Any, model: Model) -> dict[str, Array]:
    """The model's inputs for the first rows of the objects."""
    rows = model.features(objects, model.spec()).flatten()
    if not len(rows):
        raise InputError("there are no rows to make a probe of")
    return rows.tensors(rows.features(slice(0, min(ROWS, len(rows)))))


def _invented(spec: ModelSpec, model: Model) -> dict[str, Array]:
    """The same rows for the same model, always."""
    if model.features.is_graph:
        raise SpecError(f"a graph for {spec.name!r} cannot be invented; give objects to make the probe of")
    rng = np.random.default_rng(0)
    return {tensor.name: _numbers(rng, tensor) for tensor in model.spec().inputs}


def _numbers(rng: np.random.Generator, tensor: TensorSpec) -> Array:
    """Rows of one input."""
    shape = (ROWS, *(OPEN_LENGTH if d == ANY else d for d in tensor.shape))
    whole = np.issubdtype(tensor.dtype, np.integer) or tensor.dtype == np.bool_
    return (rng.integers(0, 2, shape) if whole else rng.normal(size=shape)).astype(tensor.dtype)


def _answers(
    model: Model, spec: ModelSpec, probe: Mapping[str, Array], settings: Settings, tolerance: float
) -> tuple[dict[str, Array], dict[str, str], float]:
    """What all servers answer, who they are, and the largest difference that was seen."""
    first: dict[str, Array] = {}
    servers: dict[str, str] = {}
    spread = 0.0
    for address in servers_now(settings.servers):
        with closing(_connected(address, settings)) as transport:
            here = transport.model_spec(spec.name, spec.version, settings.connect_timeout_s)
            together, apiece = _asked(transport, here, probe, settings, alone=not model.features.is_graph)
            servers[address] = transport.server(settings.connect_timeout_s)
        _refuse_nonsense(together, address)
        first = first or together
        batches_apart, servers_apart = apart(together, apiece), apart(first, together)
        if batches_apart > tolerance:
            raise ConfigError(
                f"{address}: rows score differently alone and together, by up to {batches_apart:.2g}, which is more "
                f"than the tolerance of {tolerance:g}: a score of {spec.name!r} depends on its neighbours in the batch, or "
                "the tolerance must be larger"
            )
        if servers_apart > tolerance:
            raise ServerError(
                f"{address} and {next(iter(servers))} have different models under the name {spec.name!r}, version "
                f"{here.version or 'unknown'}: answers to the same rows differ by up to {servers_apart:.2g}"
            )
        spread = max(spread, batches_apart, servers_apart)
    return first, servers, spread


def _asked(
    transport: GrpcTransport, spec: ModelSpec, probe: Mapping[str, Array], settings: Settings, *, alone: bool
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Answers to all rows in one request, and to each in its own."""
    n_rows = len(next(iter(probe.values())))
    together = ask(transport, spec, probe, n_rows, settings.attempt_timeout_s)
    if not alone:
        return together, together
    rows = [
        ask(transport, spec, {k: x[i : i + 1] for k, x in probe.items()}, 1, settings.attempt_timeout_s)
        for i in range(n_rows)
    ]
    return together, {name: np.concatenate([row[name] for row in rows]) for name in together}


def _refuse_nonsense(answers: Mapping[str, Array], address: str) -> None:
    """SpecError unless all answers are numbers."""
    for name, array in answers.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise SpecError(
                f"{address}: output {name!r} of the probe is not finite; give objects to make a better probe of"
            )


def _files(repository: Path, spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """SHA-256 of the files of one version and of the configuration, by path in the repository."""
    folder = repository / spec.name
    candidates = (folder / "config.pbtxt", *sorted((folder / spec.version).rglob("*")))
    found = [
        p for p in candidates if p.is_file() and "__pycache__" not in p.parts
    ]  # that Python makes as it runs
    if not found:
        raise InputError(f"{repository} has no files of {spec.name!r}, version {spec.version!r}")
    for path in found:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield path.relative_to(repository).as_posix(), digest


def _refuse_other_files(locked: Lock, repository: Path) -> None:
    """InputError if a file is not the one that was locked."""
    spec = ModelSpec(locked.model, locked.version, locked.inputs, locked.outputs, locked.max_batch_size)
    now = dict(_files(repository, spec))
    changed = sorted(name for name in {*now, *locked.files} if now.get(name) != locked.files.get(name))
    if changed:
        raise InputError(f"{', '.join(changed)} in {repository} differ from what was locked")
