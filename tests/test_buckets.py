"""Rows of variable length travel with little padding, and no score changes by it."""

from __future__ import annotations

import logging

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import daskonic as dk
from daskonic import demo, server, tagging
from daskonic.config import resolve
from daskonic.errors import ConfigError, InferenceError, InputError, ResponseError
from daskonic.features.buckets import REQUEST_NBYTES, Buckets, Ragged, ladder
from daskonic.model import _score
from daskonic.pool import Pool
from daskonic.tensors import ModelSpec, TensorSpec
from daskonic.transport.memory import MemoryTransport

FLOAT = np.dtype("f4")
LENGTH = 64

counts_of_rows = st.lists(st.integers(0, 90), min_size=1, max_size=200).map(np.array)


class TestLadder:
    @given(st.integers(1, 2000), st.integers(0, 2000))
    def test_wastes_at_most_a_fifth_or_three_items_and_ends_at_the_full_length(self, full, length):
        steps = ladder(full)
        assert steps[-1] == full
        assert list(steps) == sorted(set(steps))
        length = min(length, full)
        padded = next(s for s in steps if s >= length)
        assert padded <= max(length * 1.25 + 1, length + 4, 4)

    def test_has_few_steps(self):
        assert len(ladder(128)) == 14
        assert len(ladder(1)) == 1


def buckets(counts, full=LENGTH, item_nbytes=72, fixed_nbytes=0):
    return Buckets([Ragged.of(counts, [("x", full, item_nbytes)])], fixed_nbytes)


class TestBatches:
    @settings(deadline=None)
    @given(
        counts_of_rows,
        st.integers(1, 50),
        st.integers(1, 40_000),
        st.sampled_from([None, (8,), (40,), (LENGTH,)]),
    )
    def test_have_every_row_once_long_enough_and_within_the_limits(self, counts, max_rows, max_nbytes, floor):
        seen = []
        for batch in buckets(counts).batches(max_rows, max_nbytes, floor):
            which = np.arange(len(counts))[batch.which]
            assert batch.n_rows == len(which) <= max_rows
            assert batch.n_rows == 1 or batch.n_rows * batch.lengths["x"] * 72 <= max_nbytes
            assert np.all(np.minimum(counts[which], LENGTH) <= batch.lengths["x"])
            assert batch.lengths["x"] in ladder(LENGTH)
            assert floor is None or batch.lengths["x"] > floor[0] or batch.lengths["x"] == LENGTH
            seen += which.tolist()
        assert sorted(seen) == list(range(len(counts)))

    @settings(deadline=None)
    @given(counts_of_rows)
    def test_rows_of_one_length_keep_their_order(self, counts):
        for batch in buckets(counts).batches(1000, 10**9):
            which = np.arange(len(counts))[batch.which]
            steps = np.searchsorted(ladder(LENGTH), np.minimum(counts[which], LENGTH))
            assert np.all((np.diff(steps) > 0) | ((np.diff(steps) == 0) & (np.diff(which) > 0)))

    def test_few_rows_share_a_request_and_many_do_not(self):
        """A request more costs something too; padding is preferred where it is cheaper."""
        rng = np.random.default_rng(1)
        few, many = (list(buckets(rng.integers(5, 60, n)).batches(1024, 2**22)) for n in (10, 10_000))
        assert len(few) == 1
        waste = sum(b.n_rows * b.lengths["x"] for b in many) / rng.integers(5, 60, 10_000).sum()
        assert waste < 1.2

    def test_padding_instead_of_a_request_is_bounded(self):
        rng = np.random.default_rng(2)
        counts = rng.integers(1, 60, 300)
        batches = list(buckets(counts).batches(1024, 2**22))
        own = sum(next(s for s in ladder(LENGTH) if s >= n) for n in counts) * 72
        sent = sum(b.n_rows * b.lengths["x"] * 72 for b in batches)
        assert sent - own <= len(batches) * REQUEST_NBYTES

    def test_rows_that_all_are_full_stay_a_range(self):
        (batch,) = buckets(np.full(10, LENGTH)).batches(100, 10**6)
        assert batch.which == slice(0, 10)


def features(mode="constant", length=LENGTH):
    """Points and a mask, padded to 64."""
    pad = {"x": dk.Pad(length, mode=mode), "mask": dk.Pad(length)}
    return dk.Features(columns, pad=pad)


def columns(jets):
    return {"x": [jets.a, jets.b], "mask": [ak.ones_like(jets.a)]}


