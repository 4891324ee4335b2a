"""Jets of one file, for whoever writes the loop over files."""

from __future__ import annotations

import os
from functools import partial

from daskonic.errors import InputError, SpecError
from daskonic.features import Features
from daskonic.tagging.columns import Columns, opened
from daskonic.tagging.events import Events, JetColumns, jet_columns, read_jets, with_constituents
from daskonic.tagging.sources import scan
from daskonic.tensors import ModelSpec

__all__ = ["needed_columns", "read_file"]


def read_file(
    path: str | os.PathLike[str],
    features: Features,
    jets: str = "FatJet",
    *,
    start: int = 0,
    stop: int | None = None,
    tree: str = "",
) -> Events:
    """Read the jets of a file with their constituents, and of their fields only those that features need.

    Parameters
    ----------
    path : str or path
        ROOT (TTree or RNTuple; NanoAOD or PFNano) or Parquet; a local path or a URL that fsspec knows.
    features : Features
        Those of :meth:`~daskonic.Features.from_weaver` say what they need; for a function all fields are read.
    jets : str
        Collection.
    start, stop : int, optional
        Range of entries, ``stop`` not included; default is the whole file.
    tree : str, optional
        Name of the tree; default is ``Events``, else the only one.

    Returns
    -------
    Events
        ``jets`` is n_events * var * record, with the field ``constituents``; ``identifiers`` has run, luminosity block, event and entry.

    Raises
    ------
    InputError
        The file cannot be read, or lacks the jets or what the features need.
    """
    check = partial(needed_columns, features=features, jets=jets)
    (source,) = scan([path], tree=tree, check=check)
    with opened(source) as columns:
        return read_jets(
            columns, start, source.entries if stop is None else min(stop, source.entries), check(columns)
        )


def needed_columns(
    columns: Columns, features: Features, jets: str, spec: ModelSpec | None = None
) -> JetColumns:
    """The columns of a file that features need, for the inputs of one model or for all.

    Raises
    ------
    InputError
        The file lacks the jets, or a column that the features need.
    """
    found = jet_columns(columns.names, jets)
    try:
        needed = features.fields(found.jet_fields, found.constituent_fields, spec)
    except SpecError as error:
        if not found.constituent_fields:
            others = ", ".join(with_constituents(columns.names)) or "none"
            raise InputError(
                f"has no constituents of {jets}; jets that have them: {others} ({error})"
            ) from error
        raise InputError(f"lacks what the features need: {error}") from error
    return found.choose(*needed)
