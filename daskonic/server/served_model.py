"""A model in Triton's Python backend: an ONNX file run by ONNX Runtime, or a Python function.

``add_onnx`` copies this file beside ``model.onnx`` as ``model.py``, ``add_function`` beside ``function.py``. It runs in
Triton's own environment, without daskonic. Parameters in ``config.pbtxt``: ``threads``, ONNX Runtime's threads for one
execution; ``function``, the name in ``function.py``.
"""

# ruff: noqa: B905  Triton's environment may have Python 3.9, whose zip knows no strict

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

# The backend was built against NumPy 1 and reads arrays of NumPy 2 as zeros, without an error; with
# DLPack, both sides agree. On NumPy 1 it is DLPack that crashes.
DLPACK = int(np.__version__.split(".")[0]) >= 2

Arrays = dict[str, np.ndarray]


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model; an exception here is the reason that Triton shows."""
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.batched = config["max_batch_size"] > 0
        folder = os.path.join(args["model_repository"], args["model_version"])
        told = {key: value["string_value"] for key, value in config["parameters"].items()}
        if "function" in told:
            dtypes = [pb_utils.triton_string_to_numpy(tensor["data_type"]) for tensor in config["output"]]
            self.compute = _function(folder, told["function"], self.outputs, dtypes)
        else:
            self.compute = _onnx(os.path.join(folder, "model.onnx"), int(told["threads"]), self.outputs)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        arrays: list[Arrays] = []
        for i, request in enumerate(requests):
            arrays.append({name: _receive(request, name) for name in self.inputs})
            shapes = tuple(x.shape[1:] if self.batched else x.shape for x in arrays[i].values())
            groups.setdefault(shapes, []).append(i)
        for members in groups.values():
            for i, result in zip(members, self.run_group([arrays[i] for i in members])):
                responses[i] = _respond(requests[i], result)
        return responses

    def run_group(self, parts: list[Arrays]) -> list[Arrays | Exception]:
        """Run requests of the same shape: as one batch, or by themselves if that fails."""
        if self.batched and len(parts) > 1:
            # If it fails, one of them is to blame, and it alone shall get the error.
            with contextlib.suppress(Exception):
                return list(self.run_together(parts))
        results: list[Arrays | Exception] = []
        for part in parts:
            try:
                results.append(self.run(part))
            except Exception as error:  # noqa: BLE001  whatever it is, it is this request's
                results.append(error)
        return results

    def run_together(self, parts: list[Arrays]) -> list[Arrays]:
        """Concatenate, run, and slice the rows of each request out again."""
        whole = self.run({name: np.concatenate([part[name] for part in parts]) for name in self.inputs})
        ends = np.cumsum([len(part[self.inputs[0]]) for part in parts])
        starts = [0, *ends[:-1]]
        return [{name: x[start:end] for name, x in whole.items()} for start, end in zip(starts, ends)]

    def run(self, inputs: Arrays) -> Arrays:
        """Run the model on one batch."""
        values = self.compute(inputs)
        if self.batched:
            rows = len(inputs[self.inputs[0]])
            for name, x in zip(self.outputs, values):
                if x.shape[:1] != (rows,):
                    raise ValueError(f"output {name} has shape {list(x.shape)} for a batch of {rows} rows")
        return dict(zip(self.outputs, values))


def _onnx(path: str, threads: int, outputs: list[str]) -> Callable[[Arrays], list[np.ndarray]]:
    """The outputs of an ONNX file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: warnings of the optimiser say nothing to who serves a model
    # Threads that spin while they wait would take the cores from the other models and from the client.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(outputs, inputs)


def _function(
    folder: str, name: str, outputs: list[str], dtypes: list[Any]
) -> Callable[[Arrays], list[np.ndarray]]:
    """What a function gives: an array, several in a tuple, or a dictionary by the outputs' names."""
    sys.path.insert(0, folder)
    function = getattr(importlib.import_module("function"), name)

    def compute(inputs: Arrays) -> list[np.ndarray]:
        given = function(**inputs)
        if isinstance(given, dict):
            given = [given[output] for output in outputs]
        values = given if isinstance(given, (tuple, list)) else [given]
        if len(values) != len(outputs):
            raise ValueError(f"{name}() gives {len(values)} arrays; the outputs are {', '.join(outputs)}")
        # float64, as NumPy likes to make it, becomes the float32 that was told; a number never becomes a flag.
        return [np.asarray(x).astype(t, casting="same_kind", copy=False) for x, t in zip(values, dtypes)]

    return compute


def _receive(request: Any, name: str) -> np.ndarray:
    """An input as an array, aligned as NumPy's own are."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    # DLPack's view of the shared memory begins at any byte. On such arrays ONNX Runtime sums in another
    # order, so that the last bit of a score would depend on where the request lay: hence the copy.
    array: np.ndarray = np.array(np.from_dlpack(tensor)) if DLPACK else tensor.as_numpy()
    return array


def _send(name: str, array: np.ndarray) -> Any:
    """An output from an array."""
    array = np.ascontiguousarray(array)
    return pb_utils.Tensor.from_dlpack(name, array) if DLPACK else pb_utils.Tensor(name, array)


def _respond(request: Any, result: Arrays | Exception) -> Any:
    """The outputs that were asked for, or the error."""
    if isinstance(result, Exception):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(result).__name__}: {result}"))
    wanted = request.requested_output_names()
    return pb_utils.InferenceResponse([_send(name, x) for name, x in result.items() if name in wanted])
