"""Jets of files, scored by Dask workers, into files: what ``daskonic tag`` does."""

from __future__ import annotations

from daskonic.tagging.reading import read_file
from daskonic.tagging.run import CHUNK_SIZE, tag
from daskonic.tagging.summary import Progress, Summary

__all__ = ["CHUNK_SIZE", "Progress", "Summary", "read_file", "tag"]
