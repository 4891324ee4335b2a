"""A model that is elsewhere behaves as a local function: same nesting, no row lost, swapped or filled in."""

from __future__ import annotations

import pickle
import threading

import awkward as ak
import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import daskonic as dk
from daskonic.config import resolve
from daskonic.errors import (
    ConfigError,
    DeadlineError,
    InferenceError,
    InputError,
    ModelNotFoundError,
    SpecError,
    UnavailableError,
)
from daskonic.features import split
from daskonic.model import _score
from daskonic.pool import Pool
from daskonic.tensors import ModelSpec, TensorSpec
from daskonic.transport.memory import MemoryTransport

FLOAT = np.dtype("f4")


@pytest.fixture(scope="module")
def server(triton):
    return [triton.address]


def jets(n_events=300, seed=0):
    """Jets whose 16 numbers tell which they are."""
    counts = np.random.default_rng(seed).integers(0, 5, n_events)
    rows = np.arange(counts.sum() * 16, dtype=np.float32).reshape(-1, 16) / 16
    return ak.unflatten(ak.from_numpy(rows, regulararray=True), counts)


def expected(array):
    """What the model ``sum`` gives for each row."""
    total = ak.sum(array, axis=-1)
    return total, -total


class TestNesting:
    """The real server scores every row, and each score comes back to its place."""

    def test_jagged(self, server):
        array = jets()
        scores = dk.Model("sum", servers=server, batch_size=32)(array)
        total, minus = expected(array)
        assert str(scores.type) == "300 * var * 2 * float32"
        assert ak.all(ak.num(scores) == ak.num(array))
        assert ak.all(ak.isclose(scores[..., 0], total))
        assert ak.all(ak.isclose(scores[..., 1], minus))

    def test_three_levels_deep(self, server):
        array = ak.unflatten(jets(), [100, 0, 200])
        scores = dk.Model("sum", servers=server)(array)
        assert str(scores.type) == "3 * var * var * 2 * float32"
        assert ak.all(ak.isclose(scores[..., 0], expected(array)[0]))

    def test_none_stays_none(self, server):
        array = jets(20)
        array = ak.mask(array, ak.sum(array, axis=-1) % 2 > 0.5)
        scores = dk.Model("sum", servers=server)(array)
        assert ak.to_list(ak.is_none(scores, axis=1)) == ak.to_list(ak.is_none(array, axis=1))
        assert ak.all(ak.isclose(scores[..., 0], expected(array)[0]))

    def test_numpy(self, server):
        array = np.random.default_rng(0).normal(size=(7, 3, 16)).astype(np.float32)
        scores = dk.Model("sum", servers=server)(array)
        assert isinstance(scores, np.ndarray)
        assert scores.shape == (7, 3, 2)
        np.testing.assert_allclose(scores[..., 0], array.sum(axis=-1), rtol=1e-5)

    def test_virtual(self, server):
        array = jets(20)
        form, length, buffers = ak.to_buffers(array)
        asked = []

        def later(key):
            def generate():
                asked.append(key)
                return buffers[key]

            return generate

        virtual = ak.from_buffers(form, length, {key: later(key) for key in buffers})
        assert not asked
        scores = dk.Model("sum", servers=server)(virtual)
        assert asked
        assert ak.all(ak.isclose(scores[..., 0], expected(array)[0]))

    def test_an_empty_partition_sends_nothing_and_keeps_its_type(self, server):
        model = dk.Model("sum", servers=server)
        for none in (jets()[:0], ak.drop_none(ak.mask(jets(4), [False] * 4))):
            pending = model.submit(none)
            assert str(pending.result().type) == f"{len(none)} * var * 2 * float32"
            assert pending.report.requests == 0
        assert model(np.empty((0, 16), np.float32)).shape == (0, 2)

    def test_no_jets_in_any_event(self, server):
        scores = dk.Model("sum", servers=server)(ak.unflatten(jets(1)[0][:0], [0, 0, 0]))
        assert str(scores.type) == "3 * var * 2 * float32"


class TestOutputs:
    def test_several_are_a_record(self, server):
        made = dk.Model("two_outputs", servers=server)(np.ones((5, 3), np.float32))
        assert made.fields == ["Y", "LENGTH"]
        assert ak.to_list(made.LENGTH) == [[3]] * 5

    def test_some_can_be_chosen(self, server):
        made = dk.Model("two_outputs", servers=server, outputs=["LENGTH"])(np.ones((5, 3), np.float32))
        np.testing.assert_array_equal(made, np.full((5, 1), 3))

    def test_classes_name_the_last_dimension(self, server):
        array = jets(10)
        made = dk.Model("sum", servers=server, classes=["plus", "minus"])(array)
        assert made.fields == ["plus", "minus"]
        assert ak.all(made.plus == -made.minus)
        assert ak.all(ak.num(made.plus) == ak.num(array))

    @pytest.mark.parametrize("wrong", [{"classes": ["a", "b", "c"]}, {"outputs": ["Z"]}])
    def test_others_are_refused_with_what_there_is(self, server, wrong):
        with pytest.raises(SpecError, match="Y"):
            dk.Model("sum", servers=server, **wrong)(jets(2))


