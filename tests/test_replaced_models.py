"""A model is replaced on its server in the middle of a run: no scores of two models are ever taken for those of one."""

from __future__ import annotations

import json

import awkward as ak
import numpy as np
import pytest
from distributed import Client
from faults import FaultyServer
from jet_files import make_events, write_root
from test_planted_faults import PLACES, write_network, write_scale
from test_tag import sum_model

import daskonic as dk
from daskonic import errors, server
from daskonic.config import resolve
from daskonic.provenance import lock, verify
from daskonic.tagging import tag

ROWS = np.random.default_rng(3).normal(size=(60, 3)).astype("f4")


@pytest.fixture
def model():
    """Makes a model, with a pool of its own."""
    made = []

    def make_model(name, **options):
        made.append(dk.Model(name, connect_timeout="9 s", **options))
        return made[-1]

    yield make_model
    for one in made:
        one.pool().close()


def write_sum(path, factor):
    """A network that gives the sum of 16 numbers times a factor, and less that."""
    weights = ", ".join(PLACES * [f"{factor}, {-factor}"])
    text = f"(float[N, {PLACES}] X) => (float[N, 2] Y) <float[{PLACES}, 2] w = {{{weights}}}> {{ Y = MatMul(X, w) }}"
    return write_network(path, text)


class Replaceable(FaultyServer):
    """A server whose models get other weights, or another version, while it runs."""

    def __init__(self, repository):
        self.write = {"scale": write_scale, "sum": write_sum}
        self.files = repository.parent
        for name in self.write:
            self.put(name, 2.0, repository)
        super().__init__(repository)

    def put(self, name, factor, repository):
        path = self.write[name](self.files / f"{name}.onnx", factor)
        server.add_onnx(repository, name, path)

    def replace(self, name, factor):
        """Other weights under the same number; no request fails."""
        self.put(name, factor, self.repository)
        self.load(name)

    def renumber(self, name):
        """Version 2 takes the place of version 1."""
        (self.repository / name / "1").rename(self.repository / name / "2")
        self.load(name)


@pytest.fixture
def replaceable(tmp_path):
    """Two networks on a server of its own."""
    running = Replaceable(tmp_path / "r")
    yield running
    running.stop()


def score_until_error(run):
    """Whatever the scores are."""
    for _ in range(20_000):
        run(ROWS)


@pytest.mark.parametrize("locked", [True, False])
def test_other_weights_take_the_place_of_a_version(model, replaceable, tmp_path, locked):
    """Under the same number: noticed in some seconds by the server's own account, which begins anew."""
    if locked:
        lock(model("scale", servers=[replaceable.address]), ROWS).write(tmp_path / "scale.lock")
    own = {"locks": [tmp_path / "scale.lock"]} if locked else {}
    run = model("scale", servers=[replaceable.address], **own)
    np.testing.assert_array_equal(run(ROWS), 2 * ROWS)
    replaceable.replace("scale", 3.0)
    if locked:
        kind, said = errors.ModelNotFoundError, r"daskonic\.locks says: its answers to the probe differ"
    else:
        kind, said = (
            errors.ServerError,
            "otherwise than before: model 'scale', version 1, was replaced during",
        )
    with pytest.raises(kind, match=said):
        score_until_error(run)


def test_same_weights_are_loaded_anew(model, replaceable):
    """That is no mistake, and no run ends by it."""
    run = model("scale", servers=[replaceable.address])
    for i in range(400):
        if i in (50, 200):
            replaceable.replace("scale", 2.0)
        assert np.array_equal(run(ROWS), 2 * ROWS)


@pytest.fixture(scope="module")
def client():
    """A worker process of one thread; its models name their servers."""
    with (
        dk.local_cluster(1, servers=["127.0.0.1:9"], threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def job(client, tmp_path):
    """Files, what their scores are, and a function that tags them while something is done after the third partition."""
    events = make_events(60)
    path = write_root(tmp_path / "a.root", events)

    def run(model, act=None):
        def progress(done):
            if done.partitions == 3 and act is not None:
                act()

        return tag([path], model, tmp_path / "out", client=client, chunk_size=5, progress=progress)

    run.output = tmp_path / "out"
    run.expected = {
        i: [[2 * s for s in jets] for jets in events.sums()[5 * i : 5 * i + 5]] for i in range(12)
    }
    return run


def assert_right(job):
    """What the folder has of finished partitions is right; how many they are."""
    lines = (job.output / "partitions.jsonl").read_text().splitlines()
    records = {r["index"]: r for r in map(json.loads, lines)}
    for i, record in records.items():
        assert ak.from_parquet(job.output / record["path"])["FatJet_sum_all"].tolist() == job.expected[i]
    return len(records)


def test_tag_while_other_weights_take_the_place(model, job, replaceable, tmp_path):
    """With a lock every partition is finished only if its servers still have the model; what was finished can be continued."""
    locked = lock(model("sum", servers=[replaceable.address]))
    locked.write(tmp_path / "sum.lock")
    tagger = sum_model(servers=[replaceable.address], locks=[tmp_path / "sum.lock"])
    with pytest.raises(errors.ModelNotFoundError, match="its answers to the probe differ by up to"):
        job(tagger, lambda: replaceable.replace("sum", 3.0))
    assert 3 <= assert_right(job) < 12
    assert [v.state for v in verify(locked, resolve([replaceable.address]))] == ["other"]
    replaceable.replace("sum", 2.0)
    summary = job(tagger)
    assert assert_right(job) == 12
    assert summary.report.fingerprint == locked.fingerprint


def test_tag_while_another_version_takes_the_place(job, replaceable):
    """No partition has scores of two versions, the error names both, and the folder stays that of the first."""
    tagger = sum_model(servers=[replaceable.address], timeout="20 s")
    with pytest.raises(
        errors.DaskonicError, match=r"version 2 has taken the place of version 1 of model 'sum'"
    ):
        job(tagger, lambda: replaceable.renumber("sum"))
    assert 3 <= assert_right(job) < 12
    with pytest.raises(errors.OutputError, match=r"model version is 1 there and 2 now"):
        job(sum_model(servers=[replaceable.address], version=2))
