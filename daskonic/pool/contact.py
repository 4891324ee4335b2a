"""What an endpoint says of a model, and whether that is the model that is wanted."""

from __future__ import annotations

import dataclasses
import logging
import zlib

from daskonic.errors import ConfigError, DaskonicError, ModelNotFoundError, NotReadyError
from daskonic.lock import Lock
from daskonic.tensors import ModelSpec
from daskonic.transport import Transport

__all__ = ["described", "read_lock", "worst"]

TOLD = 10
"""Of many endpoints' errors so many are quoted."""

logger = logging.getLogger(__name__)


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
            f"{transport.address}: version {other} has taken the place of version {version} of model {model!r}"
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


def worst(errors: list[DaskonicError]) -> DaskonicError:
    """One error for several endpoints: a permanent one explains more than one that may pass."""
    first = min(errors, key=lambda e: e.retryable)
    if len(errors) == 1:
        return first
    more = f"; and {len(errors) - TOLD} more say such things" if len(errors) > TOLD else ""
    return type(first)("; ".join(str(e) for e in errors[:TOLD]) + more)
