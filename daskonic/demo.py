"""The shipped jets and network, the same scores made in this process, and a picture of how good they are.

The files are ``examples/top_tagging/data`` of the source tree; an installed package has them beside this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from daskonic.errors import InputError, ResponseError
from daskonic.features import Features, split
from daskonic.ragged import unflatten
from daskonic.tagging import Summary, read_file
from daskonic.tagging.columns import RootColumns
from daskonic.tensors import Request
from daskonic.transport.onnx import OnnxTransport

__all__ = [
    "MODEL",
    "Comparison",
    "Shipped",
    "area",
    "compare",
    "draw",
    "roc",
    "score_here",
    "shipped",
    "truth",
]

MODEL = "top_tagger"
LABEL = "FatJet_genLabel"
"""1: a top whose quarks are all in the jet, 0: QCD, -1: another jet of a top event."""

ROWS_PER_BATCH = 256

FEWEST = 5
"""QCD jets above a cut for which a rejection is drawn."""

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Shipped:
    """Files that come with the package.

    Attributes
    ----------
    jets : tuple of Path
        ROOT files in the layout of CMS PFNano.
    model, features : Path
        The network, and weaver's data configuration of it.
    """

    jets: tuple[Path, ...]
    model: Path
    features: Path


def shipped() -> Shipped:
    """The shipped files.

    Raises
    ------
    InputError
        They are not where they should be.
    """
    here = Path(__file__).resolve().parent
    places = (here / "shipped", here.parent / "examples" / "top_tagging" / "data")
    for place in places:
        found = Shipped(tuple(sorted(place.glob("*.root"))), place / "model.onnx", place / "features.yaml")
        if found.jets and found.model.exists() and found.features.exists():
            return found
    raise InputError(
        f"the files of the demo are in none of {', '.join(map(str, places))}; install daskonic again"
    )


def truth(path: Path) -> Any:
    """What the jets of a file really are: 1 top, 0 QCD, -1 neither.

    Returns
    -------
    ak.Array, n_events * var * int32
    """
    columns = RootColumns(str(path))
    return columns.read([LABEL], 0, columns.entries)[LABEL]


def score_here(path: Path, files: Shipped) -> Any:
    """Scores of one file's jets by ONNX Runtime in this process, with no server, pool or Dask.

    Returns
    -------
    ak.Array, n_events * var * n_classes * float32
    """
    features = Features.from_weaver(files.features)
    network = OnnxTransport(files.model)
    spec = network.model_spec(MODEL, "", 0.0)
    (output,) = spec.outputs
    rows = features(read_file(path, features).jets, spec).flatten()
    scores = np.empty((len(rows), *output.shape), output.dtype)
    for batch in split(len(rows), ROWS_PER_BATCH):
        tensors = rows.tensors(rows.features(batch))
        request = Request(MODEL, spec.version, tensors, (output.name,), batch.stop - batch.start)
        scores[batch] = network.decode(network.submit(request, 0.0).result()).outputs[output.name]
    network.close()
    return unflatten(scores, rows.layout)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All jets of the demo, flat.

    Attributes
    ----------
    labels : array, [n_jets]
        See :func:`truth`.
    scores : array, [n_jets]
        Probability of top, from the files that the run wrote.
    largest_difference : float
        Of any score of any class from the one made in this process.
    """

    labels: Floats
    scores: Floats
    largest_difference: float


def compare(files: Shipped, summary: Summary) -> Comparison:
    """Hold the scores that a run wrote against those made here.

    Raises
    ------
    ResponseError
        Other events or jets than in the input.
    """
    written = ak.concatenate([ak.from_parquet(path) for path in summary.paths])
    here = ak.concatenate([score_here(path, files) for path in files.jets])
    counts = ak.num(here)
    largest = 0.0
    for i, name in enumerate(summary.columns):
        if len(written) != len(here) or not ak.all(ak.num(written[name]) == counts):
            raise ResponseError(f"column {name} has other jets than the input files")
        largest = max(largest, float(ak.max(np.abs(written[name] - here[..., i]))))
    labels = ak.flatten(ak.concatenate([truth(path) for path in files.jets]))
    return Comparison(ak.to_numpy(labels), ak.to_numpy(ak.flatten(written[summary.columns[0]])), largest)


def roc(labels: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Efficiencies of both classes at every possible cut.

    Parameters
    ----------
    labels : array, [n_jets]
        1 for signal, 0 for background.
    scores : array, [n_jets]
        Larger for signal.

    Returns
    -------
    background, signal : array
        Part of each class at or above the cut, both rising from 0 to 1; jets of equal score pass together.
    """
    falling = np.argsort(-scores, kind="stable")
    signal, scores = labels[falling] == 1, scores[falling]
    last_of_equals = np.append(scores[1:] != scores[:-1], True)
    passed = np.cumsum(signal)[last_of_equals], np.cumsum(~signal)[last_of_equals]
    above, below = (np.append(0.0, p / p[-1]) for p in passed)
    return below, above


def area(background: Floats, signal: Floats) -> float:
    """Area under a ROC curve by the trapezoidal rule; 0.5 is chance."""
    return float(np.sum(np.diff(background) * (signal[1:] + signal[:-1]) / 2))


def draw(path: Path, result: Comparison) -> float:
    """Draw ROC curve and score distributions, and tell the area under the curve."""
    from matplotlib.figure import Figure

    labels, scores = result.labels, result.scores
    known = labels >= 0
    background, signal = roc(labels[known], scores[known])
    auc = area(background, signal)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    some = background * np.sum(labels == 0) >= FEWEST
    left.plot(
        signal[some],
        1 / background[some],
        color="#c8402f",
        lw=2,
        label=f"ParticleNet on Triton, AUC {auc:.4f}",
    )
    left.plot(signal[some], 1 / signal[some], color="#8a8a8a", ls="--", lw=1, label="chance")
    left.set(xlabel="top efficiency", ylabel="QCD rejection, 1 / efficiency", xlim=(0, 1), yscale="log")
    left.grid(alpha=0.25)
    left.legend(frameon=False, loc=(0.03, 0.3))
    bins = np.linspace(0, 1, 41)
    for label, name, color in (
        (1, "top, contained", "#c8402f"),
        (0, "QCD", "#28639c"),
        (-1, "top, not contained", "#8a8a8a"),
    ):
        of_class = scores[labels == label]
        right.hist(
            of_class,
            bins,
            density=True,
            histtype="step",
            lw=1.8,
            color=color,
            label=f"{name} ({len(of_class)})",
        )
    right.set(xlabel="score of top", ylabel="jets, each class to unit area", xlim=(0, 1), yscale="log")
    right.legend(frameon=False, loc="upper center")
    figure.suptitle(
        f"{len(scores)} jets, Triton through Dask; largest difference from ONNX Runtime in process {result.largest_difference:.1e}",
        fontsize=10,
    )
    figure.savefig(path, dpi=140)
    return auc
