"""Small files of jets and constituents in the layouts of PFNano, NanoAODv15, RNTuple and Parquet.

Every jet has a ``code`` and every constituent too, so that a score tells which jet it is of. The truth is
kept as plain lists, apart from the arrays that are written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import awkward as ak
import numpy as np

COLLECTIONS = {
    "pfnano": ("FatJetPFCands", "pFCandsIdx", "PFCands"),
    "v15": ("FatJetPFCand", "pfCandIdx", "PFCand"),
}

MOST_CONSTITUENTS = 16
"""The tests' model ``sum`` takes vectors of 16."""


@dataclass
class Events:
    """Events as lists of dicts: ``jets[i][j]["constituents"][k]["code"]``."""

    jets: list[list[dict]]
    run: list[int]
    luminosityBlock: list[int]
    event: list[int]
    loose: list[list[dict]] = field(default_factory=list)
    """Candidates of each event that are in no jet."""

    def __len__(self) -> int:
        return len(self.jets)

    def codes(self) -> list[list[int]]:
        """The code of every jet."""
        return [[jet["code"] for jet in jets] for jets in self.jets]

    def sums(self) -> list[list[int]]:
        """For every jet its constituents' codes, summed."""
        return [[sum(c["code"] for c in jet["constituents"]) for jet in jets] for jets in self.jets]


def make_events(n_events: int, *, seed: int = 1, jets: bool = True, first: int = 0) -> Events:
    """Events with 0 to 4 jets of 0 to 16 constituents; numbered from ``first``."""
    rng = np.random.default_rng(seed)
    events, loose = [], []
    for i in range(n_events):
        n_jets = int(rng.integers(0, 5)) if jets else 0
        events.append([_jet(rng, 10 * (first + i) + j + 1) for j in range(n_jets)])
        loose.append([_constituent(rng) for _ in range(int(rng.integers(0, 4)))])
    numbers = range(first, first + n_events)
    return Events(events, [1] * n_events, [1 + n // 100 for n in numbers], [7 * n for n in numbers], loose)


def write_root(path: Path, events: Events, *, names: str = "pfnano", tree: str = "Events", **changes) -> Path:
    """A TTree with linked constituents, the links in random order.

    ``changes`` replace collections, such as ``FatJetPFCands=...``, or leave them out with None.
    """
    import uproot

    links, index, candidates = COLLECTIONS[names]
    rng = np.random.default_rng(len(events))
    linked, pool = [], []
    for jets, loose in zip(events.jets, events.loose, strict=True):
        members = [(j, c) for j, jet in enumerate(jets) for c in jet["constituents"]]
        place = rng.permutation(len(members) + len(loose))
        shelf: list[dict] = [{} for _ in place]
        for at, candidate in zip(place, [c for _, c in members] + loose, strict=True):
            shelf[at] = candidate
        pool.append(shelf)
        pairs = [{"jetIdx": j, index: int(at)} for (j, _), at in zip(members, place, strict=False)]
        # Constituents keep their order within a jet; the jets' turns are mixed.
        keys = [(rng.random(), p) for p in pairs]
        order = sorted(range(len(pairs)), key=lambda i: keys[i][0]) if len(linked) % 2 else range(len(pairs))
        linked.append(_in_order(pairs, list(order)))
    branches = {
        "run": np.array(events.run, "u4"),
        "luminosityBlock": np.array(events.luminosityBlock, "u4"),
        "event": np.array(events.event, "u8"),
        "FatJet": _records(events.jets, {"pt": "f4", "eta": "f4", "phi": "f4", "mass": "f4", "code": "i4"}),
        candidates: _records(pool, CONSTITUENT),
        links: _records(linked, {"jetIdx": "i4", index: "i4"}),
    }
    branches = {name: branch for name, branch in (branches | changes).items() if branch is not None}
    with uproot.recreate(path) as file:
        kinds = {name: ak.type(branch).content for name, branch in branches.items()}
        out = file.mktree(tree, kinds)
        if len(events):
            out.extend(branches)
    return path


def write_rntuple(path: Path, events: Events) -> Path:
    """An RNTuple whose jets hold their constituents."""
    import uproot

    with uproot.recreate(path) as file:
        file.mkrntuple("Events", _nested(events))
    return path


def write_parquet(path: Path, events: Events, row_group_size: int = 7) -> Path:
    """Parquet whose jets hold their constituents, in small row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: ak.to_arrow(ak.Array(c), extensionarray=False) for name, c in _nested(events).items()}
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


CONSTITUENT = {"pt": "f4", "eta": "f4", "phi": "f4", "mass": "f4", "charge": "i4", "code": "i4"}


def _jet(rng: np.random.Generator, code: int) -> dict:
    constituents = [_constituent(rng) for _ in range(int(rng.integers(0, MOST_CONSTITUENTS + 1)))]
    pt, eta, phi = rng.uniform(200, 900), rng.normal(), rng.uniform(-3, 3)
    return {"pt": pt, "eta": eta, "phi": phi, "mass": 80.0, "code": code, "constituents": constituents}


def _constituent(rng: np.random.Generator) -> dict:
    code = int(rng.integers(1, 100_000))  # sums of 16 are exact in float32
    return {
        "pt": rng.exponential(5.0),
        "eta": rng.normal(),
        "phi": rng.uniform(-3, 3),
        "mass": 0.14,
        "charge": code % 3 - 1,
        "code": code,
    }


def _in_order(pairs: list[dict], order: list[int]) -> list[dict]:
    """Pairs whose jets come in the given order, each jet's own pairs in theirs."""
    by_jet: dict[int, list[dict]] = {}
    for pair in pairs:
        by_jet.setdefault(pair["jetIdx"], []).append(pair)
    return [by_jet[pairs[i]["jetIdx"]].pop(0) for i in order]


def _records(lists: list[list[dict]], dtypes: dict[str, str]) -> ak.Array:
    """n_events * var * record, typed also where there is nothing."""
    counts = np.array([len(one) for one in lists], np.int64)
    flat = {
        name: np.array([item[name] for one in lists for item in one], dtype) for name, dtype in dtypes.items()
    }
    return ak.zip({name: ak.unflatten(values, counts) for name, values in flat.items()})


def _nested(events: Events) -> dict:
    """Columns with jets that hold their constituents."""
    jets = _records(events.jets, {"pt": "f4", "eta": "f4", "phi": "f4", "mass": "f4", "code": "i4"})
    inner = _records([jet["constituents"] for one in events.jets for jet in one], CONSTITUENT)
    constituents = ak.unflatten(inner, ak.num(jets))
    return {
        "run": np.array(events.run, "u4"),
        "luminosityBlock": np.array(events.luminosityBlock, "u4"),
        "event": np.array(events.event, "u8"),
        "FatJet": ak.zip({**{f: jets[f] for f in jets.fields}, "constituents": constituents}, depth_limit=2),
    }
