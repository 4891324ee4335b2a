"""Train a small ParticleNet on files of ``generate.py`` and export it to ONNX.

The only place that wants PyTorch: ``pip install torch==2.13.0 onnx onnxruntime uproot awkward pyyaml``::

    python train.py SAMPLE/*.root --validation SAMPLE/ttbar_20.root SAMPLE/qcd_112.root --output data/model.onnx

Two departures from the published network make its scores independent of padding and continuous in the
inputs. Neighbours are looked for in (deta, dphi) in both blocks, and they enter with a weight that falls
to zero at the distance of the k-th, so that which of two equally near particles is taken does not matter.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import awkward as ak
import numpy as np
import torch
from inputs import build_inputs, load_config, read_jets
from torch import Tensor, nn

log = logging.getLogger("top_tagging.train")

NEIGHBOURS = 10
CHANNELS = (32, 64)
FAR = 1.0e4  # squared distance of padding; larger than any in a jet, small enough for float32
SMALLEST_SQUARED_RADIUS = 1.0e-6  # keeps coincident particles from dividing by zero


def neighbourhood(points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the k nearest particles, and their weights.

    Differences are taken directly and not by a matrix product, whose rounding varies with its shape.

    Parameters
    ----------
    points : Tensor, float32, N * 2 * P
    mask : Tensor, float32, N * 1 * P

    Returns
    -------
    index : Tensor, int64, N * P * k
        Padding where a jet has less than k particles; the weight is zero there.
    weight : Tensor, float32, N * P * k
        1 at distance zero (a particle is its own neighbour), 0 at the k-th; sums to 1.
    """
    squared = (points.unsqueeze(3) - points.unsqueeze(2)).square().sum(dim=1) + FAR * (1 - mask)
    # k far columns more, so that k exist whatever the padded length is
    columns = torch.cat([squared, torch.full_like(squared[:, :, :1], FAR).expand(-1, -1, NEIGHBOURS)], dim=2)
    nearest, index = torch.topk(columns, NEIGHBOURS, dim=2, largest=False, sorted=True)
    reach = nearest[:, :, -1:].clamp(min=SMALLEST_SQUARED_RADIUS, max=1.0)
    weight = (1 - nearest / reach).clamp(min=0)
    last = points.new_ones(1, dtype=torch.int64) * points.size(2) - 1
    return torch.minimum(index, last), weight / weight.sum(dim=2, keepdim=True).clamp(min=1.0e-6)


class EdgeConvolution(nn.Module):
    """One EdgeConv block: messages from neighbours, averaged, plus a shortcut."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        # A linear map of (x_i, x_j - x_i) is a sum of maps of x_i and of x_j: done per particle, not per edge.
        self.own = nn.Linear(n_in, n_out)
        self.other = nn.Linear(n_in, n_out, bias=False)
        self.edge = nn.Sequential(nn.ReLU(), nn.Linear(n_out, n_out), nn.ReLU())
        self.shortcut = nn.Linear(n_in, n_out)
        self.norm = nn.LayerNorm(n_out)

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Return N * P * n_out from N * P * n_in; ``index`` is into the N P particles of the batch."""
        n, p, _ = x.shape
        sent = self.other(x)
        sent = sent.reshape(n * p, -1).index_select(0, index).reshape(n, p, NEIGHBOURS, -1)
        message = self.edge(self.own(x).unsqueeze(2) + sent)
        mean = (message * weight.unsqueeze(3)).sum(dim=2)
        return torch.relu(self.norm(mean + self.shortcut(x)))


class SmallParticleNet(nn.Module):
    """Two EdgeConv blocks, pooling, two dense layers; probabilities out in evaluation mode, logits in training."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            EdgeConvolution(a, b) for a, b in zip((n_features, *CHANNELS), CHANNELS, strict=False)
        )
        self.head = nn.Sequential(
            nn.Linear(2 * sum(CHANNELS), 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2)
        )

    def forward(self, points: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Return N * 2 from N * 2 * P, N * F * P and N * 1 * P."""
        index, weight = neighbourhood(points, mask)
        first = torch.arange(points.size(0), device=points.device).reshape(-1, 1, 1) * points.size(2)
        flat = (index + first).reshape(-1)
        there = mask.transpose(1, 2)
        x = features.transpose(1, 2) * there
        pooled = []
        for block in self.blocks:
            x = block(x, flat, weight) * there
            pooled += [x.sum(dim=1) / there.sum(dim=1).clamp(min=1), x.amax(dim=1)]
        logits: Tensor = self.head(torch.cat(pooled, dim=1))
        return logits if self.training else logits.softmax(dim=1)


