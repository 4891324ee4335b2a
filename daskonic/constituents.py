"""Which constituents a jet has, where the event holds them beside its jets.

``FatJetPFCands_jetIdx`` and ``FatJetPFCands_pFCandsIdx`` pair jets of the event with rows of ``PFCands_*`` (PFNano),
or ``FatJetPFCand_jetIdx`` and ``_pfCandIdx`` with ``PFCand_*`` (NanoAODv15). The pairs may come in any order; a
jet keeps them in the order it finds them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import awkward as ak
import numpy as np
import numpy.typing as npt

from daskonic.errors import InputError

__all__ = [
    "CONSTITUENTS",
    "CONSTITUENT_INDEX",
    "JET_INDEX",
    "LINKS",
    "constituent_fields",
    "group",
    "link_constituents",
    "particles_of",
    "secondary_vertices",
    "with_own_constituents",
]

CONSTITUENTS = "constituents"
"""The field in which jets hold theirs."""

LINKS = ("PFCands", "PFCand")
JET_INDEX = "jetIdx"
CONSTITUENT_INDEX = ("pFCandsIdx", "pfCandIdx", "pFCandIdx", "pfCandsIdx")
VERTICES, VERTEX_LINKS, VERTEX_INDEX = "SV", "SVs", "sVIdx"

Int64s = npt.NDArray[np.int64]


def link_constituents(events: Any, jets: str = "FatJet") -> Any:
    """Jets that hold their constituents, from events that hold both side by side.

    Parameters
    ----------
    events : ak.Array, n_events * record
        Such as coffea's NanoEvents, by any schema that keeps the collections of PFNano or NanoAODv15; virtual or not.
    jets : str
        Name of the collection.

    Returns
    -------
    ak.Array, n_events * var * Jet
        The jets with a further field ``constituents`` (var * PFCand), which goes along wherever they are selected,
        sorted or combined. It has what the links tell of a constituent in its jet, too, such as ``btagEtaRel``. Columns
        of the constituents are read when they are used. For coffea's jets write
        ``jets["constituents"]``: their class has a property of that name, which knows other files.

    Raises
    ------
    InputError
        No such jets, no links to constituents, or an index that points outside its event.

    Examples
    --------
    >>> jets = dk.link_constituents(events)  # doctest: +SKIP
    >>> scores = tagger(jets[jets.pt > 300])  # doctest: +SKIP
    """
    if jets not in events.fields:
        raise InputError(f"no jets {jets}; the events have {', '.join(sorted(events.fields))}")
    found = _links(events, jets)
    if found is None:
        raise InputError(
            f"no constituents of {jets}: the events have no {jets}{f' and no {jets}'.join(LINKS)} with indices"
        )
    target, index = found
    links, candidates = events[jets + target], events[target]
    n_links, n_jets, n_candidates = (
        np.asarray(ak.num(a, axis=1), np.int64) for a in (links, events[jets], candidates)
    )
    jet, candidate = (ak.to_numpy(ak.flatten(links[name], axis=1)) for name in (JET_INDEX, index))
    try:
        counts, rows = group(jet, candidate, n_links, n_jets, n_candidates)
    except IndexError as error:
        event, what = error.args
        raise InputError(f"{jets}{target} of event {event} of these has a {what}") from error
    particles = ak.flatten(candidates, axis=1)[rows]
    own = _own_fields(links, candidates, index)
    if own:
        here = np.arange(len(jet)) - np.repeat(_starts(n_links), n_links)
        told = ak.flatten(links, axis=1)[group(jet, here, n_links, n_jets, n_links)[1]]
        columns = {f: particles[f] for f in particles.fields} | {f: told[f] for f in own}
        record = particles.layout.purelist_parameter("__record__")
        particles = ak.zip(columns, depth_limit=1, with_name=record, behavior=particles.behavior)
    return ak.with_field(events[jets], ak.unflatten(ak.unflatten(particles, counts), n_jets), CONSTITUENTS)


def secondary_vertices(events: Any, jets: str = "FatJet") -> Any:
    """Secondary vertices of each jet, from events of PFNano.

    Parameters
    ----------
    events : ak.Array, n_events * record
        With ``FatJet``, ``FatJetSVs`` and ``SV``.
    jets : str
        Name of the collection.

    Returns
    -------
    ak.Array, n_events * var * var * SV
        For the field ``svs`` of the jets, where features look for them. PFNano links more vertices than NanoAOD
        keeps; the others are left out. Their order is that of the links: by the significance of their distance.

    Raises
    ------
    InputError
        No such collections, or an index that points outside its event.

    Examples
    --------
    >>> jets = dk.link_constituents(events)  # doctest: +SKIP
    >>> jets["svs"] = dk.secondary_vertices(events)  # doctest: +SKIP
    """
    needed = (jets, jets + VERTEX_LINKS, VERTICES)
    lacking = [name for name in needed if name not in events.fields]
    if lacking:
        raise InputError(f"no {', '.join(lacking)}; the events have {', '.join(sorted(events.fields))}")
    links = events[jets + VERTEX_LINKS]
    n_links, n_jets, n_vertices = (
        np.asarray(ak.num(a, axis=1), np.int64) for a in (links, events[jets], events[VERTICES])
    )
    jet, vertex = (ak.to_numpy(ak.flatten(links[name], axis=1)) for name in (JET_INDEX, VERTEX_INDEX))
    try:
        counts, rows = group(np.where(vertex < 0, -1, jet), vertex, n_links, n_jets, n_vertices)
    except IndexError as error:
        event, what = error.args
        raise InputError(f"{jets}{VERTEX_LINKS} of event {event} of these has a {what}") from error
    return ak.unflatten(ak.unflatten(ak.flatten(events[VERTICES], axis=1)[rows], counts), n_jets)


def constituent_fields(jets: Any) -> tuple[str, ...]:
    """Names of the constituents' fields; nothing is read but where coffea's own property has to be asked."""
    if CONSTITUENTS in jets.fields:
        return tuple(particles_of(jets).fields)
    owner = _owner(jets)
    if owner is not None:
        links, candidates = owner.events[owner.jets + owner.target], owner.events[owner.target]
        return (*candidates.fields, *_own_fields(links, candidates, owner.key))
    found = _by_property(jets)
    return () if found is None else tuple(found.fields)


def with_own_constituents(jets: Any) -> Any:
    """The jets, and in the field ``constituents`` those that coffea's events have for them."""
    if CONSTITUENTS in jets.fields:
        return jets
    owner = _owner(jets)
    if owner is not None:
        return link_constituents(owner.events, owner.jets)
    return ak.with_field(jets, _by_property(jets), CONSTITUENTS)


