"""Two-phase processors: chunks wait for servers beside one another, as many as they may."""

from __future__ import annotations

import time
from itertools import pairwise

import awkward as ak
import pytest
from coffea_parts import CODES, PFNano, executor, nano_events, run
from distributed import Client
from faults import eventually
from jet_files import make_events, write_root
from triton_models import write_model

import daskonic as dk
from daskonic.errors import InferenceError

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:coffea")

HELD = 3


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "sum", kind="sum")
    write_model(repository, "slow", kind="sum", fixed_ms=150, instances=4)
    write_model(repository, "fail", kind="fail")
    with dk.local_server(repository) as triton:
        yield triton


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("jets") / "jets.root", make_events(160))


class Timed(dk.TwoPhaseProcessor):
    """Tells when each phase of a chunk began and ended, by the clock of its worker."""

    def __init__(self, model):
        self.model = model

    def acquire(self, events):
        self.spans = [time.monotonic()]
        pending = self.model.submit(dk.link_constituents(events))
        self.spans.append(time.monotonic())
        return pending

    def produce(self, events, scores):
        self.spans.append(time.monotonic())
        ak.to_list(events.FatJet.mass)  # not read before: the file is open
        self.spans.append(time.monotonic())
        return {"chunks": [tuple(self.spans)]}


def most_between(chunks, begin, end):
    """How many chunks at most were between two of their moments."""
    return max(sum(c[begin] <= one[begin] < c[end] for c in chunks) for one in chunks)


@pytest.mark.parametrize("name", ["dask", "threads"])
def test_the_next_chunk_is_read_while_the_last_is_scored(triton, path, name):
    """On one Dask worker of one thread, and in two threads: several chunks wait together, no more than may, and the phases of one thread take turns."""
    settings = {"partitions_held": HELD}
    if name == "threads":
        made = run(executor(name), Timed(model(triton, **settings)), {"jets": [path]}, chunksize=16)
        assert most_between(made["chunks"], 0, 3) == 2
        return
    with (
        dk.local_cluster(1, servers=[triton.address], threads_per_worker=1, settings=settings) as cluster,
        Client(cluster) as client,
    ):
        made = run(executor(name, client), Timed(model(triton, **settings)), {"jets": [path]}, chunksize=16)
    chunks = made["chunks"]
    assert len(chunks) == 10
    assert 2 <= most_between(chunks, 1, 2) <= HELD + 1
    phases = sorted([c[:2] for c in chunks] + [c[2:] for c in chunks])
    assert all(end <= begin for (_, end), (begin, _) in pairwise(phases))


def model(triton, name="slow", **settings):
    return dk.Model(name, features=CODES, servers=[triton.address], **settings)


class Two(dk.TwoPhaseProcessor):
    """Two models."""

    def __init__(self, first, second):
        self.first, self.second = first, second
        self.together = False

    def acquire(self, events):
        jets = dk.link_constituents(events)
        pending = {"first": self.first.submit(jets), "second": self.second.submit(jets)}
        self.together = eventually(lambda: self.first.pool().stats().in_flight == 2, 5, 0.001)
        return pending

    def produce(self, events, scores):
        return scores


def test_several_models_are_in_flight_together(triton, path):
    """What acquire gives by name, produce gets by name; requests of both are under way at one time."""
    two = Two(model(triton, window=4), model(triton, window=4))
    events = nano_events(path, PFNano, entry_stop=10)
    scores = two(events)
    assert two.together
    assert set(scores) == {"first", "second"}
    right = make_events(160).sums()[:10]
    assert ak.to_list(scores["first"][..., 0]) == ak.to_list(scores["second"][..., 0]) == right


def test_errors_are_those_of_the_model(triton, path):
    """An error of one model ends the chunk, with its class."""
    with pytest.raises(InferenceError, match="fails on purpose"):
        Two(model(triton), model(triton, "fail"))(nano_events(path, PFNano, entry_stop=10))


def test_nothing_without_both_phases():
    """A processor that lacks a phase cannot be made."""

    class Half(dk.TwoPhaseProcessor):
        def acquire(self, events):
            return {}

    with pytest.raises(TypeError, match="produce"):
        Half()
