"""Train the two networks of ``ttbar.py`` on even and odd events, and write them as ONNX.

    pip install scikit-learn onnx coffea
    python train.py data/ttbar_*.root --output data

Each half of the shipped events trains one network, which is then used for the other half; that is why there are two.
scikit-learn makes the weights, from a fixed seed; standardisation is part of the network.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import awkward as ak
import numpy as np
import onnx
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
from onnx import TensorProto, helper, numpy_helper
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from ttbar import candidates, features, select

log = logging.getLogger("analysis.train")

LAYERS = (48, 32)
N_WRONG = 8  # wrong assignments of an event that are kept for the training


def load(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs, whether all four jets are right, and event numbers, of every assignment."""
    parts = []
    for path in paths:
        events = NanoEventsFactory.from_root(
            {path: "Events"}, schemaclass=NanoAODSchema, mode="eager"
        ).events()
        chosen = select(events, 1.0)["4j2b"]
        c = candidates(chosen)
        right = (c.w1.genAssignment == 24) & (c.w2.genAssignment == 24)
        right = right & (c.b_had.genAssignment == 6) & (c.b_lep.genAssignment == -6)
        number = ak.broadcast_arrays(chosen.number, right)[0]
        columns = np.stack([ak.to_numpy(ak.flatten(f)) for f in features(c)], axis=1)
        parts.append([columns.astype(np.float32), *(ak.to_numpy(ak.flatten(x)) for x in (right, number))])
    x, right, number = (np.concatenate(column) for column in zip(*parts, strict=True))
    return x, right, number


def fit(x: np.ndarray, right: np.ndarray, seed: int) -> tuple[StandardScaler, MLPClassifier]:
    """Train one network."""
    rng = np.random.default_rng(seed)
    keep = right | (rng.random(len(right)) < N_WRONG * right.sum() / (~right).sum())
    scaler = StandardScaler().fit(x[keep])
    network = MLPClassifier(LAYERS, batch_size=512, max_iter=25, early_stopping=True, random_state=seed)
    return scaler, network.fit(scaler.transform(x[keep]), right[keep])


def to_onnx(scaler: StandardScaler, network: MLPClassifier) -> onnx.ModelProto:
    """Return features float32[N, 16] -> score float32[N, 1]."""
    weights = [w.astype(np.float64) for w in network.coefs_]
    biases = [b.astype(np.float64) for b in network.intercepts_]
    biases[0] = biases[0] - (scaler.mean_ / scaler.scale_) @ weights[0]
    weights[0] = weights[0] / scaler.scale_[:, None]
    nodes, constants, value = [], [], "features"
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        for name, array in (("w", weight), ("b", bias)):
            constants.append(numpy_helper.from_array(array.astype(np.float32), f"{name}{i}"))
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"sum{i}"]))
        last = i == len(weights) - 1
        value = "score" if last else f"hidden{i}"
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"sum{i}"], [value]))
    graph = helper.make_graph(
        nodes,
        "jet_assignment",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", weights[0].shape[0]])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def main() -> None:
    """Read the command line and write ``trained_on_even.onnx`` and ``trained_on_odd.onnx``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    x, right, number = load(args.files)
    for parity, name in enumerate(("even", "odd")):
        seen = number % 2 == parity
        scaler, network = fit(x[seen], right[seen], seed=parity + 1)
        path = args.output / f"trained_on_{name}.onnx"
        onnx.save(to_onnx(scaler, network), path)
        auc = [
            roc_auc_score(right[which], network.predict_proba(scaler.transform(x[which]))[:, 1])
            for which in (~seen, seen)
        ]
        log.info(
            "%s: %d assignments (%d right), AUC of the other half %.4f, of its own %.4f",
            path, seen.sum(), right[seen].sum(), *auc,
        )  # fmt: skip


if __name__ == "__main__":
    main()
