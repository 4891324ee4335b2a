"""Physics objects into the inputs of a network."""

from __future__ import annotations

from daskonic.features.buckets import Batch, Shape, split
from daskonic.features.features import Features
from daskonic.features.graph import Graph
from daskonic.features.graph_rows import GraphRows
from daskonic.features.plan import Pad
from daskonic.features.rows import Inputs, Rows

__all__ = ["Batch", "Features", "Graph", "GraphRows", "Inputs", "Pad", "Rows", "Shape", "split"]
