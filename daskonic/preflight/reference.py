"""The same inputs through ONNX Runtime in this process: what the model itself says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from daskonic.errors import ConfigError, DaskonicError
from daskonic.preflight.report import CheckReport
from daskonic.preflight.scores import Scored, tensors_of
from daskonic.tensors import ModelSpec, Request, TensorSpec
from daskonic.tolerance import apart
from daskonic.transport.onnx import OnnxTransport

__all__ = ["compare_in_process", "onnx_file"]


def onnx_file(
    reference: str | os.PathLike[str] | None, repository: str, name: str, version: str
) -> Path | None:
    """The model's file: the one given, or the one in the repository given or named for the fallback; None if neither is.

    Raises
    ------
    ConfigError
        A file or repository is given, and the model is not there.
    """
    if reference is None and not repository:
        return None
    path = Path(reference if reference is not None else repository).expanduser()
    if not path.is_dir():
        found = [path]
    else:
        found = sorted(
            (path / name).glob(f"{version or '*'}/model.onnx"), key=lambda p: p.parent.name.zfill(9)
        )
    if found and found[-1].is_file():
        return found[-1]
    if reference is None:
        return None  # the fallback is no concern of this model
    raise ConfigError(
        f"reference {path}: no ONNX file of model {name!r}; name a file, or a folder with NAME/VERSION/model.onnx"
    )


def compare_in_process(
    path: Path,
    scored: Scored | None,
    outputs: tuple[TensorSpec, ...],
    look_at: Callable[[ModelSpec], object],
    tolerance: float,
    report: CheckReport,
) -> None:
    """Hold the server's scores against those of the file.

    Parameters
    ----------
    scored : Scored or None
        None if no server could score the rows: then only the inputs are looked at.
    look_at : callable
        Reports where the features do not fit the file.
    """
    transport = OnnxTransport(path)
    try:
        look_at(transport.model_spec(report.model, report.version, 0.0))
        if scored is None:
            return
        names, parts = tuple(t.name for t in outputs), []
        for batch in scored.batches:
            request = Request(
                report.model, report.version, tensors_of(scored.rows, batch), names, batch.n_rows
            )
            parts.append(transport.decode(transport.submit(request, 0.0).result()).outputs)
    except DaskonicError as error:
        report.add("reference", f"{error}; is {path} the file that is served?")
        return
    finally:
        transport.close()
    own = {name: np.concatenate([part[name] for part in parts]) for name in names}
    difference = report.differences["server and in process"] = apart(own, scored.scores)
    if difference > tolerance:
        report.add(
            "reference",
            f"the server's scores differ by up to {difference:.2g} from those of {path}: another training or version is served, or in "
            "reduced precision (FP16, TF32, TensorRT); compare the files, or raise the tolerance",
        )
