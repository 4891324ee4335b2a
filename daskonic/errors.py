"""Every error that daskonic raises on purpose, in one tree.

::

    DaskonicError                 1
    ├── ConfigError               2  a setting is unknown, or its value is not usable
    ├── InputError                3  a file, branch or column cannot be read or used
    ├── SpecError                 4  features and model disagree; nothing was sent
    ├── ModelNotFoundError        5  no endpoint offers the model (or that version)
    ├── OutputError               6  results cannot be written, or do not belong together
    ├── LocalServerError          7  the local Triton cannot be fetched or started
    ├── BatchSystemError         10  the batch system refuses jobs, or they cannot run
    └── ServerError               8  what a server answered, or that it did not
        ├── UnavailableError      8  down, draining or refusing connections   (retryable)
        │   └── NotReadyError     8  the model is; others there may be well   (retryable)
        ├── OverloadedError       8  queue full or timed out in the queue     (retryable)
        ├── DeadlineError         8  no answer within the deadline
        ├── InferenceError        9  the model failed on this request
        └── ResponseError         9  an answer of wrong shape, dtype or version

The number is the exit code of the command line. Each error holds plain strings only, and all of
them in ``args``, so it survives the pickling between Dask processes.
"""

from __future__ import annotations

__all__ = [
    "BatchSystemError",
    "ConfigError",
    "DaskonicError",
    "DeadlineError",
    "InferenceError",
    "InputError",
    "LocalServerError",
    "ModelNotFoundError",
    "NotReadyError",
    "OutputError",
    "OverloadedError",
    "ResponseError",
    "ServerError",
    "SpecError",
    "UnavailableError",
]


class DaskonicError(Exception):
    """Base of all errors raised by daskonic.

    Attributes
    ----------
    retryable : bool
        Whether the pool may send the same request again.
    exit_code : int
        What the command line exits with.
    """

    retryable: bool = False
    exit_code: int = 1


class ConfigError(DaskonicError, ValueError):
    """A setting is unknown, or its value is not usable."""

    exit_code = 2


class InputError(DaskonicError):
    """A file, branch or column cannot be read or used."""

    exit_code = 3


class SpecError(DaskonicError, ValueError):
    """Names, shapes or dtypes of the features disagree with the model; nothing was sent."""

    exit_code = 4


class ModelNotFoundError(DaskonicError, LookupError):
    """No endpoint offers the model, or not in that version."""

    exit_code = 5


class OutputError(DaskonicError):
    """Results cannot be written, or the output directory belongs to another run."""

    exit_code = 6


class LocalServerError(DaskonicError, RuntimeError):
    """The local Triton server cannot be fetched or started."""

    exit_code = 7


class BatchSystemError(DaskonicError, RuntimeError):
    """The batch system refuses jobs, or they cannot run; the message has its own words."""

    exit_code = 10


class ServerError(DaskonicError):
    """What a server answered, or that it did not answer."""

    exit_code = 8


class UnavailableError(ServerError, ConnectionError):
    """The endpoint is down, draining or refuses connections."""

    retryable = True


class NotReadyError(UnavailableError):
    """The endpoint answers, but the model is being loaded, unloaded or replaced there, or its process has died."""


class OverloadedError(ServerError):
    """The server's queue is full, or the request timed out in it."""

    retryable = True


class DeadlineError(ServerError, TimeoutError):
    """No answer within the deadline."""


class InferenceError(ServerError):
    """The model failed on this request; sending it again would fail again."""

    exit_code = 9


class ResponseError(ServerError):
    """The server answered with a wrong shape, dtype or model version."""

    exit_code = 9