class TestBatches:
    """What is sent, seen by a transport in memory."""

    @pytest.fixture
    def call(self):
        pools = []

        def make(n_rows, max_batch_size=8, delay_s=0.0, n_servers=1, **settings):
            spec = ModelSpec(
                "m", "1", (TensorSpec("x", FLOAT, (2,)),), (TensorSpec("y", FLOAT, (2,)),), max_batch_size
            )
            transports = {
                f"host{i}:1": MemoryTransport(f"host{i}:1", spec, lambda x: {"y": x["x"] * 2}, delay_s)
                for i in range(n_servers)
            }
            counted = {"tolerance": np.inf}  # no request but those of the test
            pool = Pool(resolve(list(transports), **(counted | settings)), transports.__getitem__)
            pools.append(pool)
            array = np.arange(2 * n_rows, dtype=np.float32).reshape(-1, 2)
            scores, report = _score(dk.Model("m"), array, pool)
            np.testing.assert_array_equal(scores, array * 2)
            return list(transports.values()), report

        yield make
        for pool in pools:
            pool.close()

    def test_the_last_is_as_short_as_it_is(self, call):
        (transport,), report = call(19)
        assert sorted(transport.rows, reverse=True) == [8, 8, 3]
        assert report.requests == 3
        assert report.sent_nbytes == 19 * 8

    def test_none_is_larger_than_a_message_may_be(self, call):
        (transport,), _ = call(100, max_batch_size=1000, batch_bytes="80 B")
        assert max(transport.rows) == 10

    def test_several_are_in_flight_and_no_more_than_the_window(self, call):
        (transport,), _ = call(80, delay_s=0.02, window=3)
        assert transport.most_in_flight == 3

    def test_several_servers_share_them(self, call):
        transports, report = call(400, delay_s=0.005, n_servers=3)
        assert all(t.rows for t in transports)
        assert sum(report.endpoints.values()) == 50

    @given(st.integers(0, 1000), st.integers(1, 100))
    def test_split_covers_every_row_once(self, n_rows, size):
        rows = [i for batch in split(n_rows, size) for i in range(n_rows)[batch]]
        assert rows == list(range(n_rows))


class TestErrors:
    def test_unknown_model_and_version(self, server):
        with pytest.raises(ModelNotFoundError, match=r"no model 'summ'.*sum"):
            dk.Model("summ", servers=server)(jets(2))
        with pytest.raises(ModelNotFoundError, match="no model 'sum' in version '7'"):
            dk.Model("sum", version=7, servers=server)(jets(2))

    def test_wrong_features_are_found_before_anything_is_sent(self, server):
        model = dk.Model("sum", servers=server)
        before = model.pool().stats().requests_total
        with pytest.raises(
            SpecError, match=r"rows of input X have shape \[15\]; the model takes X: float32\[16\]"
        ):
            model(np.ones((4, 15), np.float32))
        with pytest.raises(SpecError, match="needs at least 2 dimensions"):
            model(np.ones(16, np.float32))
        with pytest.raises(SpecError, match="complex"):
            model(np.ones((4, 16), np.complex64))
        assert model.pool().stats().requests_total == before

    def test_nan_is_an_error_that_names_the_jet(self, server):
        array = ak.to_list(jets(5, seed=3))
        event = next(i for i, e in enumerate(array) if len(e) > 1)
        array[event][1][4] = float("nan")
        with pytest.raises(InputError, match=rf"index {event}, 1"):
            dk.Model("sum", servers=server)(ak.Array(array))

    def test_a_model_without_a_batch_dimension_needs_to_be_declared(self, server):
        x = np.ones((4, 3), np.float32)
        with pytest.raises(SpecError, match="batch_size=N"):
            dk.Model("graph", servers=server)(x)
        np.testing.assert_array_equal(dk.Model("graph", servers=server, batch_size=2)(x), x)

    def test_a_failing_model_says_what_the_server_said(self, server):
        with pytest.raises(InferenceError, match="fails on purpose"):
            dk.Model("fail", servers=server)(np.ones((2, 3), np.float32))

    def test_a_request_has_a_deadline(self, server):
        model = dk.Model("sleep", servers=server, timeout="0.3 s")
        with pytest.raises(DeadlineError):
            model(np.ones((2, 3), np.float32))

    def test_no_server_there(self):
        with pytest.raises(UnavailableError, match="127.0.0.1:9"):
            dk.Model("sum", servers=["127.0.0.1:9"], connect_timeout="0.3 s")(jets(2))

    def test_no_server_named(self):
        with dask.config.set({"daskonic.servers": []}), pytest.raises(ConfigError, match=r"InferencePlugin"):
            dk.Model("sum")(jets(2))

    @pytest.mark.parametrize("wrong", [{"window": 3}, {"batch_size": 0}])
    def test_settings_that_mean_nothing(self, wrong):
        with pytest.raises(ConfigError):
            dk.Model("sum", **wrong)


