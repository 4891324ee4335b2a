"""Physics objects into the inputs of a network."""

from __future__ import annotations

from daskonic.features.buckets import Batch, Shape, split
from daskonic.features.features import Features
from daskonic.features.graph import Graph
from daskonic.features.graph_rows import GraphRows
from daskonic.features.grids import cell_grid
from daskonic.features.images import hit_patches, jet_images
from daskonic.features.neighbours import nearest_neighbours
from daskonic.features.parts import Part, Whole
from daskonic.features.plan import Pad
from daskonic.features.rows import Inputs, Rows
from daskonic.features.variations import Variations

__all__ = [
    "Batch",
    "Features",
    "Graph",
    "GraphRows",
    "Inputs",
    "Pad",
    "Part",
    "Rows",
    "Shape",
    "Variations",
    "Whole",
    "cell_grid",
    "hit_patches",
    "jet_images",
    "nearest_neighbours",
    "split",
]
