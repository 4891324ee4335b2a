"""Smaller and faster variants of an ONNX model, kept where they give the same numbers."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskonic.errors import ConfigError, InputError, OutputError
from daskonic.tensors import Array
from daskonic.tolerance import apart
from daskonic.transport.onnx import import_onnxruntime

__all__ = ["KINDS", "Variant", "make_variants"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of a model.

    Attributes
    ----------
    kind : str
        Of :data:`KINDS`.
    path : Path or None
        Its file; None where it is not kept.
    nbytes : int
        Of the file.
    difference : float or None
        Largest difference of an output from the original's, absolute up to 1, relative above; None where there is no variant that runs.
    speed : float or None
        Rate over the original's, on this machine's CPU with one thread, if it is kept; a GPU has others.
    why_not : str
        Why it is not kept.
    """

    kind: str
    path: Path | None
    nbytes: int = 0
    difference: float | None = None
    speed: float | None = None
    why_not: str = ""


def make_variants(
    onnx_path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    inputs: Mapping[str, Array],
    *,
    tolerance: float,
    kinds: Sequence[str] | None = None,
    rounds: int = 5,
) -> list[Variant]:
    """Make variants of a model, and compare each with the original.

    Parameters
    ----------
    onnx_path : path
    folder : path
        Where ``NAME.KIND.onnx`` are written.
    inputs : mapping of str to array, [rows, ...]
        Real ones, by the names of the model: on random numbers neither differences nor rates mean much.
    tolerance : float
        Largest difference of a variant that is kept: absolute up to 1, relative above.
    kinds : sequence of str, optional
        Default is all of :data:`KINDS`.
    rounds : int
        Rates are medians of that many, original and variant in turns.

    Returns
    -------
    list of Variant
        One of each kind, also of those that are not kept.

    Raises
    ------
    ConfigError
        An unknown kind.
    InputError
        The model does not run on these inputs.
    OutputError
        The folder cannot be written.
    """
    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise ConfigError(f"no variant {', '.join(unknown)}; there are {', '.join(KINDS)}")
    path, folder = Path(onnx_path), Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"variants cannot be written to {folder}: {error}") from error
    try:
        original = _Run(path, inputs)
        expected = original()
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise InputError(f"{path} does not run on these inputs: {str(error).splitlines()[0]}") from error
    made = []
    for kind in kinds or KINDS:
        target = folder / f"{path.stem}.{kind}.onnx"
        try:
            KINDS[kind](path, target)
            made.append(_compare(kind, target, inputs, original, expected, tolerance, rounds))
        except Exception as error:  # noqa: BLE001  a converter that does not know an operator, in its own words
            made.append(Variant(kind, None, why_not=str(error).splitlines()[0]))
        if made[-1].path is None:
            logger.info("no variant %s of %s: %s", kind, path, made[-1].why_not)
            target.unlink(missing_ok=True)
    return made


def _compare(
    kind: str,
    target: Path,
    inputs: Mapping[str, Array],
    original: _Run,
    expected: list[Array],
    tolerance: float,
    rounds: int,
) -> Variant:
    """Difference and speed of a variant."""
    variant = _Run(target, inputs)
    outputs = variant()
    difference = apart(*({str(i): array for i, array in enumerate(arrays)} for arrays in (expected, outputs)))
    nbytes = target.stat().st_size
    if difference > tolerance:
        why_not = f"outputs differ by up to {difference:.2g}, more than the tolerance of {tolerance:g}"
        return Variant(kind, None, nbytes, difference, why_not=why_not)
    seconds = [(original.seconds(), variant.seconds()) for _ in range(rounds)]
    return Variant(kind, target, nbytes, difference, statistics.median(a / b for a, b in seconds))


class _Run:
    """A session and its inputs."""

    def __init__(self, path: Path, inputs: Mapping[str, Array]) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = dict(inputs)

    def __call__(self) -> list[Array]:
        """All outputs."""
        outputs: list[Array] = self._session.run(None, self._inputs)
        return outputs

    def seconds(self) -> float:
        """Wall time of one run."""
        begin = time.perf_counter()
        self()
        return time.perf_counter() - begin


def _optimised(path: Path, target: Path) -> None:
    """The graph as ONNX Runtime rewrites it at each start, without what depends on the processor."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _fp16(path: Path, target: Path) -> None:
    """Weights and arithmetic in half precision; inputs and outputs as they were."""
    import_onnxruntime()
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(path)), keep_io_types=True), str(target))


def _int8(path: Path, target: Path) -> None:
    """Weights in eight bits, activations as they come."""
    import_onnxruntime()
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(path), str(target))


KINDS: dict[str, Callable[[Path, Path], Any]] = {"optimised": _optimised, "fp16": _fp16, "int8": _int8}
"""Kinds of variants, by the end of their names."""