def group(
    jet_index: npt.NDArray[Any],
    constituent_index: npt.NDArray[Any],
    n_links: npt.NDArray[Any],
    n_jets: npt.NDArray[Any],
    n_constituents: npt.NDArray[Any],
) -> tuple[Int64s, Int64s]:
    """Which constituents each jet has, for all events at once.

    Parameters
    ----------
    jet_index, constituent_index : array of int, [n_links_total]
        A jet and a constituent, each counted within its event. A jet index of -1 means that the
        constituent is in no jet.
    n_links, n_jets, n_constituents : array of int, [n_events]
        Lengths of the three lists of each event.

    Returns
    -------
    counts : array of int64, [n_jets_total]
        Constituents of each jet.
    rows : array of int64, [sum of counts]
        Constituents jet by jet, as rows of the flat list of constituents.

    Raises
    ------
    IndexError
        ``args`` are the event and what is wrong in it.
    """
    event = np.repeat(np.arange(len(n_links)), n_links)
    jet, constituent = jet_index.astype(np.int64), constituent_index.astype(np.int64)
    inside = jet != -1
    if not inside.all():
        event, jet, constituent = event[inside], jet[inside], constituent[inside]
    for index, limit, kind in ((jet, n_jets, "jet"), (constituent, n_constituents, "constituent")):
        wrong = np.flatnonzero((index < 0) | (index >= limit[event]))
        if len(wrong):
            at = wrong[0]
            what = f"{kind} index {index[at]} where the event has {limit[event[at]]}"
            raise IndexError(int(event[at]), what)
    jet += _starts(n_jets)[event]
    constituent += _starts(n_constituents)[event]
    if (jet[1:] < jet[:-1]).any():  # nearly all files are sorted, and a sort costs as much as the rest
        order = np.argsort(jet, kind="stable")
        jet, constituent = jet[order], constituent[order]
    return np.bincount(jet, minlength=int(n_jets.sum())), constituent


def _starts(counts: npt.NDArray[Any]) -> Int64s:
    """First row of each event in a flat list."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)[:-1]])


def _links(events: Any, jets: str) -> tuple[str, str] | None:
    """The collection of constituents, and the field of its links that has their index."""
    for target in LINKS:
        if target in events.fields and jets + target in events.fields:
            fields = events[jets + target].fields
            index = next((name for name in CONSTITUENT_INDEX if name in fields), None)
            if index is not None and JET_INDEX in fields:
                return target, index
    return None


def _own_fields(links: Any, candidates: Any, index: str) -> list[str]:
    """What links tell of a constituent, and not only which it is; coffea's global indices end with G."""
    known = {JET_INDEX, index, f"{JET_INDEX}G", f"{index}G", *candidates.fields}
    return [name for name in links.fields if name not in known]


class _Owner(NamedTuple):
    """Coffea's events, and the names in them of a collection of jets, of its constituents and of their index."""

    events: Any
    jets: str
    target: str
    key: str


def _owner(jets: Any) -> _Owner | None:
    """The events that jets are of, if these are all of a collection in their order, and have constituents there."""
    name = jets.layout.purelist_parameter("collection_name")
    if name is None or not hasattr(jets, "_events"):
        return None
    events = jets._events()
    if name not in events.fields or events[name].layout is not jets.layout:
        return None
    found = _links(events, name)
    return None if found is None else _Owner(events, name, *found)


def _by_property(jets: Any) -> Any:
    """What the class of the jets says of their constituents; None if nothing.

    Coffea's own goes by counts, and is right where the links are stored jet by jet and none is missing.
    """
    if not hasattr(type(jets), CONSTITUENTS):
        return None
    try:
        links = jets.constituents
    except RuntimeError:  # coffea: no counts in this file
        return None
    if "jetIdxG" in links.fields and not ak.all(links.jetIdxG == ak.firsts(links.jetIdxG, axis=-1)):
        raise InputError(
            "coffea's constituents of these jets are those of several jets, since their counts are not those of "
            "the links; find them first and select jets then: dk.link_constituents(events, NAME)"
        )
    return _particles(links)


def particles_of(jets: Any) -> Any:
    """The particles that jets hold; coffea has them one level deeper, in ``pf``."""
    return _particles(jets[CONSTITUENTS])


def _particles(constituents: Any) -> Any:
    """Particles instead of links to them."""
    is_link = "pf" in constituents.fields or hasattr(type(constituents), "pf")
    return constituents.pf if is_link else constituents
