"""What the two kinds of PyTorch files say of their inputs and outputs, read without PyTorch.

Both are zip archives. ``torch.export`` writes the signature and the shapes as JSON; TorchScript writes the source of
``forward``, whose arguments have names but no shapes. Only the conversion to ONNX needs PyTorch itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from daskonic.errors import ConfigError, InputError
from daskonic.server.entry import Tensor

__all__ = ["convert", "read_arguments", "read_exported"]

TYPES = {
    1: "UINT8", 2: "INT8", 3: "INT16", 4: "INT32", 5: "INT64", 6: "FP16", 7: "FP32", 8: "FP64", 12: "BOOL", 28: "UINT16",
}  # fmt: skip
"""``torch._export.serde.schema.ScalarType`` → Triton; complex numbers and bfloat16 are not served."""
NUMPY = {"FP16": "float16", "FP32": "float32", "FP64": "float64", "BOOL": "bool"}
OPSET = 17
EXAMPLE = 3  # length of open dimensions where a file is converted; 1 would be taken for a constant


def read_exported(path: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs in a file of ``torch.export``, the batch included; -1 is open.

    Raises
    ------
    InputError
        It is another kind of file, or takes or gives what is no tensor.
    """
    with _archive(path) as archive:
        found = [n for n in archive.namelist() if re.fullmatch(r"[^/]+/models/[^/]+\.json", n)]
        if len(found) != 1:
            raise InputError(
                f"{path} has {len(found)} exported programs; torch.export.save of PyTorch 2.9 and newer writes one"
            )
        module = json.loads(archive.read(found[0]))["graph_module"]
    values = module["graph"]["tensor_values"]
    inputs = [s["user_input"] for s in module["signature"]["input_specs"] if "user_input" in s]
    outputs = [s["user_output"] for s in module["signature"]["output_specs"] if "user_output" in s]
    return [_exported(path, s["arg"], values) for s in inputs], [
        _exported(path, s["arg"], values) for s in outputs
    ]


def read_arguments(path: Path) -> list[str]:
    """Names of the tensors that ``forward`` of a TorchScript file takes.

    Raises
    ------
    InputError
        It is another kind of file, or ``forward`` takes what is no tensor.
    """
    with _archive(path) as archive:
        data = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
        if data is None or not any("/code/" in n for n in archive.namelist()):
            raise InputError(
                f"{path} is not TorchScript, as torch.jit.save writes it; weights alone (torch.save) are no model"
            )
        root = data.removesuffix("data.pkl")
        kind = next(str(arg) for op, arg, _ in pickletools.genops(archive.read(data)) if op.name == "GLOBAL")
        module, name = kind.split(" ")
        source = archive.read(f"{root}code/{module.replace('.', '/')}.py").decode()
    body = source[re.search(rf"^class {re.escape(name)}\(", source, re.MULTILINE).start() :]  # type: ignore[union-attr]
    forward = re.search(r"def forward\(self: [^,)]*(?P<arguments>.*?)\) ->", body, re.DOTALL)
    if forward is None:
        raise InputError(f"{path}: {name} has no forward()")
    arguments = [a.strip().partition(": ") for a in forward["arguments"].split(",\n") if a.strip()]
    for argument, _, annotation in arguments:
        if annotation != "Tensor":
            raise InputError(
                f"{path}: forward() takes {argument} as {annotation}; a server passes tensors only"
            )
    return [argument for argument, _, _ in arguments]


def convert(path: Path, target: Path, inputs: Sequence[Tensor], outputs: Sequence[str]) -> None:
    """Write a PyTorch file as ONNX; the batch is the first dimension of all tensors.

    Raises
    ------
    ConfigError
        PyTorch is not installed here.
    InputError
        PyTorch cannot convert it: says why, in its words.
    """
    try:
        import onnxscript  # noqa: F401
        import torch
    except ImportError as error:
        raise ConfigError(
            f"{path} is to be converted to ONNX, which needs PyTorch and onnxscript where this is run, not on the server: "
            "pip install torch onnxscript"
        ) from error
    names = {"input_names": [t.name for t in inputs], "output_names": list(outputs)}
    with _hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if path.suffix == ".pt2":
                program = torch.export.load(path)
                torch.onnx.export(
                    program, (), target, dynamo=True, external_data=False, verbose=False, **names
                )
                return
            open_dims = {
                t.name: {i: f"{t.name}_{i}" for i, d in enumerate(t.dims) if d == -1} for t in inputs
            }
            open_dims |= {name: {0: "batch"} for name in outputs}
            arguments = tuple(
                torch.ones(
                    [EXAMPLE if d == -1 else d for d in t.dims],
                    dtype=getattr(torch, NUMPY.get(t.data_type, t.data_type.lower())),
                )
                for t in inputs
            )
            # Only the older exporter knows TorchScript.
            torch.onnx.export(
                torch.jit.load(path, "cpu"), arguments, target, dynamo=False, opset_version=OPSET,
                dynamic_axes=open_dims, **names,
            )  # fmt: skip
        except Exception as error:  # whatever its exporters raise
            raise InputError(
                f"PyTorch cannot convert {path}: {str(error).strip().splitlines()[0]}"
            ) from error


def _exported(path: Path, argument: dict[str, Any], values: dict[str, Any]) -> Tensor:
    """One input or output; InputError if it cannot be served."""
    (kind, value), *_ = argument.items()
    if kind != "as_tensor":
        raise InputError(f"{path}: an input or output is {kind.removeprefix('as_')}, not a tensor")
    name = value["name"]
    if values[name]["dtype"] not in TYPES:
        raise InputError(
            f"{path}: {name} is of a type that is not served; these are: {', '.join(TYPES.values())}"
        )
    dims = tuple(size.get("as_int", -1) for size in values[name]["sizes"])
    return Tensor(name, TYPES[values[name]["dtype"]], dims)


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file as a zip; InputError if it is none, or holds something unexpected."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(
            f"{path} is not a file of torch.export or TorchScript that can be read: {error}"
        ) from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what PyTorch's exporters log about packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
