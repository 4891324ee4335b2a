"""Reading jets with their constituents, from every layout; and finding the files."""

from __future__ import annotations

import shutil

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jet_files import make_events, write_parquet, write_rntuple, write_root

from daskonic.constituents import group
from daskonic.errors import InputError
from daskonic.tagging.columns import ParquetColumns, RootColumns
from daskonic.tagging.events import jet_columns, read_jets, with_constituents
from daskonic.tagging.sources import partitions, scan

LAYOUTS = {
    "pfnano": write_root,
    "v15": lambda path, events: write_root(path, events, names="v15"),
    "rntuple": write_rntuple,
    "parquet": write_parquet,
}


def read(
    path, start=0, stop=None, jets="FatJet", jet_fields=("code",), constituent_fields=("code", "charge")
):
    columns = ParquetColumns(str(path)) if path.suffix == ".parquet" else RootColumns(str(path))
    wanted = jet_columns(columns.names, jets).choose(jet_fields, constituent_fields)
    return read_jets(columns, start, columns.entries if stop is None else stop, wanted)


def truth(events, start=0, stop=None):
    """What ``read`` must give, from the lists that the file was made from."""
    return [
        [
            {
                "code": j["code"],
                "constituents": [{k: c[k] for k in ("charge", "code")} for c in j["constituents"]],
            }
            for j in jets
        ]
        for jets in events.jets[start:stop]
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_jets(tmp_path, layout):
    """Every jet has its constituents, in their order, whatever the layout and the order of the links."""
    events = make_events(40)
    path = LAYOUTS[layout](tmp_path / f"jets.{'parquet' if layout == 'parquet' else 'root'}", events)
    got = read(path)
    assert got.jets.tolist() == truth(events)
    assert {name: list(ids) for name, ids in got.identifiers.items()} == {
        "run": events.run,
        "luminosityBlock": events.luminosityBlock,
        "event": events.event,
        "entry": list(range(40)),
    }
    assert str(got.jets.type) == "40 * var * {code: int32, constituents: var * {charge: int32, code: int32}}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("start", "stop"), [(0, 13), (13, 14), (9, 33), (5, 5)])
def test_entry_ranges(tmp_path, layout, start, stop):
    """A range holds its own events only, and the empty one keeps the type."""
    events = make_events(33)
    path = LAYOUTS[layout](tmp_path / f"jets.{'parquet' if layout == 'parquet' else 'root'}", events)
    got = read(path, start, stop)
    assert got.jets.tolist() == truth(events, start, stop)
    assert got.identifiers["entry"].tolist() == list(range(start, stop))
    assert str(got.jets.type).split(" * ", 1)[1] == str(read(path).jets.type).split(" * ", 1)[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_jets_at_all(tmp_path, layout):
    """Events without any jet give empty lists of the right type."""
    path = LAYOUTS[layout](
        tmp_path / f"jets.{'parquet' if layout == 'parquet' else 'root'}", make_events(5, jets=False)
    )
    got = read(path).jets
    assert got.tolist() == [[]] * 5
    assert str(got.type) == "5 * var * {code: int32, constituents: var * {charge: int32, code: int32}}"


def test_flat_parquet(tmp_path):
    """Parquet may also hold NanoAOD's flat columns, linked by index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {
        "FatJet_pt": [[500.0, 300.0], [], [250.0]],
        "FatJetPFCands_jetIdx": [[1, 0, 1], [], [0]],
        "FatJetPFCands_pFCandsIdx": [[2, 0, 1], [], [0]],
        "PFCands_pt": [[1.0, 2.0, 3.0], [9.0], [4.0]],
    }
    pq.write_table(pa.table(table), tmp_path / "flat.parquet")
    got = read(tmp_path / "flat.parquet", jet_fields=["pt"], constituent_fields=["pt"])
    assert got.jets.constituents.pt.tolist() == [[[1.0], [3.0, 2.0]], [], [[4.0]]]
    assert list(got.identifiers) == ["entry"]


def test_missing_lists_stay_missing(tmp_path):
    """An event whose list of jets is null in Parquet is None, not an empty list."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"FatJet": [{"pt": 1.0, "constituents": [{"pt": 2.0}]}]}, {"FatJet": None}, {"FatJet": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "none.parquet")
    got = read(tmp_path / "none.parquet", jet_fields=["pt"], constituent_fields=["pt"]).jets
    assert got.tolist() == [row["FatJet"] for row in rows]


def test_other_collection(tmp_path):
    """``Jet`` has its own links; a collection without links is read without constituents."""
    events = make_events(6)
    write_root(tmp_path / "a.root", events)
    records = RootColumns(str(tmp_path / "a.root"))
    parts = records.read(["FatJet_code", "FatJetPFCands_jetIdx", "FatJetPFCands_pFCandsIdx"], 0, 6)
    write_root(
        tmp_path / "b.root",
        events,
        Jet=ak.zip({"code": parts["FatJet_code"]}),
        JetPFCands=ak.zip(
            {"jetIdx": parts["FatJetPFCands_jetIdx"], "pFCandsIdx": parts["FatJetPFCands_pFCandsIdx"]}
        ),
        FatJetPFCands=None,
    )
    assert read(tmp_path / "b.root", jets="Jet").jets.tolist() == truth(events)
    names = RootColumns(str(tmp_path / "b.root")).names
    assert jet_columns(names, "FatJet").constituent_fields == {}
    assert with_constituents(names) == ["Jet"]


def test_unknown_collection(tmp_path):
    """The error names the collections that there are."""
    path = write_root(tmp_path / "a.root", make_events(3))
    with pytest.raises(InputError, match=r"no jets AK15 .*FatJet, PFCands"):
        read(path, jets="AK15")


@pytest.mark.parametrize(("column", "value"), [("pFCandsIdx", 50), ("pFCandsIdx", -1), ("jetIdx", 4)])
def test_index_outside_its_event(tmp_path, column, value):
    """An index that points outside its event is an error that names the entry, not a neighbour's constituent."""
    events = make_events(8)
    events.jets[5] = events.jets[5] or [dict(events.jets[1][0], code=51)]
    write_root(tmp_path / "a.root", events)
    names = ["FatJetPFCands_jetIdx", "FatJetPFCands_pFCandsIdx"]
    parts = RootColumns(str(tmp_path / "a.root")).read(names, 0, 8)
    links = [{"jetIdx": j, "pFCandsIdx": c} for j, c in zip(*(parts[n].tolist() for n in names), strict=True)]
    links[5][column][-1] = value
    bad = ak.Array([ak.zip(one).tolist() for one in links])
    path = write_root(tmp_path / "b.root", events, FatJetPFCands=ak.values_astype(bad, "int32"))
    with pytest.raises(InputError, match=rf"entry 5 .*index {value} where the event has \d+"):
        read(path, 2, 8)
    assert read(path, 0, 5).jets.tolist() == truth(events, 0, 5)


@settings(deadline=None)  # a busy machine is not a failure
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.integers(0, 6), st.randoms(use_true_random=False), st.integers(0, 12)
        ),
        max_size=6,
    )
)
def test_group_is_a_loop_over_links(events):
    """The vectorised grouping equals a loop over events and links, -1 (in no jet) included."""
    n_jets = np.array([j for j, _, _, _ in events], np.int64)
    n_constituents = np.array([c for _, c, _, _ in events], np.int64)
    links = [
        [(rng.randint(-1, j - 1), rng.randrange(c)) for _ in range(n)] if c else [] for j, c, rng, n in events
    ]
    expected, first = [], 0
    for (jets, constituents, _, _), pairs in zip(events, links, strict=True):
        expected += [[first + c for j, c in pairs if j == jet] for jet in range(jets)]
        first += constituents
    flat = np.array([pair for pairs in links for pair in pairs], np.int32).reshape(-1, 2)
    n_links = np.array([len(pairs) for pairs in links], np.int64)
    counts, rows = group(flat[:, 0], flat[:, 1], n_links, n_jets, n_constituents)
    assert ak.unflatten(rows, counts).tolist() == expected


