"""Physics objects into the inputs of a network."""

from __future__ import annotations

from daskonic.features.buckets import Batch, Shape, split
from daskonic.features.features import Features
from daskonic.features.rows import Inputs, Pad, Rows

__all__ = ["Batch", "Features", "Inputs", "Pad", "Rows", "Shape", "split"]