class TestHandle:
    def test_is_small_and_survives_pickling(self, server):
        model = dk.Model("sum", servers=server)
        model(jets(5))
        text = pickle.dumps(model)
        assert len(text) < 2000
        assert ak.all(pickle.loads(text)(jets(5)) == model(jets(5)))

    def test_asks_for_the_model_once(self, server):
        model = dk.Model("two_outputs", servers=server, window=5)
        assert model.spec() is model.spec()
        assert model.spec().version == "1"

    def test_a_closed_pool_is_not_used_again(self, server):
        model = dk.Model("sum", servers=server, window=7)
        model.pool().close()
        assert len(model(np.ones((2, 16), np.float32))) == 2

    def test_submit_returns_at_once_and_reports(self, server):
        model = dk.Model("sleep", servers=server)
        pending = [model.submit(np.full((2, 3), i, np.float32)) for i in range(2)]
        assert not pending[0].done()
        for i, p in enumerate(pending):
            np.testing.assert_array_equal(p.result(), np.full((2, 3), i))
            assert p.done()
        report = dk.Report.merge(p.report for p in pending)
        assert (report.rows, report.requests, report.retries) == (4, 2, 0)
        assert dict(report.endpoints) == {server[0]: 2}
        assert (report.model, report.model_version) == ("sleep", "1")
        assert report.stages_s["infer"] > 0

    def test_is_used_from_many_threads(self, server):
        model, array, wrong = dk.Model("sum", servers=server, batch_size=16), jets(), []

        def use():
            if not ak.all(ak.isclose(model(array)[..., 0], expected(array)[0])):
                wrong.append(1)

        threads = [threading.Thread(daemon=True, target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class TestFailurePolicy:
    """Rows that cannot be scored are an error, or missing and counted; never a number."""

    def half_failing(self, n_rows=20):
        """Batches that hold row 5 or 17 fail for good."""
        spec = ModelSpec("m", "1", (TensorSpec("x", FLOAT, (1,)),), (TensorSpec("y", FLOAT, (2,)),), 4)

        def answer(x):
            if np.isin(x["x"], (5.0, 17.0)).any():
                raise InferenceError("not these")
            return {"y": np.concatenate([x["x"], -x["x"]], axis=1)}

        transport = MemoryTransport("host:1", spec, answer)
        return Pool(resolve(["host:1"]), lambda _: transport)

    @pytest.mark.parametrize("nested", [False, True])
    def test_mask_puts_none_in_the_place_of_rows(self, nested):
        pool = self.half_failing()
        array = np.arange(20, dtype=np.float32).reshape(-1, 1)
        jagged = ak.unflatten(ak.from_numpy(array, regulararray=True), [3, 0, 10, 7])
        scores, report = _score(dk.Model("m", on_failure="mask"), jagged if nested else array, pool)
        flat = ak.to_list(ak.flatten(scores) if nested else scores)
        lost = {4, 5, 6, 7, 16, 17, 18, 19}
        assert flat == [None if i in lost else [i, -i] for i in range(20)]
        assert report.masked == 8
        if nested:
            assert ak.to_list(ak.num(scores)) == [3, 0, 10, 7]
        pool.close()

    def test_raise_is_the_default(self):
        pool = self.half_failing()
        with pytest.raises(InferenceError, match="not these"):
            _score(dk.Model("m"), np.arange(20, dtype=np.float32).reshape(-1, 1), pool)
        pool.close()

    def test_other_policies_are_refused(self):
        with pytest.raises(ConfigError, match="there are raise, mask"):
            dk.Model("m", on_failure="zero")


def test_the_report_tells_the_servers_times_and_cut_rows(server):
    """Queue and compute come from the server's statistics; rows longer than the input are counted."""
    model = dk.Model("sum", servers=server, features=dk.Features(lambda x: {"X": x}, pad={"X": dk.Pad(16)}))
    pending = model.submit(ak.Array([[1.0] * 20, [2.0] * 16, [3.0], []]))
    np.testing.assert_allclose(ak.to_numpy(pending.result())[:, 0], [16, 32, 3, 0])
    assert pending.report.cut == 1
    assert pending.report.server_s["compute"] > 0
    assert pending.report.server_s["queue"] >= 0