def jets(n=500, seed=0, low=0, high=80):
    """Events with jets of ``low`` to ``high`` items."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(low, high + 1, n)
    parts = ak.zip({name: rng.normal(size=counts.sum()).astype(np.float32) for name in "ab"})
    per_event = rng.multinomial(n, np.ones(n // 2) / (n // 2))
    return ak.unflatten(ak.unflatten(parts, counts), per_event)


def masked_sum(inputs):
    return {"y": np.sum(inputs["x"] * inputs["mask"], axis=2)}


def mean_of_all_places(inputs):
    return {"y": np.mean(inputs["x"], axis=2)}


def needs_twenty(inputs):
    """Such as a search for nearest neighbours."""
    if inputs["x"].shape[2] < 20:
        raise InferenceError("k is larger than the dimension")
    return masked_sum(inputs)


def item_by_item(inputs):
    return {"y": inputs["x"][:, 0] * 2}


@pytest.fixture
def call():
    """Score in memory; gives scores, report and the shapes that were sent."""
    pools = []

    def make(function, open_lengths=(2, -1), mask=(1, -1), output=(2,)):
        shapes = []
        spec = ModelSpec(
            "m", "1", (TensorSpec("x", FLOAT, open_lengths), TensorSpec("mask", FLOAT, mask)),
            (TensorSpec("y", FLOAT, output),), 64,
        )  # fmt: skip

        def watched(inputs):
            shapes.append(inputs["x"].shape[2])
            return function(inputs)

        transport = MemoryTransport("host:1", spec, watched)
        pool = Pool(resolve(["host:1"]), lambda address, *_: transport)
        pools.append(pool)

        def score(objects, made=None, **options):
            shapes.clear()
            scores, report = _score(dk.Model("m", features=made or features(), **options), objects, pool)
            return scores, report, list(shapes)

        return score

    yield make
    for pool in pools:
        pool.close()


def expected(objects):
    return ak.concatenate(
        [ak.sum(objects[name][..., :LENGTH], axis=-1)[..., np.newaxis] for name in "ab"], axis=-1
    )


class TestTrimming:
    @pytest.mark.parametrize("mode", ["constant", "wrap"])
    def test_a_model_that_ignores_padding_gets_little_of_it(self, call, mode):
        """Every score is at its place, whatever the order in which rows were sent."""
        objects = jets()
        score = call(masked_sum)
        for _ in range(2):
            scores, report, shapes = score(objects, features(mode))
            assert ak.all(ak.num(scores) == ak.num(objects))
            assert ak.all(ak.isclose(scores, expected(objects), atol=1e-4))
        assert set(shapes) <= set(ladder(LENGTH))
        assert report.useful_nbytes == 12 * int(ak.sum(np.minimum(ak.num(ak.flatten(objects.a)), LENGTH)))
        assert report.sent_nbytes / report.useful_nbytes < 1.3

    def test_is_tried_once_per_process_and_model(self, call):
        score = call(masked_sum)
        first, second = (score(jets(seed=0))[1] for _ in range(2))
        assert first.requests > second.requests
        assert score(jets(), trim="always")[1].requests == second.requests

    def test_rows_shorter_or_longer_than_those_tried_are_tried_too(self, call):
        score = call(masked_sum)
        score(jets(low=42, high=44))
        assert min(score(jets(seed=1, low=30, high=44))[2]) < 40

    def test_a_model_that_looks_at_padding_gets_the_full_length_and_one_warning(self, call, caplog):
        objects, score = jets(), call(mean_of_all_places)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                scores, _, shapes = score(objects)
                assert ak.all(ak.isclose(scores, expected(objects) / LENGTH, atol=1e-5))
        assert set(shapes) == {LENGTH}
        (record,) = (r for r in caplog.records if r.name == "daskonic.trim")
        assert "does not ignore padding" in record.getMessage()
        assert "scores differ by up to" in record.getMessage()

    def test_a_model_that_takes_no_short_rows_gets_the_others_trimmed(self, call, caplog):
        objects = jets()
        scores, _, shapes = call(needs_twenty)(objects)
        assert ak.all(ak.isclose(scores, expected(objects), atol=1e-4))
        assert {20, 32, LENGTH} <= set(shapes)
        assert "k is larger than the dimension" in caplog.text

    def test_an_output_with_the_length_of_the_inputs_is_not_trimmed(self, call):
        objects = jets(high=60)
        scores, _, _ = call(item_by_item, output=(-1,))(objects)
        assert str(scores.type).endswith(f"var * {LENGTH} * float32")

    def test_nor_can_it_be_against_better_knowledge(self, call):
        with pytest.raises(ResponseError, match="must not depend on the length of the inputs"):
            call(item_by_item, output=(-1,))(jets(), trim="always")

    def test_always_and_never_ask_nobody(self, call):
        score = call(mean_of_all_places)
        assert min(score(jets(), trim="always")[2]) < LENGTH
        assert set(score(jets(), trim="never")[2]) == {LENGTH}

    def test_a_model_of_one_length_gets_it(self, call):
        score = call(masked_sum, open_lengths=(2, LENGTH), mask=(1, LENGTH))
        _, report, shapes = score(jets())
        assert set(shapes) == {LENGTH}
        assert report.requests == -(-500 // 64)

    def test_an_open_pad_is_trimmed_as_well(self, call):
        objects = jets(high=LENGTH)
        score = call(masked_sum)
        score(objects, features(length=None))
        scores, report, _ = score(objects, features(length=None))
        assert ak.all(ak.isclose(scores, expected(objects), atol=1e-4))
        assert report.sent_nbytes / report.useful_nbytes < 1.3

    def test_no_rows_and_only_empty_rows(self, call):
        score = call(masked_sum)
        assert str(score(jets()[:0])[0].type) == "0 * var * 2 * float32"
        scores, report, shapes = score(jets(20, high=0))
        assert not ak.any(scores)
        assert report.useful_nbytes == 0
        assert min(shapes) == 4

    def test_nan_names_its_jet_though_rows_are_ordered(self, call):
        objects = ak.to_list(jets(50, low=1))
        event = next(i for i, e in enumerate(objects) if len(e) > 2)
        objects[event][2][0]["a"] = float("nan")
        score = call(masked_sum)
        for trim in ("auto", "always", "never"):
            with pytest.raises(InputError, match=rf"index {event}, 2"):
                score(ak.Array(objects), trim=trim)

    def test_another_word_is_refused(self):
        with pytest.raises(ConfigError, match="auto, always, never"):
            dk.Model("m", trim="perhaps")


def test_collections_of_different_lengths_are_padded_each_to_its_own(call):
    """Particles and vertices: both short, whatever goes together."""
    rng = np.random.default_rng(4)
    n = 2000
    lists = {
        name: ak.unflatten(rng.normal(size=c.sum()).astype(np.float32), c)
        for name, c in (("p", rng.integers(5, 60, n)), ("v", rng.integers(0, 8, n)))
    }
    objects = ak.zip(lists, depth_limit=1)
    made = dk.Features(
        lambda o: {"x": [o.p, -o.p], "mask": [o.v]}, pad={"x": dk.Pad(LENGTH), "mask": dk.Pad(10)}
    )

    def both(inputs):
        return {"y": np.stack([inputs["x"][:, 0].sum(1), inputs["mask"][:, 0].sum(1)], 1)}

    scores, report, _ = call(both)(objects, made)
    assert np.allclose(scores[:, 0], ak.sum(objects.p, axis=1), atol=1e-4)
    assert np.allclose(scores[:, 1], ak.sum(objects.v, axis=1), atol=1e-4)
    assert report.sent_nbytes / report.useful_nbytes < 1.4


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """The shipped network in a real Triton, its features, and the jets of a file."""
    files = demo.shipped()
    repository = tmp_path_factory.mktemp("tagger")
    server.add_onnx(repository, demo.MODEL, files.model)
    made = dk.Features.from_weaver(files.features)
    with dk.local_server(repository) as triton:
        yield triton, made, tagging.read_file(files.jets[0], made).jets


def test_real_jets_travel_with_at_most_forty_percent_padding_and_score_the_same(tagger):
    """Real Triton, the shipped ParticleNet: all calls, that with the trial included."""
    triton, made, objects = tagger
    scores = {}
    for trim in ("auto", "never"):
        pending = dk.Model(demo.MODEL, features=made, servers=[triton.address], trim=trim).submit(objects)
        scores[trim] = pending.result()
        ratio = pending.report.sent_nbytes / pending.report.useful_nbytes
        assert ratio < 1.4 if trim == "auto" else ratio > 2.4
    assert float(ak.max(np.abs(scores["auto"] - scores["never"]))) < 1e-5


def test_requests_of_two_workers_are_joined_by_dynamic_batching(tagger):
    """Two pools that know nothing of each other send the same few shapes; Triton's statistics tell the rest."""
    from tritonclient.grpc import InferenceServerClient

    triton, made, objects = tagger
    models = [
        dk.Model(
            demo.MODEL,
            features=made,
            servers=[triton.address],
            batch_size=64,
            window=8,
            timeout=f"{60 + i} s",
        )
        for i in range(2)
    ]

    def rows_by_size():
        with InferenceServerClient(triton.address) as client:
            (stats,) = client.get_inference_statistics(demo.MODEL).model_stats
        return {b.batch_size: b.batch_size * b.compute_infer.count for b in stats.batch_stats}

    for model in models:
        model(objects)
    before = rows_by_size()
    pending = [model.submit(objects) for model in models]
    assert ak.all(pending[0].result() == pending[1].result())
    rows = {size: n - before.get(size, 0) for size, n in rows_by_size().items()}
    assert sum(rows.values()) >= 2 * pending[0].report.rows  # some may be asked twice
    assert sum(n for size, n in rows.items() if size > 64) >= 0.8 * sum(rows.values())
