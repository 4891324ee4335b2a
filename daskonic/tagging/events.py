"""Jets with their constituents, from the branches of an entry range.

A file says in one of two ways which constituents a jet has:

linked
    ``FatJetPFCands_jetIdx`` and ``FatJetPFCands_pFCandsIdx`` pair jets of the event with rows of
    ``PFCands_*`` (PFNano), or ``FatJetPFCand_jetIdx`` and ``_pfCandIdx`` with ``PFCand_*``
    (NanoAODv15). The pairs may come in any order; a jet keeps them in the order it finds them.
nested
    Each jet holds a list ``constituents`` itself (Parquet, RNTuple).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskonic.constituents import CONSTITUENT_INDEX, JET_INDEX, LINKS, group
from daskonic.errors import InputError
from daskonic.tagging.columns import Columns

__all__ = ["IDENTIFIERS", "Events", "JetColumns", "jet_columns", "read_jets", "with_constituents"]

IDENTIFIERS = ("run", "luminosityBlock", "event")
"""Columns that identify an event; kept where a file has them."""

NESTED = "constituents"


@dataclass(frozen=True, slots=True)
class JetColumns:
    """Which columns of a file hold jets and their constituents.

    Attributes
    ----------
    jets : str
        Collection, such as ``"FatJet"``.
    jet_fields, constituent_fields : mapping of str to str
        Columns by the name of the field without its prefix, such as ``pt``.
    links : tuple of str
        Columns with the jet's index and the constituent's index; empty where jets hold their
        constituents themselves, or have none.
    """

    jets: str
    jet_fields: Mapping[str, str]
    constituent_fields: Mapping[str, str]
    links: tuple[str, ...] = ()

    def choose(self, jet_fields: Iterable[str], constituent_fields: Iterable[str]) -> JetColumns:
        """The same with these fields only."""
        jets, constituents = sorted(jet_fields), sorted(constituent_fields)
        if not jets:  # the number of jets must come from somewhere
            jets = ["pt"] if "pt" in self.jet_fields else sorted(self.jet_fields)[:1]
        return JetColumns(
            self.jets,
            {name: self.jet_fields[name] for name in jets},
            {name: self.constituent_fields[name] for name in constituents},
            self.links if constituents else (),
        )


@dataclass(frozen=True, slots=True)
class Events:
    """Events of an entry range.

    Attributes
    ----------
    identifiers : dict of str to array, [n_events]
        ``run``, ``luminosityBlock`` and ``event`` where the file has them, and always ``entry``
        (int64), the place in the file.
    jets : ak.Array, n_events * var * record
        The fields asked for, and ``constituents`` (var * record) if any of theirs were.
    """

    identifiers: dict[str, Any] = field(default_factory=dict)
    jets: Any = None


def jet_columns(names: Collection[str], jets: str = "FatJet") -> JetColumns:
    """Find a jet collection and its constituents.

    Parameters
    ----------
    names : collection of str
        Flat names of all columns, such as ``FatJet_pt``.
    jets : str
        Name of the collection.

    Raises
    ------
    InputError
        There is no such collection; the message lists those with a ``pt``.
    """
    own = {name.removeprefix(f"{jets}_"): name for name in names if name.startswith(f"{jets}_")}
    nested = {n.removeprefix(f"{NESTED}_"): c for n, c in own.items() if n.startswith(f"{NESTED}_")}
    fields = {n: c for n, c in own.items() if n != NESTED and not n.startswith(f"{NESTED}_")}
    if not fields:
        there = sorted(name.removesuffix("_pt") for name in names if name.endswith("_pt"))
        raise InputError(
            f"no jets {jets} (no column {jets}_*); collections with a pt: {', '.join(there) or 'none'}"
        )
    if nested:
        return JetColumns(jets, fields, nested)
    for target in LINKS:
        prefix = f"{jets}{target}_"
        index = next((prefix + i for i in CONSTITUENT_INDEX if prefix + i in names), None)
        if index is not None and prefix + JET_INDEX in names:
            found = {n.removeprefix(f"{target}_"): n for n in names if n.startswith(f"{target}_")}
            return JetColumns(jets, fields, found, (prefix + JET_INDEX, index))
    return JetColumns(jets, fields, {})


def with_constituents(names: Iterable[str]) -> list[str]:
    """Jet collections of a file that have constituents."""
    known, ends = set(names), tuple(f"{target}_{JET_INDEX}" for target in LINKS)
    linked = {name.removesuffix(end) for end in ends for name in known if name.endswith(end)}
    nested = {name.split(f"_{NESTED}_")[0] for name in known if f"_{NESTED}_" in name}
    return sorted(jets for jets in linked | nested if any(name.startswith(f"{jets}_") for name in known))


def read_jets(columns: Columns, start: int, stop: int, wanted: JetColumns) -> Events:
    """Read an entry range and put the constituents into their jets.

    Parameters
    ----------
    columns : Columns
        An open file.
    start, stop : int
        Entries, ``stop`` not included.
    wanted : JetColumns
        From :func:`jet_columns`, cut down with :meth:`JetColumns.choose`: nothing else is read.

    Returns
    -------
    Events
        Jets in the order of the file; a jet without constituents has an empty list.

    Raises
    ------
    InputError
        Columns of one collection disagree in length, or an index points outside its event.
    """
    import awkward as ak

    identifiers = [name for name in IDENTIFIERS if name in columns.names]
    needed = [*wanted.jet_fields.values(), *wanted.constituent_fields.values(), *wanted.links]
    arrays = columns.read(dict.fromkeys([*identifiers, *needed]), start, stop)
    arrays = {name: _without_idle_options(array) for name, array in arrays.items()}
    fields = {name: arrays[column] for name, column in wanted.jet_fields.items()}
    if wanted.constituent_fields:
        values = {name: arrays[column] for name, column in wanted.constituent_fields.items()}
        if wanted.links:
            sizes = ak.num(next(iter(fields.values())), axis=1)
            fields[NESTED] = _linked(values, [arrays[name] for name in wanted.links], sizes, wanted, start)
        else:
            fields[NESTED] = ak.zip(values, depth_limit=3)
    ids = {name: ak.to_numpy(arrays[name]) for name in identifiers}
    return Events(ids | {"entry": np.arange(start, stop, dtype=np.int64)}, ak.zip(fields, depth_limit=2))


def _linked(values: dict[str, Any], links: list[Any], n_jets: Any, wanted: JetColumns, start: int) -> Any:
    """Constituents of linked collections, n_events * var * var * record."""
    import awkward as ak

    flat = {name: ak.flatten(array) for name, array in values.items()}
    sizes = [ak.to_numpy(ak.num(array, axis=1)) for array in (*links, *values.values())]
    for column, size in zip((*wanted.links, *wanted.constituent_fields.values()), sizes, strict=True):
        twin = sizes[0] if column in wanted.links else sizes[2]
        if not np.array_equal(size, twin):
            raise InputError(f"{column} has other lengths than the columns beside it")
    jet_index, constituent_index = (ak.to_numpy(ak.flatten(link)) for link in links)
    try:
        counts, rows = group(jet_index, constituent_index, sizes[0], ak.to_numpy(n_jets), sizes[2])
    except IndexError as error:
        event, what = error.args
        raise InputError(f"{' and '.join(wanted.links)} of entry {start + event} have a {what}") from error
    records = ak.zip({name: array[rows] for name, array in flat.items()}, depth_limit=1)
    return ak.unflatten(ak.unflatten(records, counts), n_jets)


def _without_idle_options(array: Any) -> Any:
    """The same array, its type without the ``?`` that Parquet writers add where nothing is missing."""
    import awkward as ak

    def visit(layout: Any, **_: Any) -> Any:
        if layout.is_option and not np.asarray(layout.mask_as_bool(valid_when=False)).any():
            return ak.transform(visit, layout.project(), highlevel=False)
        return None

    return ak.transform(visit, array) if "?" in str(array.type) or "option" in str(array.type) else array
