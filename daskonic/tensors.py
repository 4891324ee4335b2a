"""What travels: tensor and model specifications, and the messages between model and transport.

Shapes are those of one row: the batch dimension is never part of a :class:`TensorSpec`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daskonic.errors import SpecError

__all__ = ["ANY", "Array", "ModelSpec", "Request", "Response", "TensorSpec"]

Array = npt.NDArray[np.generic]

ANY = -1
"""A dimension whose length the model leaves open."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
    shape : tuple of int
        Shape of one row; ``-1`` where the model takes any length.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether one row of this ``shape`` fits."""
        return len(shape) == len(self.shape) and all(
            want in (ANY, have) for want, have in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        dims = ", ".join("any" if d == ANY else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype.name}[{dims}]"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as a server describes it.

    Attributes
    ----------
    name, version : str
        The version that answers, never empty.
    inputs, outputs : tuple of TensorSpec
    max_batch_size : int
        Most rows in one request; 0 for a model without a batch dimension.
    config_digest : str
        SHA-256 of the server's model configuration, or of its metadata where it has no
        configuration call.
    platform : str
        Backend or platform as the server names it.
    fingerprint : str
        Of the :class:`~daskonic.lock.Lock` that the server was held against; empty without one.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    config_digest: str = ""
    platform: str = ""
    fingerprint: str = ""

    def with_batch_dimension(self, max_batch_size: int) -> ModelSpec:
        """The same model, the first dimension of every tensor taken as the batch.

        Raises
        ------
        SpecError
            A tensor has no open first dimension.
        """
        fixed = [str(t) for t in (*self.inputs, *self.outputs) if t.shape[:1] != (ANY,)]
        if fixed:
            raise SpecError(
                f"model {self.name!r} has no open first dimension to be the batch in {'; '.join(fixed)}"
            )
        inputs, outputs = (
            tuple(TensorSpec(t.name, t.dtype, t.shape[1:]) for t in tensors)
            for tensors in (self.inputs, self.outputs)
        )
        return dataclasses.replace(self, inputs=inputs, outputs=outputs, max_batch_size=max_batch_size)


@dataclass(frozen=True, slots=True)
class Request:
    """One batch on its way to a server.

    Attributes
    ----------
    model, version : str
    inputs : mapping of str to array, [rows, ...]
        C-contiguous, in the dtypes of the model.
    outputs : tuple of str
        Outputs wanted; the server sends no others.
    rows : int
    """

    model: str
    version: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Response:
    """What came back for one batch.

    Attributes
    ----------
    version : str
        Version of the model that answered.
    outputs : mapping of str to array, [rows, ...]
        Read-only views of the received message.
    """

    version: str
    outputs: Mapping[str, Array]
