"""Answers of batches, put into the places of their rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from daskonic.errors import ResponseError
from daskonic.features import Batch, GraphRows, Rows
from daskonic.features.buckets import Which
from daskonic.tensors import ANY, Array, Response, TensorSpec

__all__ = ["Joined"]


class Joined:
    """Outputs of all rows, filled batch by batch, in any order."""

    def __init__(self, wanted: tuple[TensorSpec, ...], rows: Rows | GraphRows) -> None:
        self.names = tuple(t.name for t in wanted)
        self._offsets = {t.name: rows.offsets(t) for t in wanted}
        # Open dimensions are known with the first answer; without rows they stay zero long.
        self.arrays: dict[str, Array] = {}
        for tensor in wanted:
            offsets = self._offsets[tensor.name]
            n, shape = (len(rows), tensor.shape) if offsets is None else (offsets[-1], tensor.shape[1:])
            self.arrays[tensor.name] = np.empty((n, *(0 if d == ANY else d for d in shape)), tensor.dtype)
        self._filled = 0
        self.missing: npt.NDArray[np.bool_] | None = None
        self.version = ""  # that answered; not every server says it
        self._n_rows = len(rows)

    def miss(self, batch: Batch) -> None:
        """Rows of one batch have no entries."""
        if self.missing is None:
            self.missing = np.zeros(self._n_rows, np.bool_)
        self.missing[batch.which] = True

    def join(self, batch: Batch, response: Response) -> None:
        """Entries of one batch."""
        if response.version and self.version not in ("", response.version):
            raise ResponseError(
                f"version {response.version} of the model answered after version {self.version}: it was replaced during the call"
            )
        self.version = self.version or response.version
        for name in self.names:
            values, place = response.outputs[name], self._place(name, batch)
            if isinstance(place, slice) and len(values) != place.stop - place.start:
                raise ResponseError(
                    f"output {name!r} has {len(values)} entries for {batch.n_rows} rows that need {place.stop - place.start}; "
                    "for a model of graphs: are there graphs without nodes, or is the output in the wrong list?"
                )
            if self.arrays[name].shape[1:] != values.shape[1:]:
                if self._filled:
                    raise ResponseError(
                        f"output {name!r} has entries of shape {list(values.shape[1:])} after some of "
                        f"{list(self.arrays[name].shape[1:])}: the shape must not depend on the length of the inputs"
                    )
                self.arrays[name] = np.empty((len(self.arrays[name]), *values.shape[1:]), values.dtype)
            self.arrays[name][place] = values
        self._filled += 1

    def _place(self, name: str, batch: Batch) -> Which:
        """Where the entries of a batch go: its rows, or the items of its graphs."""
        offsets = self._offsets[name]
        if offsets is None or not isinstance(batch.which, slice):
            return batch.which
        return slice(int(offsets[batch.which.start]), int(offsets[batch.which.stop]))
