"""What the scripts of this folder have in common: a network, its inputs, and its place in a model repository."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import onnx
import onnxruntime
from numpy.random import Generator

import daskonic as dk
from daskonic import server
from daskonic.tensors import Array, ModelSpec
from daskonic.tolerance import apart

__all__ = ["InProcess", "Served"]


@dataclass(frozen=True)
class Served:
    """One network that a server has.

    Attributes
    ----------
    name : str
        In the model repository.
    network : callable
        Makes the ONNX model.
    features : dk.Features
        Makes its inputs.
    sample : callable of Generator and int
        Toy events, jagged as the real ones: what the features are made from.
    row : str
        What is scored: "jet", "hit", "graph" ...
    batch : int
        Rows in one request, as the experiment has it.
    source : str
        Where the layers are from.
    parameters : int, optional
        As published, where they are.
    batched : bool
        Whether the first dimension is the batch; graphs have none.
    outputs : sequence of str, optional
        Those wanted; default is all.
    tolerance : float
        Largest difference, absolute up to 1 and relative above, between scores of other batches and padding.
    """

    name: str
    network: Callable[[], onnx.ModelProto]
    features: dk.Features
    sample: Callable[[Generator, int], Any]
    row: str
    batch: int
    source: str
    parameters: int | None = None
    batched: bool = True
    outputs: Sequence[str] | None = None
    tolerance: float = 1e-5

    def add_to(self, repository: Path) -> Path:
        """Write the network into a model repository."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(self.network(), path)
            size = self.batch if self.batched else 0
            return server.add_onnx(repository, self.name, path, max_batch_size=size)

    def model(self, servers: Sequence[str], **options: Any) -> dk.Model:
        """The handle that an analysis has."""
        return dk.Model(self.name, features=self.features, outputs=self.outputs, servers=servers, **options)


class InProcess:
    """The same network in this process: ONNX Runtime on the features of one call.

    Parameters
    ----------
    served : Served
    path : path
        ONNX file.
    spec : ModelSpec
        As the server tells it.
    """

    def __init__(self, served: Served, path: Path, spec: ModelSpec) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.served, self.path, self.spec = served, path, spec
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = served.outputs or [tensor.name for tensor in spec.outputs]

    def __call__(self, objects: Any, *, batch: int | None = None) -> dict[str, Array]:
        """Outputs of all rows, one after the other, in batches of that many that are padded in full.

        Parameters
        ----------
        objects
            What the features are made from.
        batch : int, optional
            Default is the network's own. Graphs may be fewer, as :class:`daskonic.Graph` bounds their nodes.
        """
        rows = self.served.features(objects, self.spec).flatten()
        most = self.served.batch if batch is None else batch
        answers = [
            self.session.run(self.names, rows.tensors(rows.features(batch.which), batch.lengths))
            for batch in rows.split(most, 2**31)
        ]
        return {
            n: np.concatenate(parts) for n, parts in zip(self.names, zip(*answers, strict=True), strict=True)
        }

    def difference(self, scores: Any, expected: dict[str, Array]) -> float:
        """How far jagged scores are from these outputs at most, absolute up to 1 and relative above."""
        nested = {name: scores if len(expected) == 1 else scores[name] for name in expected}
        flat = {name: np.asarray(ak.to_numpy(ak.flatten(x, axis=None))) for name, x in nested.items()}
        return apart({name: values.ravel() for name, values in expected.items()}, flat)
