"""A model in a coffea processor: the same numbers wherever it runs, and no branch read that it does not need."""

from __future__ import annotations

import pickle

import awkward as ak
import cloudpickle
import dask
import numpy as np
import pytest
import uproot
from coffea_parts import (
    CODES,
    EXECUTORS,
    Nano,
    Own,
    PFNano,
    Synchronous,
    TwoPhase,
    executor,
    nano_events,
    run,
    truth,
)
from distributed import Client
from jet_files import _jet, make_events, write_root
from token_gate import Gate
from triton_models import write_model

import daskonic as dk
from daskonic import demo, server
from daskonic.errors import InputError, SpecError
from daskonic.tagging import read_file

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:coffea"),
]

SMALL_NBYTES = 5_000
"""Of the graph, for each task."""


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "sum", kind="sum")
    write_model(repository, "sleep", kind="sleep", seconds=0.3, instances=2)
    server.add_onnx(repository, demo.MODEL, demo.shipped().model)
    with dk.local_server(repository) as triton:
        yield triton


@pytest.fixture(scope="module")
def client(triton):
    """Two workers of one thread, as coffea starts them."""
    with (
        dk.local_cluster(2, servers=[triton.address], threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def jets(tmp_path_factory):
    """Events and the files that hold them: PFNano, without counts and with links in random order, and NanoAODv15."""
    folder = tmp_path_factory.mktemp("jets")
    first, second = make_events(60), make_events(45, seed=2, first=1000)
    return {
        "first": first,
        "second": second,
        "pfnano": {
            "first": [write_root(folder / "a.root", first)],
            "second": [write_root(folder / "b.root", second)],
        },
        "v15": {"first": [write_root(folder / "v15.root", first, names="v15")]},
    }


@pytest.fixture
def configured(triton, monkeypatch):
    """Servers in the configuration and, for processes that start afresh, in the environment."""
    monkeypatch.setenv("DASK_DASKONIC__SERVERS", f"['{triton.address}']")
    with dask.config.set({"daskonic.servers": [triton.address]}):
        yield dk.Model("sum", features=CODES, batch_size=16)


@pytest.mark.parametrize("form", [Synchronous, TwoPhase])
@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor_gives_the_same(configured, client, jets, name, form):
    """Every score is that of its own jet, under every executor and in both forms."""
    made = run(executor(name, client), form(configured), jets["pfnano"])
    assert made == truth(first=jets["first"], second=jets["second"])


@pytest.mark.parametrize("mode", ["virtual", "eager"])
@pytest.mark.parametrize(
    ("schema", "layout"), [(PFNano, "pfnano"), (Nano, "v15"), (Nano, "pfnano"), (Own, "pfnano")]
)
def test_every_schema_and_mode_gives_the_same(configured, jets, schema, layout, mode):
    """The schema decides what jets can do, and not which constituents they have."""
    events = nano_events(jets[layout]["first"][0], schema, mode, "first")
    for form in (Synchronous, TwoPhase):
        assert (
            form(configured)(events) == truth(first=jets["first"])
            if form is TwoPhase
            else (form(configured).process(events) == truth(first=jets["first"]))
        )


def test_a_process_that_forks_under_way(configured, triton, jets):
    """Children of a process whose requests are on their way make connections of their own; its requests come back."""
    slow = dk.Model("sleep", servers=[triton.address])
    for _ in range(3):
        assert len(configured(ak.Array(jets["first"].jets))) == 60
        pending = [slow.submit(np.full((2, 3), i, np.float32)) for i in range(4)]
        made = run(executor("fork"), Synchronous(configured), jets["pfnano"])
        assert made == truth(first=jets["first"], second=jets["second"])
        for i, one in enumerate(pending):
            np.testing.assert_array_equal(one.result(), np.full((2, 3), i))


@pytest.fixture
def read(monkeypatch):
    """Names of the branches that uproot reads."""
    names, array = set(), uproot.TBranch.array

    def reading(self, *args, **kwargs):
        names.add(self.name)
        return array(self, *args, **kwargs)

    monkeypatch.setattr(uproot.TBranch, "array", reading)
    return names


LINKS = {"nFatJet", "nFatJetPFCands", "FatJetPFCands_jetIdx", "FatJetPFCands_pFCandsIdx", "nPFCands"}


def test_only_the_columns_of_the_features_are_read(configured, jets, read):
    """Of a virtual chunk: lengths, links, the one field of the constituents, and what the processor itself looks at."""
    events = nano_events(jets["pfnano"]["first"][0])
    assert not read
    Synchronous(configured).process(events)
    assert read == LINKS | {"PFCands_code", "event"}


@pytest.fixture(scope="module")
def tagger(triton):
    features = dk.Features.from_weaver(demo.shipped().features)
    return dk.Model(demo.MODEL, features=features, classes=features.labels, servers=[triton.address])


@pytest.fixture(scope="module")
def shipped(tagger):
    """A shipped file, and scores of its jets as ``daskonic tag`` reads them."""
    path = demo.shipped().jets[0]
    found = read_file(path, tagger.features, stop=40)
    return path, tagger(found.jets)


class TestJetsOfCoffea:
    """What features of named variables find in coffea's own jets."""

    def test_read_no_other_branch(self, tagger, shipped, read):
        """``tagger(events.FatJet)`` materialises what the data configuration needs of jets and constituents."""
        path, scores = shipped
        events = nano_events(path, entry_stop=40)
        made = tagger(events.FatJet)
        assert ak.to_list(made) == ak.to_list(scores)
        own = {n.removeprefix("FatJet_"): n for n in events.FatJet.fields}
        jet, constituents = tagger.features.fields(own, events.PFCands.fields)
        assert read == LINKS | {f"FatJet_{n}" for n in jet} | {f"PFCands_{n}" for n in constituents}

    @pytest.mark.parametrize("mode", ["virtual", "eager"])
    def test_selected_jets(self, tagger, shipped, mode):
        """Before and after the constituents are linked, by events and by jets, sorted, and one of each event."""
        path, scores = shipped
        events = nano_events(path, mode=mode, entry_stop=40)
        linked, keep = dk.link_constituents(events), events.FatJet.pt > 600
        order = ak.argsort(events.FatJet.pt, ascending=True)
        assert ak.to_list(tagger(linked[keep])) == ak.to_list(scores[keep])
        assert ak.to_list(tagger(linked[order])) == ak.to_list(scores[order])
        assert ak.to_list(tagger(ak.firsts(linked))) == ak.to_list(ak.firsts(scores))
        assert ak.to_list(tagger(dk.link_constituents(events[5:20]))) == ak.to_list(scores[5:20])
        assert ak.to_list(tagger(events.FatJet[keep])) == ak.to_list(scores[keep])  # coffea's own property
        assert ak.to_list(tagger(events[5:20].FatJet)) == ak.to_list(scores[5:20])

    def test_wrong_counts_are_found(self, tagger, triton, tmp_path):
        """Where links are not stored jet by jet, coffea's constituents are other jets'; that is an error, and ours are right."""
        events = make_events(30, seed=3)
        jets = ak.Array(
            [[{k: v for k, v in jet.items() if k != "constituents"} for jet in one] for one in events.jets]
        )
        counts = ak.Array([[len(jet["constituents"]) for jet in one] for one in events.jets])
        numbers = {n: ak.values_astype(jets[n], np.float32) for n in ("pt", "eta", "phi", "mass")}
        path = write_root(tmp_path / "mixed.root", events, FatJet=ak.zip(numbers | {"nConstituents": ak.values_astype(counts, np.int32)}))  # fmt: skip
        coffeas = nano_events(path)
        model = dk.Model("sum", features=CODES, servers=[triton.address])
        assert ak.to_list(model(dk.link_constituents(coffeas))[..., 0]) == events.sums()
        with pytest.raises(InputError, match="dk.link_constituents"):
            tagger(coffeas.FatJet[coffeas.FatJet.pt > 300])

    def test_none_is_told(self, tagger, jets, tmp_path):
        """Selected jets of a file without counts, jets without links: what is missing, and what to call."""
        events = nano_events(jets["pfnano"]["first"][0])
        with pytest.raises(SpecError, match="first jets = dk.link_constituents"):
            tagger(events.FatJet[events.FatJet.pt > 300])
        bare = nano_events(write_root(tmp_path / "bare.root", jets["first"], FatJetPFCands=None))
        with pytest.raises(InputError, match="no FatJetPFCands"):
            dk.link_constituents(bare)
        with pytest.raises(InputError, match="no jets Jet; the events have"):
            dk.link_constituents(bare, "Jet")

    def test_an_index_outside_its_event_is_told(self, jets, tmp_path):
        wrong = ak.zip({"jetIdx": ak.Array([[0], [7]]), "pFCandsIdx": ak.Array([[0], [0]])})
        wrong = ak.values_astype(wrong, np.int32)
        two = make_events(2, seed=5)
        two.jets = [[_jet(np.random.default_rng(1), 1)]] * 2
        path = write_root(tmp_path / "wrong.root", two, FatJetPFCands=wrong)
        with pytest.raises(InputError, match="event 1 of these has a jet index 7"):
            dk.link_constituents(nano_events(path))


class TestGraphs:
    """What travels with a task."""

    def test_nothing_live_is_pickled(self, tagger, shipped):
        """A model that was used is as small and as free of connections as a new one."""
        used = pickle.dumps(tagger)
        assert len(used) < SMALL_NBYTES
        assert tagger.pool().stats().requests_total > 0
        copy = pickle.loads(used)
        assert b"pool" not in used
        assert vars(copy).keys() == vars(dk.Model(demo.MODEL, servers=["a:1"])).keys()

    def test_a_task_is_small(self, tagger, configured, client, jets, monkeypatch):
        """Under 5 kB for each task: in a graph of dask.delayed, and in what coffea's executor submits."""
        graph = dict(dask.delayed(tagger)(dask.delayed(len)([1])).__dask_graph__())
        assert max(len(cloudpickle.dumps(task)) for task in graph.values()) < SMALL_NBYTES
        assert len(cloudpickle.dumps(Synchronous(tagger))) < SMALL_NBYTES
        sizes, submit = [], client.map

        def mapped(function, items, **options):
            listed = list(items)  # a work item with the processor's future, or futures to merge
            work = [item[0] if isinstance(item, tuple) else None for item in listed]
            sizes.extend(len(cloudpickle.dumps((function, one))) for one in work)
            return submit(function, listed, **options)

        monkeypatch.setattr(client, "map", mapped)
        run(executor("dask", client), Synchronous(configured), jets["pfnano"])
        assert len(sizes) > 4  # the chunks, and what merges them, once or more often
        assert max(sizes) < SMALL_NBYTES

    def test_metadata_is_fetched_once_by_each_worker(self, triton):
        """A thousand tasks on two workers of two threads: two descriptions, counted at the server."""
        x = np.ones((1, 16), np.float32)
        with Gate(triton.address) as gate:
            model = dk.Model("sum", servers=[gate.address], shared_memory="never")
            with (
                dk.local_cluster(2, servers=[triton.address], threads_per_worker=2) as cluster,
                Client(cluster) as client,
            ):
                done = client.gather(client.map(lambda i: float(model(x * i)[0, 0]), range(1000), pure=False))
            assert done == [16.0 * i for i in range(1000)]
            assert gate.methods["ModelMetadata"] == gate.methods["ModelConfig"] == 2
            assert gate.methods["ModelInfer"] == 1000 + 2  # and each worker had a sample scored