# -- files ---------------------------------------------------------------------------------------


def corrupt(path):
    """Keep the header and the length, and destroy the rest."""
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * (size - 100))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_text("a,b\n1,2\n"), "neither a ROOT nor a Parquet file"),
        (lambda p: p.write_bytes(write_root(p, make_events(9)).read_bytes()[:-300]), "is truncated"),
        (lambda p: corrupt(write_root(p, make_events(9))), "cannot be read"),
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: write_root(p, make_events(2), tree="Other"), None),
        (lambda p: corrupt(write_parquet(p, make_events(9))), "cannot be read"),
    ],
)
def test_bad_files(tmp_path, make, named):
    """Each bad file is named with its cause, and good ones beside it do not hide it."""
    good = write_root(tmp_path / "good.root", make_events(3, seed=2))
    make(tmp_path / "bad.root")
    if named is None:  # a tree of another name is found where it is the only one
        assert [s.tree for s in scan([tmp_path / "bad.root", good])] == ["Other", "Events"]
        return
    with pytest.raises(InputError, match=rf"1 of 2 input files cannot be used: .*bad\.root.*{named}"):
        scan([good, tmp_path / "bad.root"])


def test_two_trees(tmp_path):
    """Several trees and no Events: the error asks for --tree."""
    import uproot

    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("A", {"FatJet_pt": "f4"})
        file.mktree("B", {"FatJet_pt": "f4"})
    with pytest.raises(InputError, match=r"choose one of A, B with --tree"):
        scan([tmp_path / "a.root"])
    with pytest.raises(InputError, match=r"no tree C; it has A, B"):
        scan([tmp_path / "a.root"], tree="C")
    assert scan([tmp_path / "a.root"], tree="B")[0].tree == "B"


