"""The main job on real parts: ROOT files, Dask worker processes, a Triton server."""

from __future__ import annotations

import json
import shutil

import awkward as ak
import pytest
from distributed import Client
from jet_files import MOST_CONSTITUENTS, make_events, write_parquet, write_root

import daskonic as dk
from daskonic.errors import InferenceError, InputError, ModelNotFoundError, OutputError, SpecError
from daskonic.tagging import tag
from daskonic.tagging.manifest import Output

SUM = "FatJet_sum_all"


@pytest.fixture(scope="module")
def client(triton):
    """Two worker processes that know the server."""
    with (
        dk.local_cluster(2, servers=[triton.address], threads_per_worker=2) as cluster,
        Client(cluster) as client,
    ):
        yield client


def codes(jets):
    """The constituents' codes, of which the model gives the sum."""
    return {"X": jets.constituents.code}


def sum_model(name="sum", **options):
    """A model whose first number is the sum of a jet's constituents' codes."""
    features = dk.Features(codes, pad={"X": dk.Pad(MOST_CONSTITUENTS)})
    return dk.Model(name, features=features, **{"classes": ["all", "minus"], **options})


@pytest.fixture
def files(tmp_path):
    """Three files of 30, 0 and 41 events, and what is in them."""
    events = [make_events(n, seed=n, first=100 * n) for n in (30, 0, 41)]
    paths = [write_root(tmp_path / f"{name}.root", e) for name, e in zip("abc", events, strict=True)]
    return paths, events


def contents(folder):
    """Bytes of every file of scores."""
    return {path.name: path.read_bytes() for path in (folder / "scores").iterdir()}


def test_every_jet_has_its_own_score(client, files, tmp_path):
    """Order, jaggedness and identifiers are the input's; each score belongs to its jet."""
    paths, events = files
    seen = []
    summary = tag(paths, sum_model(), tmp_path / "out", client=client, chunk_size=9, progress=seen.append)
    got = ak.concatenate([ak.from_parquet(path) for path in summary.paths])
    sums = [jets for e in events for jets in e.sums()]
    assert got[SUM].tolist() == sums
    assert got["FatJet_sum_minus"].tolist() == [[-s for s in jets] for jets in sums]
    assert got.event.tolist() == [number for e in events for number in e.event]
    assert got.entry.tolist() == [*range(30), *range(41)]
    assert str(got[SUM].type) == "71 * var * float32"
    n_jets = sum(len(jets) for jets in sums)
    assert (summary.files, summary.events, summary.rows) == (3, 71, n_jets)
    assert summary.partitions == summary.computed == 4 + 1 + 5
    assert summary.report.rows == n_jets
    assert (seen[-1].events, seen[-1].rows, seen[-1].partitions) == (71, n_jets, 10)


def test_manifest_says_who_did_what(client, files, tmp_path, triton):
    """Model, version, digests, servers, versions, rows and timings are in the manifest."""
    summary = tag(files[0], sum_model(), tmp_path / "out", client=client)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    identity, (run,) = manifest["identity"], manifest["runs"]
    assert manifest["complete"] is True
    assert (identity["model"], identity["model_version"], len(identity["model_config"])) == ("sum", "1", 64)
    assert [i["entries"] for i in identity["inputs"]] == [30, 0, 41]
    assert run["servers"] == {triton.address: summary.report.requests}
    assert {"numpy", "awkward", "uproot", "dask"} <= set(run["versions"])
    assert manifest["rows"] == sum(p["rows"] for p in manifest["partitions"]) == summary.rows
    assert {"events", "infer", "write"} <= set(manifest["partitions"][0]["stages_s"])


def test_parquet_input(client, tmp_path):
    """Nested Parquet gives the same scores as ROOT."""
    events = make_events(25)
    path = write_parquet(tmp_path / "a.parquet", events)
    summary = tag([path], sum_model(), tmp_path / "out", client=client, chunk_size=10)
    got = ak.concatenate([ak.from_parquet(path) for path in summary.paths])
    assert got[SUM].tolist() == events.sums()


def test_again_does_nothing(client, files, tmp_path):
    """A second run of a finished job sends no request and touches no file."""
    tag(files[0], sum_model(), tmp_path / "out", client=client, chunk_size=9)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").iterdir()}
    summary = tag(files[0], sum_model(), tmp_path / "out", client=client, chunk_size=9)
    assert (summary.computed, summary.report.requests, summary.partitions) == (0, 0, 10)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").iterdir()} == before


