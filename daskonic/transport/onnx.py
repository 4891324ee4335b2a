"""The same request answered in this process by ONNX Runtime: no server, the model's own numbers."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from daskonic.errors import InferenceError, InputError
from daskonic.tensors import ANY, ModelSpec, Request, Response, TensorSpec
from daskonic.transport.base import Account

__all__ = ["OnnxTransport", "import_onnxruntime"]

DTYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "u1",
    "tensor(uint16)": "u2",
    "tensor(uint32)": "u4",
    "tensor(uint64)": "u8",
    "tensor(int8)": "i1",
    "tensor(int16)": "i2",
    "tensor(int32)": "i4",
    "tensor(int64)": "i8",
    "tensor(float16)": "f2",
    "tensor(float)": "f4",
    "tensor(double)": "f8",
}


def import_onnxruntime() -> Any:
    """ONNX Runtime, told before its import not to report to its maker, as version 1.31 does otherwise."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


class OnnxTransport:
    """One ONNX file, on one thread.

    Parameters
    ----------
    path : path
        The model; its first dimension is the batch.
    """

    def __init__(self, path: str | Path) -> None:
        onnxruntime = import_onnxruntime()
        self.address = f"in process ({Path(path).name})"
        self._path = Path(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise InputError(
                f"{path} cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}"
            ) from error
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="daskonic-onnx")

    def model_spec(self, model: str, version: str, timeout_s: float) -> ModelSpec:  # noqa: ARG002
        """What the file says; any name and version are taken."""
        return ModelSpec(
            name=model,
            version=version or "1",
            inputs=tuple(_tensor_spec(t) for t in self._session.get_inputs()),
            outputs=tuple(_tensor_spec(t) for t in self._session.get_outputs()),
            max_batch_size=2**31 - 1,
            config_digest=hashlib.sha256(self._path.read_bytes()).hexdigest(),
            platform="onnxruntime",
        )

    def account(self, model: str, version: str, timeout_s: float) -> Account | None:  # noqa: ARG002
        """None is kept."""
        return None

    def encode(self, request: Request) -> Request:
        """Nothing to do: the arrays are the message."""
        return request

    def submit(self, message: Request, timeout_s: float) -> Future[tuple[Request, list[Any]]]:  # noqa: ARG002
        """Run it on the transport's thread."""
        return self._executor.submit(self._run, message)

    def decode(self, answer: tuple[Request, list[Any]]) -> Response:
        """Outputs by name."""
        request, values = answer
        return Response(request.version, dict(zip(request.outputs, values, strict=True)))

    def close(self) -> None:
        """Stop the thread after what it has begun."""
        self._executor.shutdown(cancel_futures=True)

    def _run(self, request: Request) -> tuple[Request, list[Any]]:
        """One batch."""
        try:
            return request, self._session.run(list(request.outputs), dict(request.inputs))
        except Exception as error:
            raise InferenceError(f"{self.address}: {str(error).splitlines()[0]}") from error


def _tensor_spec(tensor: Any) -> TensorSpec:
    """A tensor of the session, its batch dimension taken off."""
    shape = tuple(d if isinstance(d, int) else ANY for d in tensor.shape)
    return TensorSpec(tensor.name, np.dtype(DTYPES[tensor.type]), shape[1:])
