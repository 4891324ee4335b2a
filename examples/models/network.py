"""Networks written down layer by layer, with random weights, and exported to ONNX.

A thin cover of spox [1]_, which makes one ONNX node of each call and infers its type and shape: what is added
are the weights of a layer and their number. Images and sequences have their channels first, as in ONNX.

References
----------
.. [1] https://spox.readthedocs.io
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import spox
import spox.opset.ai.onnx.v20 as op
from numpy.typing import DTypeLike
from spox import Var
from spox._future import initializer

__all__ = ["Network", "channels", "number", "op"]


def number(value: float) -> Var:
    """A constant of the network."""
    return op.const(np.float32(value))


class Network:
    """A network that is being written down.

    Parameters
    ----------
    seed : int
        Of the weights: the same seed and layers give the same file.

    Attributes
    ----------
    parameters : int
        Trained weights so far. The averages of a batch norm are not trained and do not count.
    """

    def __init__(self, seed: int) -> None:
        self.parameters = 0
        self._random = np.random.default_rng(seed)
        self._inputs: dict[str, Var] = {}
        self._outputs: dict[str, Var] = {}

    def input(self, name: str, dims: Sequence[int | str], dtype: DTypeLike = np.float32) -> Var:
        """An input; a dimension with a name is open."""
        self._inputs[name] = spox.argument(spox.Tensor(dtype, tuple(dims)))
        return self._inputs[name]

    def output(self, name: str, x: Var) -> None:
        """Give a tensor a name for the outside."""
        self._outputs[name] = x

    def model(self) -> onnx.ModelProto:
        """The ONNX model, its number of parameters in its metadata."""
        model = spox.build(self._inputs, self._outputs)
        onnx.helper.set_model_props(model, {"parameters": str(self.parameters)})
        return model

    def weights(self, *shape: int, spread: float, around: float = 0.0) -> Var:
        """Trained weights, normally distributed."""
        self.parameters += int(np.prod(shape))
        values = self._random.standard_normal(shape, np.float32)
        return initializer(values * np.float32(spread) + np.float32(around))

    def dense(self, x: Var, width: int, activation: str = "", *, bias: bool = True) -> Var:
        """A fully connected layer over the last dimension."""
        n = channels(x, -1)
        x = op.matmul(x, self.weights(n, width, spread=np.sqrt(2 / n)))
        if bias:
            x = op.add(x, self.weights(width, spread=0.1))
        return self.activate(x, activation, axis=-1)

    def convolution(
        self, x: Var, width: int, kernel: int | Sequence[int], activation: str = "", *,
        stride: int = 1, padding: int = 0, bias: bool = True, transposed: bool = False,
    ) -> Var:  # fmt: skip
        """A convolution, or its transpose, over all dimensions behind the channels."""
        n, n_axes = channels(x, 1), len(x.unwrap_tensor().shape) - 2
        size = [kernel] * n_axes if isinstance(kernel, int) else list(kernel)
        shape = (n, width) if transposed else (width, n)
        kernels = self.weights(*shape, *size, spread=np.sqrt(2 / (n * np.prod(size))))
        biases = self.weights(width, spread=0.1) if bias else None
        convolve = op.conv_transpose if transposed else op.conv
        x = convolve(x, kernels, biases, strides=[stride] * n_axes, pads=[padding] * 2 * n_axes)
        return self.activate(x, activation)

    def batch_norm(self, x: Var, activation: str = "") -> Var:
        """Batch norm of the channels; after the training it is a scale and a shift, as exports have it."""
        shape = channels(x, 1), *[1] * (len(x.unwrap_tensor().shape) - 2)
        scale, shift = self.weights(*shape, spread=0.1, around=1.0), self.weights(*shape, spread=0.1)
        return self.activate(op.add(op.mul(x, scale), shift), activation)

    def layer_norm(self, x: Var) -> Var:
        """Layer norm of the last dimension."""
        n = channels(x, -1)
        scale, shift = self.weights(n, spread=0.1, around=1.0), self.weights(n, spread=0.1)
        return op.layer_normalization(x, scale, shift)[0]

    def embedding(self, index: Var, entries: int, width: int) -> Var:
        """A row of a table for each number."""
        return op.gather(self.weights(entries, width, spread=1.0), index)

    def activate(self, x: Var, activation: str, axis: int = 1) -> Var:
        """An activation by its name in ONNX; a PReLU has one trained slope for each channel."""
        if activation == "prelu":
            n = channels(x, axis)
            rest = len(x.unwrap_tensor().shape) - 2 if axis == 1 else 0
            return op.prelu(x, self.weights(n, *[1] * rest, spread=0.05, around=0.25))
        if activation == "softmax":
            return op.softmax(x, axis=axis)
        return getattr(op, activation)(x) if activation else x


def channels(x: Var, axis: int) -> int:
    """Length of a dimension, which must not be open."""
    length = x.unwrap_tensor().shape[axis]
    if not isinstance(length, int):
        raise ValueError(  # noqa: TRY004  the length is wrong, not a type of Python
            f"dimension {axis} of {x} is open; a layer needs to know its channels"
        )
    return length