@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "unlogged", "torn"])
def test_only_what_is_missing_is_done(client, files, tmp_path, damage):
    """A partition is repeated if its file is away or not what was written, or its line is not whole."""
    out = tmp_path / "out"
    first = tag(files[0], sum_model(), out, client=client, chunk_size=9)
    whole = contents(out)
    victim = out / "scores" / "00002-a-15-22.parquet"
    log = out / "partitions.jsonl"
    if damage == "gone":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-10])
    elif damage == "changed":
        victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    else:
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(lines[:-1]) + (lines[-1][:40] if damage == "torn" else ""))
    (out / "scores" / ".daskonic-left-by-a-killed-run").write_bytes(b"half")
    again = tag(files[0], sum_model(), out, client=client, chunk_size=9)
    assert again.computed == 1
    assert 0 < again.report.requests + (again.computed_rows == 0) < first.report.requests
    assert contents(out) == whole
    assert tag(files[0], sum_model(), out, client=client, chunk_size=9).computed == 0


def test_another_job_is_refused(client, files, tmp_path):
    """Another model, files, chunk size, format or collection in the same folder: refused, with what differs."""
    paths, _ = files
    out = tmp_path / "out"
    tag(paths, sum_model(), out, client=client, chunk_size=20)
    whole = contents(out)
    identity = dk.Model("identity", features=dk.Features(codes, pad={"X": dk.Pad(MOST_CONSTITUENTS)}))
    for job, said in (
        ((paths, identity, {}), r"model is sum there and identity now"),
        (
            (paths, sum_model(classes=["p", "q"]), {}),
            r"scores is .*FatJet_sum_all.* there and .*FatJet_sum_p.* now",
        ),
        ((paths[:2], sum_model(), {}), r"1 input file missing \(.*c\.root\)"),
        ((paths, sum_model(), {"chunk_size": 21}), r"chunk size is 20 there and 21 now"),
        ((paths, sum_model(), {"fmt": "root"}), r"format is parquet there and root now"),
    ):
        files_, model, options = job
        with pytest.raises(OutputError, match=f"belongs to another run: .*{said}"):
            tag(files_, model, out, client=client, **{"chunk_size": 20, **options})
    write_root(paths[0], make_events(30, seed=99))
    with pytest.raises(OutputError, match=r"1 input file changed \(.*a\.root\)"):
        tag(paths, sum_model(), out, client=client, chunk_size=20)
    assert contents(out) == whole


def test_foreign_folders_are_refused(client, files, tmp_path):
    """A folder with other things, a file, and a path below a file are refused, and stay as they were."""
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("text")
    for output, said in (
        (folder, r"holds other things \(chapter\.tex\)"),
        (folder / "chapter.tex", r"is not a folder"),
        (folder / "chapter.tex" / "out", r"cannot write"),
    ):
        with pytest.raises(OutputError, match=said):
            tag(files[0], sum_model(), output, client=client)
    assert [p.name for p in folder.iterdir()] == ["chapter.tex"]


def test_one_run_at_a_time(client, files, tmp_path):
    """A second run in the same folder is refused while the first one lives."""
    summary = tag(files[0], sum_model(), tmp_path / "out", client=client)
    identity = json.loads((tmp_path / "out" / "manifest.json").read_text())["identity"]
    with (
        Output(tmp_path / "out", identity),
        pytest.raises(OutputError, match=r"another run is writing .*process \d+ on"),
    ):
        tag(files[0], sum_model(), tmp_path / "out", client=client)
    assert tag(files[0], sum_model(), tmp_path / "out", client=client).rows == summary.rows


def test_friend_tree(client, files, tmp_path):
    """One ROOT file for each input, of the same entries, with one counter for the jets."""
    import uproot

    paths, events = files
    summary = tag(paths, sum_model(), tmp_path / "out", client=client, fmt="root", chunk_size=7)
    assert len(summary.paths) == 3
    for path, e in zip(summary.paths, events, strict=True):
        with uproot.open(path) as file:
            friend = file["Events"]
            assert friend.num_entries == len(e)
            arrays = friend.arrays()
        assert arrays[SUM].tolist() == e.sums()
        assert arrays["nFatJet"].tolist() == [len(jets) for jets in e.jets]
        assert arrays["event"].tolist() == e.event
    assert tag(paths, sum_model(), tmp_path / "out", client=client, fmt="root", chunk_size=7).computed == 0


def test_vectors_without_classes(client, files, tmp_path):
    """A vector of fixed length becomes one column for each number; one of open length stays a list."""
    paths, events = files
    summary = tag(paths[2:], sum_model(classes=None), tmp_path / "sum", client=client)
    assert summary.columns == ("FatJet_sum_Y_0", "FatJet_sum_Y_1")
    features = dk.Features(codes, pad={"X": dk.Pad(3)})
    model = dk.Model("two_outputs", features=features)
    summary = tag(paths[2:], model, tmp_path / "two", client=client)
    got = ak.from_parquet(summary.paths[0])
    expected = [
        [([2.0 * c["code"] for c in jet["constituents"]] + [0.0] * 3)[:3] for jet in jets]
        for jets in events[2].jets
    ]
    assert got["FatJet_two_outputs_Y"].tolist() == expected
    assert got["FatJet_two_outputs_LENGTH"].tolist() == [[3] * len(jets) for jets in events[2].jets]
    with pytest.raises(OutputError, match=r"does not fit a TTree; write it with --format parquet"):
        tag(paths[2:], model, tmp_path / "root", client=client, fmt="root")
    assert not list((tmp_path / "root" / "scores").iterdir())


