"""What an endpoint says of a model, and whether that is the model that is wanted."""

from __future__ import annotations

import dataclasses
import logging
import time
import zlib
from collections.abc import Container
from typing import TYPE_CHECKING

from daskonic.errors import (
    ConfigError,
    DaskonicError,
    DeadlineError,
    ModelNotFoundError,
    NotReadyError,
    UnavailableError,
)
from daskonic.lock import Lock
from daskonic.pool.call import job_left_s
from daskonic.pool.check import refuse_disagreement
from daskonic.pool.endpoint import ModelKey
from daskonic.tensors import ModelSpec
from daskonic.transport import Transport

if TYPE_CHECKING:
    from daskonic.pool.pool import Pool

__all__ = ["confirm", "described", "first_contact", "read_lock"]

RETRY_PAUSE_S = 0.2
TOLD = 10
"""Of many endpoints' errors so many are quoted."""

logger = logging.getLogger(__name__)


def first_contact(pool: Pool, model: str, version: str) -> ModelSpec:
    """Ask every endpoint for a model until one answers; see :meth:`Pool.spec`."""
    key, settings, begin = (model, version), pool.settings, time.monotonic()
    patience_s = min(settings.timeout_s, job_left_s()) if pool.has_fleets else settings.connect_timeout_s
    deadline = begin + patience_s
    said: dict[str, DaskonicError] = {}
    while True:
        asked = pool.candidates(key)
        errors = []
        for i, endpoint in enumerate(asked):  # one that hangs leaves time for the others
            share_s = min((deadline - time.monotonic()) / (len(asked) - i), settings.connect_timeout_s)
            errors.append(pool.ask(endpoint, key, version, max(share_s, 0.1)))
        described = [(e, e.specs.get(key)) for e in asked]
        found = {e.address: spec for e, spec in described if spec is not None}
        if found:
            refuse_disagreement(list(found.values()), list(found))
            return next(iter(found.values()))
        said |= {e.address: error for e, error in zip(asked, errors, strict=True) if error is not None}
        failures = [e for e in errors if e is not None]
        may_pass = not asked or any(e.retryable or isinstance(e, DeadlineError) for e in failures)
        is_lacking = bool(asked) and all(isinstance(e, ModelNotFoundError) for e in failures)
        if is_lacking and pool.is_elsewhere(key) and time.monotonic() < deadline:
            time.sleep(RETRY_PAUSE_S if pool.promises(model) else 0.0)
            continue  # other endpoints have not been asked yet
        if not may_pass or time.monotonic() >= deadline:
            raise _worst(list(said.values())) if said else UnavailableError(pool.no_server(key))
        time.sleep(RETRY_PAUSE_S)


def confirm(pool: Pool, key: ModelKey, addresses: Container[str]) -> None:
    """ModelNotFoundError unless the endpoints that answered still have the model, where it is locked."""
    if not any(read_lock(text).model == key[0] for text in pool.settings.locks):
        return
    for endpoint in pool.all_endpoints():
        if endpoint.address in addresses:
            error = pool.ask(endpoint, key, key[1], pool.settings.connect_timeout_s)
            if isinstance(error, ModelNotFoundError):
                raise error


def described(
    transport: Transport, model: str, version: str, lock: Lock | None, timeout_s: float, patience_s: float
) -> ModelSpec:
    """The endpoint's description of a model.

    Parameters
    ----------
    lock : Lock, optional
        What the model must be.
    timeout_s, patience_s : float
        Wall time of the question, and of the requests of the lock.

    Raises
    ------
    ModelNotFoundError
        The model is not there, or not in this version, or it is not the one that was locked.
    """
    if lock is None:
        return _in_version(transport, model, version, timeout_s)
    spec = _in_version(transport, model, version or lock.version, timeout_s)
    difference = lock.disagreement(spec, transport, patience_s)
    if difference is not None:
        logger.warning("%s is not asked for model %s: %s", transport.address, model, difference)
        raise ModelNotFoundError(
            f"{transport.address} has another model {model!r} than daskonic.locks says: {difference}"
        )
    return dataclasses.replace(spec, fingerprint=lock.fingerprint)


def _in_version(transport: Transport, model: str, version: str, timeout_s: float) -> ModelSpec:
    """Of this version; ModelNotFoundError where it is not ready, and will not be: another one has taken its place."""
    try:
        return transport.model_spec(model, version, timeout_s)
    except NotReadyError as error:
        other = _preferred(transport, model, timeout_s) if version else ""
        if not other:
            raise
        raise ModelNotFoundError(
            f"{transport.address}: version {other} has taken the place of version {version} of model {model!r}, which this "
            f"process began with; to go on with the new one, name it: version={other}"
        ) from error


def _preferred(transport: Transport, model: str, timeout_s: float) -> str:
    """The version that the endpoint prefers; empty while there is none."""
    try:
        return transport.model_spec(model, "", timeout_s).version
    except DaskonicError:
        return ""


def read_lock(text: str) -> Lock:
    """A lock of the settings."""
    try:
        return Lock.from_text(text)
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise ConfigError("daskonic.locks has a file that daskonic lock did not write") from error


def _worst(errors: list[DaskonicError]) -> DaskonicError:
    """One error for several endpoints: a permanent one explains more than one that may pass."""
    first = min(errors, key=lambda e: e.retryable)
    if len(errors) == 1:
        return first
    more = f"; and {len(errors) - TOLD} more say such things" if len(errors) > TOLD else ""
    return type(first)("; ".join(str(e) for e in errors[:TOLD]) + more)
