"""ResNet-50 as a top tagger on jet images: the server makes features, a small classifier is the client's.

The network is torchvision's ResNet-50 without its last layer [1]_; the way of the data, 224 x 224 x 3 to 2,048
features and then a classifier on the CPU, is that of the first study of SONIC [2]_.

References
----------
.. [1] K. He et al., Deep residual learning for image recognition, arXiv:1512.03385, table 1.
.. [2] J. Duarte et al., FPGA-accelerated machine learning inference as a service for particle physics
   computing, arXiv:1904.08986.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import awkward as ak
import numpy as np
import onnx
from spox import Var

import daskonic as dk
from daskonic.features import jet_images
from daskonic.ragged import flatten, unflatten
from models import events
from models.network import Network, number, op
from models.served import Served

STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
"""Blocks, width of their 3 x 3 convolution, and stride of the first."""


def network() -> onnx.ModelProto:
    """224 x 224 x 3 to 2,048."""
    net = Network(seed=3)
    image = net.input("image", ["batch", 224, 224, 3])
    x = op.transpose(image, perm=[0, 3, 1, 2])
    x = net.batch_norm(net.convolution(x, 64, 7, stride=2, padding=3, bias=False), "relu")  # 112 x 112
    x = op.max_pool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])[0]  # 56 x 56
    for blocks, width, stride in STAGES:
        x = bottleneck(net, x, width, stride)
        for _ in range(blocks - 1):
            x = bottleneck(net, x, width, 1)
    net.output("features", op.flatten(op.global_average_pool(x)))
    return net.model()


def bottleneck(net: Network, x: Var, width: int, stride: int) -> Var:
    """1 x 1, 3 x 3 and 1 x 1, around which goes a shortcut."""
    convolution = partial(net.convolution, bias=False)
    y = net.batch_norm(convolution(x, width, 1), "relu")
    y = net.batch_norm(convolution(y, width, 3, stride=stride, padding=1), "relu")
    y = net.batch_norm(convolution(y, 4 * width, 1))
    if x.unwrap_tensor().shape[1] != 4 * width:
        x = net.batch_norm(convolution(x, 4 * width, 1, stride=stride))
    # The average keeps random weights from growing through sixteen blocks.
    return op.relu(op.mul(op.add(x, y), number(0.7)))


def inputs(jets: Any) -> dict[str, Any]:
    """Images of charged, neutral and all transverse momentum, as bright as photographs."""
    parts = jets.constituents
    share = 255 * parts.pt / jets.pt
    channels = [share * (parts.charge != 0), share * (parts.charge == 0), share]
    return {"image": jet_images(parts.deta, parts.dphi, channels, pixels=224, extent=0.8)}


def classify(features: Any) -> Any:
    """The classifier of the client, 2,048 to 1,024 to two classes, with random weights: the chance to be a top."""
    rng = np.random.default_rng(4)
    first, second = rng.normal(0, 0.03, (2048, 1024)), rng.normal(0, 0.05, (1024, 2))
    rows, layout = flatten(features, 2)
    hidden = np.maximum(ak.to_numpy(rows) @ first, 0)
    logits = hidden @ second
    return unflatten(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), layout)


RESNET50 = Served(
    name="resnet50",
    network=network,
    features=dk.Features(inputs),
    sample=partial(events.jets, constituents=40),
    row="jet",
    batch=32,
    parameters=23_508_032,
    source="arXiv:1512.03385, 1904.08986",
)
