"""Small models for Triton's Python backend, for tests: right answers, slow answers and faults."""

from __future__ import annotations

from pathlib import Path

MODEL = """\
import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils

NUMPY_2 = int(np.__version__.split(".")[0]) >= 2


def array(request):
    tensor = pb_utils.get_input_tensor_by_name(request, "X")
    return np.from_dlpack(tensor) if NUMPY_2 else tensor.as_numpy()


def tensor(name, values):
    values = np.array(values, order="C")
    return pb_utils.Tensor.from_dlpack(name, values) if NUMPY_2 else pb_utils.Tensor(name, values)


class TritonPythonModel:
    def initialize(self, args):
        given = json.loads(args["model_config"])["parameters"]
        self.given = {key: value["string_value"] for key, value in given.items()}
        self.kind = self.given["kind"]
        if self.kind == "fails_to_load":
            raise RuntimeError("the weights are not where they should be")

    def number(self, key, default=0.0):
        return float(self.given.get(key, default))

    def execute(self, requests):
        arrays = [array(request) for request in requests]
        rows = sum(len(x) for x in arrays)
        seconds = self.number("fixed_ms") / 1e3 + rows * self.number("per_item_us") / 1e6
        if self.kind == "sleep":
            seconds += self.number("seconds", 1.0)
        if "touch" in self.given:
            open(self.given["touch"], "w").close()
        if seconds:
            time.sleep(seconds)
        if self.kind == "fail":
            raise ValueError("this model fails on purpose")
        if self.kind == "crash":
            os._exit(3)
        return [pb_utils.InferenceResponse(output_tensors=self.outputs(x)) for x in arrays]

    def outputs(self, x):
        if self.kind == "sum":
            total = x.sum(axis=1, dtype=np.float32)
            return [tensor("Y", np.stack([total, -total], axis=1))]
        if self.kind == "two_outputs":
            length = np.full((len(x), 1), x.shape[1], np.int64)
            return [tensor("Y", 2 * x), tensor("LENGTH", length)]
        return [tensor("Y", x)]
"""

KINDS = ("identity", "sum", "two_outputs", "sleep", "fail", "crash", "graph", "fails_to_load")


def write_model(
    repository: Path,
    name: str,
    *,
    kind: str,
    max_batch_size: int = 1024,
    instances: int = 1,
    version: int = 1,
    **parameters: float | str,
) -> Path:
    """Write a model into a repository.

    Parameters
    ----------
    kind : str
        What it does to ``X`` float32[any]: ``identity`` Y = X; ``sum`` X float32[16], Y float32[2] =
        (sum, -sum); ``two_outputs`` Y = 2 X and LENGTH int64[1]; ``sleep`` identity after
        ``seconds`` (1.0); ``fail`` raises; ``crash`` kills its process; ``graph`` identity of
        float32[any, any] without a batch dimension; ``fails_to_load``.
    **parameters
        ``seconds``; ``fixed_ms`` and ``per_item_us``: time every execution takes; ``touch``: a file
        to make when one begins.
    """
    assert kind in KINDS
    model = Path(repository) / name
    folder = model / str(version)
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (model / "config.pbtxt").write_text(_config(name, kind, max_batch_size, instances, parameters))
    return model


def _config(
    name: str, kind: str, max_batch_size: int, instances: int, parameters: dict[str, float | str]
) -> str:
    dims_x, outputs = "-1", [("Y", "TYPE_FP32", "-1")]
    if kind == "sum":
        dims_x, outputs = "16", [("Y", "TYPE_FP32", "2")]
    elif kind == "two_outputs":
        outputs.append(("LENGTH", "TYPE_INT64", "1"))
    elif kind == "graph":
        dims_x, outputs, max_batch_size = "-1, -1", [("Y", "TYPE_FP32", "-1, -1")], 0
    lines = [
        f'name: "{name}"',
        'backend: "python"',
        f"max_batch_size: {max_batch_size}",
        f'input [ {{ name: "X" data_type: TYPE_FP32 dims: [ {dims_x} ] }} ]',
        *(f'output [ {{ name: "{n}" data_type: {t} dims: [ {d} ] }} ]' for n, t, d in outputs),
        f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]",
        "version_policy { all {} }",
        *(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in {"kind": kind, **parameters}.items()
        ),
    ]
    if max_batch_size:
        lines.append("dynamic_batching { max_queue_delay_microseconds: 0 }")
    return "\n".join(lines) + "\n"
