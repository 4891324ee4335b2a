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


def array(request, name="X"):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
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
        if self.kind == "graph_sum":
            return [pb_utils.InferenceResponse(output_tensors=self.graphs(request)) for request in requests]
        if self.kind == "pooled":
            return [pb_utils.InferenceResponse(output_tensors=self.pooled(request)) for request in requests]
        arrays = [array(request) for request in requests]
        rows = sum(len(x) for x in arrays)
        seconds = self.number("fixed_ms") / 1e3 + rows * self.number("per_item_us") / 1e6
        if self.kind == "sleep":
            seconds += self.number("seconds", 1.0)
        if "touch" in self.given:
            open(self.given["touch"], "w").close()
        if seconds:
            time.sleep(seconds)
        self.fault = ""
        if os.path.exists(self.given.get("fault", "")):
            self.fault = open(self.given["fault"]).read()
        if self.fault == "crash":
            os._exit(3)
        if self.kind == "fail":
            raise ValueError("this model fails on purpose")
        if self.kind == "crash":
            os._exit(3)
        return [pb_utils.InferenceResponse(output_tensors=self.outputs(x)) for x in arrays]

    def graphs(self, request):
        x, edges, batch, u = (np.array(array(request, name)) for name in ("x", "edge_index", "batch", "u"))
        total = np.zeros((batch.max(initial=-1) + 1, x.shape[1]), np.float32)
        np.add.at(total, batch, x * u[batch])
        received = np.zeros(len(x), np.float32)
        np.add.at(received, edges[1], x[edges[0], 0])
        return [
            tensor("total", total),
            tensor("received", received),
            tensor("product", (x[edges[0], 0] * x[edges[1], 1])[:, None]),
        ]

    def pooled(self, request):
        x, batch = (np.array(array(request, name)) for name in ("x", "batch"))
        total = np.bincount(batch, x[:, 0])[:, None].astype(np.float32)
        return [tensor("total", np.full_like(total, x.sum()) if "forgets" in self.given else total)]

    def outputs(self, x):
        if self.kind == "sum":
            total = x.sum(axis=1, dtype=np.float32)
            y = np.stack([total, -total], axis=1)
            if self.fault == "rows":
                y = y[:-1]
            if self.fault == "columns":
                y = np.concatenate([y, y], axis=1)
            return [tensor("Y", y)]
        if self.kind == "neighbours":
            return [tensor("Y", x - x.mean(axis=0))]
        if self.kind == "two_outputs":
            length = np.full((len(x), 1), x.shape[1], np.int64)
            return [tensor("Y", 2 * x), tensor("LENGTH", length)]
        if self.kind == "numbered":
            return [tensor("Y", x + np.arange(len(x), dtype=x.dtype)[:, None])]
        if self.kind == "at_most" and len(x) > self.number("rows"):
            raise MemoryError(f"no room for {len(x)} rows")
        return [tensor("Y", x)]
"""

KINDS = (
    "identity",
    "neighbours",
    "numbered",
    "at_most",
    "sum",
    "two_outputs",
    "sleep",
    "fail",
    "crash",
    "graph",
    "graph_sum",
    "pooled",
    "fails_to_load",
)


def write_model(
    repository: Path,
    name: str,
    *,
    kind: str,
    max_batch_size: int = 1024,
    instances: int = 1,
    version: int = 1,
    dtype: str = "FP32",
    **parameters: float | str,
) -> Path:
    """Write a model into a repository.

    Parameters
    ----------
    kind : str
        What it does to ``X`` float32[any]: ``identity`` Y = X; ``neighbours`` Y = X less its mean over the rows of a
        request, which no model should do; ``numbered`` Y = X plus the row's number in the request; ``at_most`` identity
        that fails for more than ``rows`` rows; ``sum`` X float32[16], Y float32[2] =
        (sum, -sum); ``two_outputs`` Y = 2 X and LENGTH int64[1]; ``sleep`` identity after
        ``seconds`` (1.0); ``fail`` raises; ``crash`` kills its process; ``graph`` identity of
        float32[any, any] without a batch dimension; ``graph_sum`` graphs as torch_geometric has them: ``x``
        float32[any, 2], ``edge_index`` int64[2, any], ``batch`` int64[any], ``u`` float32[any, 1]; for each graph
        ``total`` = sum of x u, for each node ``received`` = x[:, 0] of its neighbours, for each edge ``product``;
        ``pooled`` without index of edges: ``x`` float32[any, 1], ``batch``, and ``total`` float32[any, 1],
        which is that of all nodes if it ``forgets`` the batch; ``fails_to_load``.
    dtype : str
        Triton's type of X and Y.
    **parameters
        ``seconds``; ``fixed_ms`` and ``per_item_us``: time every execution takes; ``touch``: a file
        to make when one begins; ``fault``: a file that, while it exists, makes it ``crash``, or ``sum`` answer
        a row less (``rows``) or twice the columns (``columns``), whichever word is in it.
    """
    assert kind in KINDS
    model = Path(repository) / name
    folder = model / str(version)
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (model / "config.pbtxt").write_text(_config(name, kind, max_batch_size, instances, dtype, parameters))
    return model


def _config(
    name: str,
    kind: str,
    max_batch_size: int,
    instances: int,
    dtype: str,
    parameters: dict[str, float | str],
) -> str:
    dims_x, outputs = "-1", [("Y", f"TYPE_{dtype}", "-1")]
    inputs = None
    if kind == "sum":
        dims_x, outputs = "16", [("Y", "TYPE_FP32", "2")]
    elif kind == "two_outputs":
        outputs.append(("LENGTH", "TYPE_INT64", "1"))
    elif kind == "graph":
        dims_x, outputs, max_batch_size = "-1, -1", [("Y", "TYPE_FP32", "-1, -1")], 0
    elif kind == "graph_sum":
        max_batch_size = 0
        inputs = [
            ("x", "TYPE_FP32", "-1, 2"),
            ("edge_index", "TYPE_INT64", "2, -1"),
            ("batch", "TYPE_INT64", "-1"),
            ("u", "TYPE_FP32", "-1, 1"),
        ]
        outputs = [
            ("total", "TYPE_FP32", "-1, 2"),
            ("received", "TYPE_FP32", "-1"),
            ("product", "TYPE_FP32", "-1, 1"),
        ]
    elif kind == "pooled":
        max_batch_size = 0
        inputs = [("x", "TYPE_FP32", "-1, 1"), ("batch", "TYPE_INT64", "-1")]
        outputs = [("total", "TYPE_FP32", "-1, 1")]
    inputs = inputs or [("X", f"TYPE_{dtype}", dims_x)]
    lines = [
        f'name: "{name}"',
        'backend: "python"',
        f"max_batch_size: {max_batch_size}",
        *(f'input [ {{ name: "{n}" data_type: {t} dims: [ {d} ] }} ]' for n, t, d in inputs),
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
