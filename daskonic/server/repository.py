"""Model repositories: files and functions made into models that Triton serves.

======================  ==========================  ===========================================
file                    backend ``python``          for production
======================  ==========================  ===========================================
ONNX                    ONNX Runtime                ``onnxruntime``, on GPUs with TensorRT too
``torch.export`` .pt2   converted to ONNX           converted, ``onnxruntime``
TorchScript .pt         converted to ONNX           ``pytorch``; or converted, ``onnxruntime``
TensorRT plan                                       ``tensorrt``
Python function         NumPy in, NumPy out
======================  ==========================  ===========================================

All but functions have the names, types and dimensions of their tensors in the file, TorchScript the names only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from daskonic.errors import ConfigError, InputError, SpecError
from daskonic.server.entry import Serving, Settings, Tensor, check_name, rows, write_entry
from daskonic.server.function import read_function, source_of
from daskonic.server.onnx_file import external_files, load_graph, read_tensors
from daskonic.server.torch_file import convert, read_arguments, read_exported

__all__ = ["add_function", "add_onnx", "add_plan", "add_torch"]

MODEL = Path(__file__).with_name("served_model.py")


def add_onnx(
    repository: str | os.PathLike[str],
    name: str,
    onnx_path: str | os.PathLike[str],
    *,
    version: int = 1,
    labels: Sequence[str] | None = None,
    warm_up: Mapping[str, Sequence[int]] | None = None,
    **settings: Unpack[Settings],
) -> Path:
    """Add an ONNX model to a model repository, or replace one of its versions.

    Files are written aside and renamed, so a server that reads the repository meanwhile never sees half of
    a model.

    Parameters
    ----------
    repository : path
        Made if it does not exist.
    name : str
        What clients will call the model.
    onnx_path : path
        The first dimension of every input and output is the batch and must be open.
    version : int
        1 or more; versions stand side by side, and clients that name none get the highest.
    labels : sequence of str, optional
        Names of the classes, for a model of one output.
    warm_up : mapping of str to sequence of int, optional
        Shape of one row for the inputs that leave dimensions open, and requests of zeros are computed before the model
        counts as ready, of one row and of each preferred batch size. Without it, that is done with native backends if no
        dimension is open.
    **settings
        Of :class:`~daskonic.server.entry.Serving`: max_batch_size=1024, preferred_batch_sizes=(), instances=1,
        threads=1, queue_delay_us=500, queue_size=None, queue_timeout_us=None, versions="all", backend="python" (or
        "onnxruntime"), device="cpu", tensorrt=None.

    Returns
    -------
    Path
        Folder of the model.

    Raises
    ------
    ConfigError
        An argument is out of range.
    InputError
        The file is no ONNX model, or has tensors that cannot be served.
    SpecError
        It has no batch dimension, or its tensors are not those of the versions that exist.
    OutputError
        The repository cannot be written.
    """
    serving = _serving(name, version, settings, "an ONNX file", ("python", "onnxruntime"))
    path = Path(onnx_path)
    graph = load_graph(path)

    def put(folder: Path) -> None:
        if serving.backend == "python":
            shutil.copyfile(MODEL, folder / "model.py")
        shutil.copyfile(path, folder / "model.onnx")
        for extra in external_files(path, graph):
            shutil.copyfile(path.parent / extra, folder / extra)

    tensors = _of_rows(path, serving, *read_tensors(path, graph))
    return write_entry(repository, name, version, serving, tensors, put, labels=labels, warm_up=warm_up)


def add_torch(
    repository: str | os.PathLike[str],
    name: str,
    torch_path: str | os.PathLike[str],
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | Iterable[str] | None = None,
    version: int = 1,
    labels: Sequence[str] | None = None,
    warm_up: Mapping[str, Sequence[int]] | None = None,
    **settings: Unpack[Settings],
) -> Path:
    """Add a PyTorch model: a file of ``torch.export.save`` (.pt2) or of ``torch.jit.save`` (.pt).

    TorchScript is served as it is by ``backend="pytorch"``. For the other backends a file is converted to ONNX, which
    needs PyTorch where this is called, not on the server.

    Parameters
    ----------
    torch_path : path
        The batch is the first dimension of all tensors.
    inputs : mapping of str to str, optional
        For TorchScript, which has the names of the arguments of ``forward`` but no shapes: type and dimensions of
        a row, such as ``{"points": "FP32[2,-1]"}``, -1 being any.
    outputs : mapping of str to str, or iterable of str, optional
        Names, instead of those in the file; or type and dimensions as well, which ``backend="pytorch"`` needs: its server
        calls them ``scores__0`` and so on, in the order of ``forward``.
    repository, name, version, labels, warm_up, **settings
        As in :func:`add_onnx`; the backends are python, onnxruntime and pytorch.

    Raises
    ------
    ConfigError
        An argument is out of range, shapes are missing, or PyTorch is needed and not there.
    InputError, SpecError, OutputError
        As in :func:`add_onnx`.
    """
    serving = _serving(name, version, settings, "a PyTorch file", ("python", "onnxruntime", "pytorch"))
    path = Path(torch_path)
    taken, names = (_exported if path.suffix == ".pt2" else _scripted)(path, serving, inputs, outputs)
    if serving.backend == "pytorch":

        def put(folder: Path) -> None:
            shutil.copyfile(path, folder / "model.pt")

        batch = 1 if serving.max_batch_size else 0
        tensors = [replace(t, dims=t.dims[batch:]) for t in taken], _numbered(path, outputs)
        return write_entry(repository, name, version, serving, tensors, put, labels=labels, warm_up=warm_up)
    with tempfile.TemporaryDirectory(prefix="daskonic-onnx-") as folder:
        onnx_path = Path(folder, f"{path.stem}.onnx")
        convert(path, onnx_path, taken, names)
        if isinstance(outputs, Mapping):
            found = _of_rows(path, serving, *read_tensors(onnx_path, load_graph(onnx_path)))[1]
            _refuse_others(path, [Tensor.parse(n, text) for n, text in outputs.items()], found)
        return add_onnx(
            repository, name, onnx_path, version=version, labels=labels, warm_up=warm_up, **settings
        )


def add_plan(
    repository: str | os.PathLike[str],
    name: str,
    plan_path: str | os.PathLike[str],
    onnx_path: str | os.PathLike[str],
    *,
    version: int = 1,
    labels: Sequence[str] | None = None,
    warm_up: Mapping[str, Sequence[int]] | None = None,
    **settings: Unpack[Settings],
) -> Path:
    """Add an engine of TensorRT, for servers with the kind of GPU and the TensorRT that it was built with.

    Parameters
    ----------
    plan_path : path
        As ``trtexec --saveEngine`` writes it; nothing but TensorRT can read it.
    onnx_path : path
        What it was built from, for the names, types and dimensions of its tensors.
    repository, name, version, labels, warm_up, **settings
        As in :func:`add_onnx`. ``max_batch_size`` must not be above that of the engine's profile.

    Raises
    ------
    ConfigError, InputError, SpecError, OutputError
        As in :func:`add_onnx`.
    """
    settings = Settings(backend="tensorrt", device="gpu") | settings
    serving = _serving(name, version, settings, "a TensorRT plan", ("tensorrt",))
    plan, path = Path(plan_path), Path(onnx_path)
    if not plan.is_file():
        raise InputError(f"{plan} is no file")
    tensors = _of_rows(path, serving, *read_tensors(path, load_graph(path)))

    def put(folder: Path) -> None:
        shutil.copyfile(plan, folder / "model.plan")

    return write_entry(repository, name, version, serving, tensors, put, labels=labels, warm_up=warm_up)


def add_function(
    repository: str | os.PathLike[str],
    name: str,
    function: Callable[..., Any],
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    version: int = 1,
    labels: Sequence[str] | None = None,
    warm_up: Mapping[str, Sequence[int]] | None = None,
    **settings: Unpack[Settings],
) -> Path:
    """Add a Python function of NumPy arrays; its file is copied, and the server needs nothing else of yours.

    Parameters
    ----------
    function : callable
        At the top of a module whose file imports nothing of its own package. It gets all its inputs by name as arrays
        of shape [rows, ...], rows of several requests together, and gives as many rows: an array, a tuple of them, or
        a dictionary by the names of the outputs.
    inputs, outputs : mapping of str to str
        Type and dimensions of a row, such as ``{"points": "FP32[2,-1]"}``, -1 being any. Types may be left out where
        the function's annotations have them, as in ``NDArray[np.float32]``.
    repository, name, version, labels, warm_up, **settings
        As in :func:`add_onnx`; the backend is python, and ``threads`` says nothing: a function has NumPy's.

    Raises
    ------
    ConfigError
        An argument is out of range, or a tensor is not told as above.
    InputError
        The function's file cannot be copied, or is not all that it needs.
    SpecError
        ``inputs`` are not the function's arguments.
    OutputError
        The repository cannot be written.

    Examples
    --------
    >>> add_function("models", "mass", physics.mass, inputs={"p4": "FP32[4]"}, outputs={"m": "FP32[]"})  # doctest: +SKIP
    """
    serving = _serving(name, version, settings, "a Python function", ("python",))
    tensors = read_function(function, inputs, outputs)
    source = source_of(function)

    def put(folder: Path) -> None:
        shutil.copyfile(MODEL, folder / "model.py")
        shutil.copyfile(source, folder / "function.py")

    return write_entry(
        repository, name, version, serving, tensors, put,
        labels=labels, warm_up=warm_up, parameters={"function": function.__name__},
    )  # fmt: skip


def _serving(name: str, version: int, settings: Settings, what: str, backends: tuple[str, ...]) -> Serving:
    """The settings, for one of these backends."""
    check_name(name, version)
    serving = Serving(**settings)
    if serving.backend not in backends:
        raise ConfigError(f"backend is {serving.backend!r}; {what} can be served by {', '.join(backends)}")
    return serving


def _of_rows(
    path: Path, serving: Serving, inputs: list[Tensor], outputs: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a file, without the batch dimension if there is to be one."""
    if not serving.max_batch_size:
        return inputs, outputs
    return rows(path, inputs), rows(path, outputs)


