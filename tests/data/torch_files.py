"""Writes the PyTorch files beside it, small and without trained weights, for tests that have no PyTorch.

Run in this folder by ``python torch_files.py``, with PyTorch 2.13: ``scripted.pt`` and ``traced.pt`` of TorchScript,
``exported.pt2`` of ``torch.export``, ``numbers.pt`` which takes a number, and ``answers.npz``, inputs and outputs of all.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np
import torch


class Net(torch.nn.Module):
    """Means of points through one layer."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]]))

    def forward(self, points: torch.Tensor, mask: torch.Tensor):
        x = (points.mean(dim=1) * mask) @ self.weight
        return torch.softmax(x, dim=1), x.sum(dim=1)


class Scaled(torch.nn.Module):
    """Takes what no server can pass."""

    def forward(self, x: torch.Tensor, factor: float):
        return x * factor


def save(module, path):
    """TorchScript without its debugging tables, which have the paths of this machine."""
    whole = io.BytesIO()
    torch.jit.save(module, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            if not info.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(info.filename), old.read(info))
    torch.jit.load(path)


def main():
    net = Net().eval()
    save(torch.jit.script(net), "scripted.pt")
    save(torch.jit.script(Scaled()), "numbers.pt")
    example = (torch.ones(2, 5, 3), torch.ones(2, 1))
    save(torch.jit.trace(net, example), "traced.pt")
    batch, length = torch.export.Dim("batch", max=4096), torch.export.Dim("length")
    shapes = {"points": {0: batch, 1: length}, "mask": {0: batch}}
    program = torch.export.export(net, example, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has the paths of this machine
    torch.export.save(program, "exported.pt2")
    points, mask = torch.rand(7, 4, 3), torch.ones(7, 1)
    scores, total = (x.detach() for x in net(points, mask))
    np.savez("answers.npz", points=points, mask=mask, scores=scores, total=total)


if __name__ == "__main__":
    main()