def test_duplicates(tmp_path):
    """The same file twice, as a link or as a copy, would count its jets twice."""
    path = write_root(tmp_path / "a.root", make_events(3))
    (tmp_path / "link.root").symlink_to(path)
    shutil.copy(path, tmp_path / "copy.root")
    with pytest.raises(InputError, match=r"named twice"):
        scan([path, path])
    with pytest.raises(InputError, match=r"link\.root: is named twice"):
        scan([path, tmp_path / "link.root"])
    with pytest.raises(InputError, match=r"is a copy of"):
        scan([path, tmp_path / "copy.root"])
    with pytest.raises(InputError, match=r"named twice"):
        scan([tmp_path / "*.root", path])


def test_globs_and_order(tmp_path):
    """Globs are resolved, and the order of the names does not depend on the order of the arguments."""
    for name in ("b", "a", "c"):
        write_root(tmp_path / f"{name}.root", make_events(3, seed=ord(name)))
    assert [s.path[-6] for s in scan([tmp_path / "c.root", tmp_path / "[ab].root"])] == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"x\*\.root: no file matches"):
        scan([tmp_path / "x*.root"])


def test_partitions(tmp_path):
    """Ranges cover every entry once, none longer than asked, and an empty file is one empty range."""
    events = [make_events(n, seed=n) for n in (10, 0, 7)]
    paths = [write_root(tmp_path / f"{i}.root", e) for i, e in enumerate(events)]
    cut = partitions(scan(paths), 4)
    assert [(p.source.path[-6], p.start, p.stop) for p in cut] == [
        ("0", 0, 3),
        ("0", 3, 6),
        ("0", 6, 10),
        ("1", 0, 0),
        ("2", 0, 3),
        ("2", 3, 7),
    ]
    assert [p.index for p in cut] == list(range(6))