class Sample:
    """Jets in memory, and batches of them of similar length."""

    def __init__(self, paths: list[Path], config: dict) -> None:
        jets = read_jets(paths)
        jets = jets[jets.gen_label >= 0]  # tops that are not contained are neither class
        self.inputs = build_inputs(config, jets)
        self.counts = np.minimum(np.asarray(ak.num(jets.part_px)), self.inputs["pf_mask"].shape[2])
        self.target = np.where(np.asarray(jets.gen_label) == 1, 0, 1)  # order of the YAML's labels: top, QCD

    def batches(self, size: int, rng: np.random.Generator | None) -> list[np.ndarray]:
        """Return the rows of each batch; random, but with jets of similar length together."""
        key = self.counts + (rng.uniform(-4, 4, len(self.counts)) if rng else 0.0)
        parts = np.array_split(np.argsort(key, kind="stable"), max(1, len(key) // size))
        return [parts[i] for i in rng.permutation(len(parts))] if rng else parts

    def tensors(self, rows: np.ndarray) -> list[Tensor]:
        """Return points, features and mask of the rows, padded to the longest."""
        length = max(1, int(self.counts[rows].max()))
        return [
            torch.from_numpy(self.inputs[key][rows, :, :length])
            for key in ("pf_points", "pf_features", "pf_mask")
        ]


def scores(net: nn.Module, sample: Sample) -> np.ndarray:
    """Return the probability of top for every jet."""
    net.eval()
    found = np.zeros(len(sample.target), np.float32)
    with torch.no_grad():
        for rows in sample.batches(512, None):
            found[rows] = net(*sample.tensors(rows))[:, 0].numpy()
    return found


def area_under_curve(score: np.ndarray, is_top: np.ndarray) -> float:
    """Return the probability that a top scores higher than a QCD jet."""
    rank = np.empty(len(score))
    rank[np.argsort(score)] = np.arange(1, len(score) + 1)
    n = int(is_top.sum())
    return float((rank[is_top].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def train(net: nn.Module, sample: Sample, validation: Sample, epochs: int, seed: int, output: Path) -> None:
    """Fit ``net`` with AdamW and a one-cycle learning rate; keep the epoch that is best on ``validation``."""
    rng = np.random.default_rng(seed)
    steps = len(sample.batches(256, None)) * epochs
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    target = torch.from_numpy(sample.target)
    best = 0.0
    for epoch in range(epochs):
        start, losses = time.perf_counter(), []
        net.train()
        for rows in sample.batches(256, rng):
            loss = nn.functional.cross_entropy(net(*sample.tensors(rows)), target[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        auc = area_under_curve(scores(net, validation), validation.target == 0)
        log.info(
            "epoch %d: loss %.4f, validation AUC %.5f, %.0f s",
            epoch + 1,
            np.mean(losses),
            auc,
            time.perf_counter() - start,
        )
        if auc > best:
            best = auc
            export(net, sample, output)
    log.info("best validation AUC %.5f", best)


def export(net: nn.Module, sample: Sample, path: Path) -> None:
    """Write the network as ONNX with free batch size and free padded length."""
    net.eval()
    axes = {name: {0: "N", 2: "P"} for name in ("pf_points", "pf_features", "pf_mask")}
    torch.onnx.export(
        net,
        tuple(sample.tensors(np.arange(4))),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=list(axes),
        output_names=["softmax"],
        dynamic_axes=axes | {"softmax": {0: "N"}},
    )


def main() -> None:
    """Read the command line, train, export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument(
        "--validation", type=Path, nargs="+", required=True, help="left out of FILES if there"
    )
    parser.add_argument("--features", type=Path, default=Path(__file__).parent / "data" / "features.yaml")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = load_config(args.features)
    start = time.perf_counter()
    sample = Sample(sorted(set(args.files) - set(args.validation)), config)
    validation = Sample(args.validation, config)
    net = SmallParticleNet(sample.inputs["pf_features"].shape[1])
    log.info(
        "%d jets to train on, %d tops; %d to validate on; %d parameters; read in %.0f s",
        len(sample.target),
        int((sample.target == 0).sum()),
        len(validation.target),
        sum(p.numel() for p in net.parameters()),
        time.perf_counter() - start,
    )
    train(net, sample, validation, args.epochs, args.seed, args.output)
    log.info("all in %.0f s", time.perf_counter() - start)


if __name__ == "__main__":
    main()