def test_no_jets_in_any_event(client, tmp_path):
    """Nothing to score sends nothing, and keeps the type."""
    path = write_root(tmp_path / "a.root", make_events(6, jets=False))
    for fmt in ("parquet", "root"):
        summary = tag([path], sum_model(), tmp_path / fmt, client=client, fmt=fmt)
        assert (summary.events, summary.rows, summary.report.requests) == (6, 0, 0)
    got = ak.from_parquet(tmp_path / "parquet" / "scores")
    assert got[SUM].tolist() == [[]] * 6
    assert str(got[SUM].type) == "6 * var * float32"


def test_missing_lists_of_jets(client, tmp_path):
    """Where the input has None, the scores have None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    jet = {"pt": 1.0, "constituents": [{"code": 5}, {"code": 6}]}
    pq.write_table(
        pa.Table.from_pylist([{"FatJet": [jet]}, {"FatJet": None}, {"FatJet": []}]), tmp_path / "a.parquet"
    )
    summary = tag([tmp_path / "a.parquet"], sum_model(), tmp_path / "out", client=client)
    assert ak.from_parquet(summary.paths[0])[SUM].tolist() == [[11.0], None, []]


def test_a_bad_partition_does_not_stop_the_others(client, files, tmp_path):
    """Bytes destroyed in the middle of a file cost its partitions only, and the error names them."""
    paths, _ = files
    big = make_events(3000, seed=3)
    path = write_root(tmp_path / "big.root", big)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 3)
        file.write(b"\xee" * (size // 4))
    with pytest.raises(InputError, match=r"big\.root entries \d+ to \d+: .*3 of 4 partitions are done"):
        tag([*paths, path], sum_model(), tmp_path / "out", client=client)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] is False
    assert [p["events"] for p in manifest["partitions"]] == [30, 0, 41]


def test_errors_leave_no_file(client, files, tmp_path):
    """An unknown model, features that do not fit and a failing model are errors of their class."""
    wrong = dk.Features(codes, pad={"X": dk.Pad(7)})
    for model, error, said in (
        (sum_model("nosuch"), ModelNotFoundError, "nosuch"),
        (dk.Model("sum", version=9, features=sum_model().features), ModelNotFoundError, "9"),
        (dk.Model("sum", features=wrong), SpecError, "16"),
        (dk.Model("fail", features=wrong), InferenceError, "fails on purpose"),
    ):
        with pytest.raises(error, match=said):
            tag(files[0][::2], model, tmp_path / model.name / "out", client=client)
        assert not list((tmp_path / model.name).rglob("*.parquet"))


def test_missing_branch(client, files, tmp_path):
    """A file without a needed branch is named before anything is scored."""
    from test_tag_cli import FEATURES

    (tmp_path / "features.yaml").write_text(FEATURES.replace("jet_code", "jet_nosuch"))
    model = dk.Model("sum", features=dk.Features.from_weaver(tmp_path / "features.yaml"))
    with pytest.raises(InputError, match=r"a\.root: lacks what the features need: .*nosuch.*code"):
        tag(files[0], model, tmp_path / "out", client=client)
    assert not (tmp_path / "out").exists()


def test_same_bytes_wherever_it_runs(client, files, tmp_path):
    """Partitions are byte-identical between runs, whichever worker made them."""
    for name in ("one", "two"):
        tag(files[0], sum_model(), tmp_path / name, client=client, chunk_size=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_worker_without_the_folder(client, files, tmp_path):
    """A worker that does not see the output folder says so."""
    from daskonic.tagging.sources import partitions, scan
    from daskonic.tagging.task import Job, tag_partition

    job = Job(sum_model(), None, str(tmp_path / "elsewhere"), "FatJet", {}, "parquet", 10)
    with pytest.raises(OutputError, match=r"is not there for the Dask worker .*shared file system"):
        client.submit(tag_partition, job, partitions(scan(files[0]), 10)[0]).result()


def test_copies_of_files_are_refused(client, files, tmp_path):
    """A copied input would count its jets twice."""
    shutil.copy(files[0][0], tmp_path / "z.root")
    with pytest.raises(InputError, match=r"z\.root: is a copy of .*a\.root"):
        tag([*files[0], tmp_path / "z.root"], sum_model(), tmp_path / "out", client=client)
