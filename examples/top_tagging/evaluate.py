"""Score the shipped files with the shipped model in ONNX Runtime: ROC curve, AUC, background rejection.

Wants ``pip install onnxruntime uproot awkward pyyaml matplotlib``::

    python evaluate.py --output data/roc.png
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import awkward as ak
import numpy as np
from inputs import build_inputs, load_config, read_jets

log = logging.getLogger("top_tagging.evaluate")

DATA = Path(__file__).parent / "data"
BATCH = 256
BOOTSTRAPS = 500
WORKING_POINTS = (0.5, 0.3)
COLORS = {"top": "#c8402f", "QCD": "#28639c", "partial": "#8a8a8a"}


def score_jets(model: Path, features: Path, jets: ak.Array, fixed_length: bool = False) -> np.ndarray:
    """Return the model's probability of top for every jet.

    Parameters
    ----------
    model, features : Path
    jets : ak.Array, n_jets
        From `inputs.read_jets`.
    fixed_length : bool
        Pad every batch to the length of the YAML, and not to its own longest jet.

    Returns
    -------
    numpy.ndarray, float32, n_jets
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    config = load_config(features)
    longest = next(iter(config["inputs"].values()))["length"]
    order = np.argsort(np.asarray(ak.num(jets.part_px)), kind="stable")
    score = np.zeros(len(jets), np.float32)
    for start in range(0, len(jets), BATCH):
        rows = order[start : start + BATCH]
        batch = jets[rows]
        own = max(1, min(longest, int(ak.max(ak.num(batch.part_px)))))
        score[rows] = session.run(["softmax"], build_inputs(config, batch, longest if fixed_length else own))[
            0
        ][:, 0]
    return score


def efficiencies(top: np.ndarray, qcd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the efficiency for QCD and for top at every possible cut, both rising from 0 to 1."""
    score = np.concatenate([top, qcd])
    is_top = np.arange(len(score)) < len(top)
    order = np.argsort(-score, kind="stable")
    return (
        np.concatenate([[0.0], np.cumsum(~is_top[order]) / len(qcd)]),
        np.concatenate([[0.0], np.cumsum(is_top[order]) / len(top)]),
    )


def figures(top: np.ndarray, qcd: np.ndarray) -> np.ndarray:
    """Return the AUC and 1 / (QCD efficiency) at each working point."""
    false, true = efficiencies(top, qcd)
    rejection = [
        1 / max(np.mean(qcd >= np.quantile(top, 1 - point)), 1 / len(qcd)) for point in WORKING_POINTS
    ]
    return np.array([np.trapezoid(true, false), *rejection])


def bootstrap(top: np.ndarray, qcd: np.ndarray) -> np.ndarray:
    """Return the 16 and 84 % quantiles of `figures` over samples drawn with replacement, 2 * n."""
    rng = np.random.default_rng(1)
    drawn = [figures(rng.choice(top, len(top)), rng.choice(qcd, len(qcd))) for _ in range(BOOTSTRAPS)]
    return np.quantile(drawn, [0.16, 0.84], axis=0)


def draw(score: np.ndarray, label: np.ndarray, path: Path) -> None:
    """Draw the ROC curve and the distributions of the score."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    top, qcd = score[label == 1], score[label == 0]
    false, true = efficiencies(top, qcd)
    auc = np.trapezoid(true, false)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    some = false * len(qcd) >= 10  # with fewer jets above the cut the curve is noise
    left.plot(
        true[some], 1 / false[some], color=COLORS["top"], lw=2, label=f"small ParticleNet, AUC {auc:.4f}"
    )
    chance = np.linspace(0.01, 1, 200)
    left.plot(chance, 1 / chance, color="0.6", lw=1, ls="--", label="chance")
    left.set(
        xlabel="top efficiency",
        ylabel="QCD rejection, 1 / efficiency",
        yscale="log",
        xlim=(0, 1),
        ylim=(1, 2e3),
    )
    left.set_title(f"{len(top)} top and {len(qcd)} QCD jets, none used in training", fontsize=10)
    left.grid(which="both", alpha=0.2)
    left.legend(frameon=False)
    bins = np.linspace(0, 1, 41)
    groups = {"top": (1, "top, contained"), "QCD": (0, "QCD"), "partial": (-1, "top, not contained")}
    for name, (value, text) in groups.items():
        if np.any(label == value):
            right.hist(
                score[label == value],
                bins,
                density=True,
                histtype="step",
                lw=1.8,
                color=COLORS[name],
                label=text,
            )
    right.set(
        xlabel="score (probability of top)", ylabel="jets, each class to unit area", yscale="log", xlim=(0, 1)
    )
    right.set_title(r"anti-$k_t$ $R=0.8$, $p_T>400$ GeV, $|\eta|<2.4$", fontsize=10)
    right.grid(alpha=0.2)
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read the command line, score, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="*", default=sorted(DATA.glob("*.root")))
    parser.add_argument("--model", type=Path, default=DATA / "model.onnx")
    parser.add_argument("--features", type=Path, default=DATA / "features.yaml")
    parser.add_argument("--output", type=Path, help="draw to this PNG")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    jets = read_jets(args.files)
    label = np.asarray(jets.gen_label)
    score = score_jets(args.model, args.features, jets)
    padded = score_jets(args.model, args.features, jets, fixed_length=True)
    log.info(
        "%d jets: %d top, %d QCD, %d tops that are not contained",
        len(label),
        *(int((label == value).sum()) for value in (1, 0, -1)),
    )
    log.info("largest difference between own and full padding: %.1e", np.abs(score - padded).max())
    top, qcd = score[label == 1], score[label == 0]
    names = ("AUC", *(f"rejection at {point:.0%} top efficiency" for point in WORKING_POINTS))
    for name, value, low, high in zip(names, figures(top, qcd), *bootstrap(top, qcd), strict=True):
        log.info("%s: %.5g (68 %% interval %.5g to %.5g)", name, value, low, high)
    if args.output:
        draw(score, label, args.output)


if __name__ == "__main__":
    main()