def _exported(
    path: Path, serving: Serving, inputs: Mapping[str, str] | None, outputs: Iterable[str] | None
) -> tuple[list[Tensor], list[str]]:
    """Inputs of a file of ``torch.export``, the batch included, and names of its outputs."""
    taken, given = read_exported(path)
    if inputs is not None:
        raise ConfigError(f"{path} has names, types and dimensions of its inputs; leave them out")
    if serving.backend == "pytorch":
        raise ConfigError(
            f"Triton's PyTorch backend runs TorchScript, not {path} of torch.export; take backend='onnxruntime'"
        )
    names = list(outputs) if outputs is not None else [t.name for t in given]
    if len(names) != len(given):
        raise SpecError(f"{path} has {len(given)} outputs; {len(names)} names are told")
    if serving.max_batch_size:
        rows(path, [*taken, *given])  # refused here, before PyTorch is needed
    return taken, names


def _scripted(
    path: Path, serving: Serving, inputs: Mapping[str, str] | None, outputs: Iterable[str] | None
) -> tuple[list[Tensor], list[str]]:
    """Inputs of a TorchScript file, in its order, the batch included, and names of its outputs."""
    arguments, names = read_arguments(path), list(outputs or ())
    if set(inputs or {}) != set(arguments):
        example = ", ".join(f"'{argument}': 'FP32[...]'" for argument in arguments)
        raise ConfigError(
            f"{path} takes {', '.join(arguments)}, whose shapes TorchScript does not hold; say type and dimensions of a row, "
            f"as in inputs={{{example}}}"
        )
    if not names:
        raise ConfigError(
            f"{path} has no names of its outputs; say them in their order, as in outputs=['scores']"
        )
    tensors = [Tensor.parse(argument, (inputs or {})[argument]) for argument in arguments]
    if serving.max_batch_size:
        tensors = [Tensor(t.name, t.data_type, (-1, *t.dims)) for t in tensors]
    return tensors, names


def _numbered(path: Path, outputs: Mapping[str, str] | Iterable[str] | None) -> list[Tensor]:
    """Outputs as Triton's PyTorch backend finds them, by their number."""
    if not isinstance(outputs, Mapping):
        raise ConfigError(
            f"{path} has no shapes; say those of the outputs as in outputs={{'scores': 'FP32[2]'}}"
        )
    return [Tensor.parse(f"{name}__{i}", text) for i, (name, text) in enumerate(outputs.items())]


def _refuse_others(path: Path, told: list[Tensor], found: list[Tensor]) -> None:
    """SpecError if outputs are not as they were told to be; a dimension that is not found may be any."""
    for want, have in zip(told, found, strict=True):
        same = len(want.dims) == len(have.dims) and all(
            d in (-1, n) for n, d in zip(want.dims, have.dims, strict=True)
        )
        if want.data_type != have.data_type or not same:
            raise SpecError(
                f"{path}: output {want.name!r} is {have.data_type}{list(have.dims)} a row, not {want.data_type}{list(want.dims)}"
            )
