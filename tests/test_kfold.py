"""Models of several folds answer as one, and no event is scored by a model that was trained on it."""

from __future__ import annotations

import time

import awkward as ak
import cloudpickle
import numpy as np
import onnx
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from triton_models import write_model

import daskonic as dk
from daskonic.errors import ConfigError, InputError, SpecError
from daskonic.server import add_onnx

K = 5
STEP = 1000.0


def signed(number):
    """A network that adds 1000 times its number to the first of two numbers, so that a score tells who made it."""
    shift = numpy_helper.from_array(np.array([STEP * number, 0], np.float32), "shift")
    inputs = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 2])
    outputs = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph(
        [helper.make_node("Add", ["X", "shift"], ["Y"])], "signed", [inputs], [outputs], [shift]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Triton with versions 1 to 5 of ``signed``, and two slow models."""
    folder = tmp_path_factory.mktemp("folds")
    for number in range(1, K + 1):
        onnx.save(signed(number), folder / "signed.onnx")
        add_onnx(folder / "models", "signed", folder / "signed.onnx", version=number)
    for name in ("slow_a", "slow_b"):
        write_model(folder / "models", name, kind="sleep", seconds=0.5)
    with dk.local_server(folder / "models") as server:
        yield server


def models(server, **options):
    """Model k, version k + 1, held out fold k."""
    return [dk.Model("signed", version=k + 1, servers=[server.address], **options) for k in range(K)]


def five(server, **options):
    return dk.KFold(lambda number: number % K, held_out=dict(enumerate(models(server, **options))))


def jagged(counts):
    """Jets with their number, n_events * var * 2."""
    rows = np.arange(2 * sum(counts), dtype=np.float32).reshape(-1, 2)
    return ak.unflatten(ak.from_numpy(rows, regulararray=True), np.array(counts, int))


def same(one, other):
    """Equal in type, None, and value."""
    assert str(ak.type(one)) == str(ak.type(other))
    assert ak.to_list(one) == ak.to_list(other)


def by_hand(array, numbers, server, **options):
    """Each event by itself, by the model that held it out."""
    made = models(server, **options)
    parts = [made[n % K](array[i : i + 1]) for i, n in enumerate(numbers)]
    return ak.concatenate(parts) if parts else made[0](array)


@settings(deadline=None, max_examples=25)
@given(
    events=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 3)), max_size=12),
    shape=st.sampled_from(["jagged", "masked jets", "masked events", "numpy", "leading", "deeper"]),
    classes=st.sampled_from([None, ("top", "qcd")]),
)
def test_equals_each_event_by_its_own_model(server, events, shape, classes):
    """Order, nesting, None and type are those of one model, whatever the events."""
    numbers = np.array([number for number, _ in events], np.int64)
    array = jagged([count for _, count in events])
    if shape == "masked jets":
        array = ak.mask(array, array[..., 0] % 4 < 2)
    elif shape == "masked events":
        array = ak.mask(array, numbers % 3 > 0)
    elif shape == "numpy":
        array = np.arange(2.0 * len(events), dtype=np.float32).reshape(-1, 2)
    elif shape == "leading":
        array = ak.firsts(array)
    elif shape == "deeper":
        array = ak.singletons(array, axis=1)
    pending = five(server, classes=classes).submit(array, numbers)
    scores = pending.result()
    expected = by_hand(array, numbers, server, classes=classes)
    if shape == "numpy" and classes is None:
        assert isinstance(scores, np.ndarray)
        np.testing.assert_array_equal(scores, np.asarray(expected))
    else:
        same(scores, expected)
    assert pending.done()
    assert pending.report.rows == ak.count(array) // 2


def test_variations_and_folds_together(server):
    """Each variation with its own selection of events; rows that are equal and of the same fold are sent once."""
    numbers = np.arange(40)
    nominal = jagged([n % 4 for n in numbers])
    up = ak.where(ak.local_index(nominal, axis=1)[..., None] == 1, nominal + np.float32(0.5), nominal)
    chosen = numbers % 3 > 0
    variations = dk.Variations(nominal=nominal, up=up[chosen])
    tagger = five(server)
    pending = tagger.submit(variations, {"nominal": numbers, "up": numbers[chosen]})
    scores = pending.result()
    same(scores["nominal"], tagger(nominal, numbers))
    same(scores["up"], tagger(up[chosen], numbers[chosen]))
    moved = int(ak.sum(ak.num(up[chosen]) >= 2))
    n_nominal, n_up = (int(ak.sum(ak.num(v))) for v in variations.values())
    assert (pending.report.rows, pending.report.saved) == (n_nominal + moved, n_up - moved)
    same(tagger(dk.Variations(a=nominal, b=up), numbers)["b"], tagger(up, numbers))
    with pytest.raises(SpecError, match="events of nominal, and objects of nominal, up"):
        tagger(variations, {"nominal": numbers})


@pytest.mark.parametrize("form", ["mapping", "list", "array"])
def test_features_are_made_once(server, form):
    """A function is called once for all folds, or once for each variation, and its rows still go to the right models."""
    calls = []

    def features(jets):
        calls.append(len(jets))
        columns = [jets[..., 0], jets[..., 1]]
        return {"mapping": {"X": jets}, "list": {"X": columns}, "array": jets}[form]

    numbers, jets = np.arange(12), jagged([n % 4 for n in range(12)])
    tagger = five(server, features=dk.Features(features))
    same(tagger(jets, numbers), five(server)(jets, numbers))
    assert calls == [12]
    both = tagger(dk.Variations(a=jets, b=jets[:7] + np.float32(1)), {"a": numbers, "b": numbers[:7]})
    same(both["b"], five(server)(jets[:7] + np.float32(1), numbers[:7]))
    assert calls == [12, 12, 7]


def test_features_that_make_another_list(server):
    """What a function makes is not cut into folds where it does not begin with the events: it is called for each fold."""
    flat = dk.Features(lambda jets: ak.flatten(jets, axis=1))
    made = [dk.Model("signed", version=k + 1, servers=[server.address], features=flat) for k in range(K)]
    tagger = dk.KFold(lambda number: number % K, held_out=dict(enumerate(made)))
    numbers, jets = np.arange(12), jagged([n % 4 for n in range(12)])
    with pytest.raises(SpecError):  # as without folds: the features lose the events
        made[0](jets)
    with pytest.raises(SpecError):
        tagger(jets, numbers)


def test_models_are_asked_together(server):
    """Two models of half a second each, with each fold's events, are done in less than both after each other."""
    slow = [dk.Model(name, servers=[server.address]) for name in ("slow_a", "slow_b")]
    tagger = dk.KFold(lambda number: number % 2, trained_on={0: slow[0], 1: slow[1]})
    x = np.ones((4, 3), np.float32)
    tagger(x, np.arange(4))
    begin = time.monotonic()
    pending = tagger.submit(x, np.arange(4))
    submitted = time.monotonic() - begin
    assert not pending.done()
    pool = slow[0].pool()
    most = 0
    while not pending.done():
        most = max(most, pool.stats().in_flight)
        time.sleep(0.005)
    assert most == 2
    assert submitted < time.monotonic() - begin
    np.testing.assert_array_equal(pending.result(timeout_s=5), x)


class TestWhoScores:
    """The convention: a model may score what it was not trained on, and nothing else."""

    def test_the_even_model_scores_odd_events(self, server):
        """As in the t t̄ analysis of the Analysis Grand Challenge."""
        even, odd, *_ = models(server)
        numbers = np.array([3, 8, 5, 2])
        scores = dk.KFold(lambda n: n % 2, trained_on={0: even, 1: odd})(np.zeros((4, 2), "f4"), numbers)
        np.testing.assert_array_equal(scores[:, 0], [STEP, 2 * STEP, STEP, 2 * STEP])

    def test_both_declarations_mean_the_same(self, server):
        """Three models that saw two folds each, by what they saw and by what they did not."""
        a, b, c, *_ = models(server)
        x, numbers = np.zeros((9, 2), "f4"), np.arange(9)
        one = dk.KFold(lambda n: n % 3, trained_on={(1, 2): a, (0, 2): b, (0, 1): c})
        other = dk.KFold(lambda n: n % 3, held_out={0: a, 1: b, 2: c})
        np.testing.assert_array_equal(one(x, numbers), other(x, numbers))
        np.testing.assert_array_equal(one(x, numbers)[:, 0], STEP * (numbers % 3 + 1))

    def test_the_rule_may_be_any(self, server):
        """Here of the run and the event number, and a condition that gives true and false."""
        a, b, *_ = models(server)
        events = ak.Array({"run": [1, 1, 2], "event": [7, 8, 8]})
        tagger = dk.KFold(lambda e: (e.run + e.event) % 2 == 0, held_out={True: a, False: b})
        np.testing.assert_array_equal(tagger(np.zeros((3, 2), "f4"), events)[:, 0], [STEP, 2 * STEP, STEP])

    @pytest.mark.parametrize(
        ("declared", "why"),
        [
            ({"trained_on": {0: 0, 1: 1, 2: 2}}, "2 models were not trained on fold 0.*held_out"),
            ({"trained_on": {(0, 1): 0, 1: 1}}, "every model was trained on fold 1: none may score"),
            ({"trained_on": {0: 0}}, "every model was trained on fold 0"),
            ({"held_out": {(0, 1): 0, 1: 1}}, "fold 1 is held out by two models"),
            ({"trained_on": {0: 0, 1: 0}}, "may be the same model"),
            ({"held_out": {0.5: 0}}, "0.5 is no fold"),
            ({"held_out": {(): 0}}, "is no fold"),
            ({"held_out": {0: 0}, "trained_on": {1: 1}}, "in one of two ways"),
            ({}, "in one of two ways"),
        ],
    )
    def test_what_is_not_clear_is_refused(self, server, declared, why):
        """Before anything is asked of a server."""
        made = models(server)
        given = {how: {key: made[i] for key, i in folds.items()} for how, folds in declared.items()}
        with pytest.raises(ConfigError, match=why):
            dk.KFold(lambda n: n % 5, **given)

    def test_models_that_cannot_be_told_apart(self):
        """A version that the server chooses may be the other one's."""
        with pytest.raises(ConfigError, match="may be the same model"):
            dk.KFold(lambda n: n % 2, trained_on={0: dk.Model("m"), 1: dk.Model("m", version=1)})
        with pytest.raises(ConfigError, match="same classes"):
            dk.KFold(lambda n: n % 2, trained_on={0: dk.Model("a", classes="ab"), 1: dk.Model("b")})

    def test_models_that_give_different_outputs(self, server):
        a, *_ = models(server)
        tagger = dk.KFold(lambda n: n % 2, held_out={0: a, 1: dk.Model("slow_a", servers=[server.address])})
        with pytest.raises(SpecError, match="not folds of one model"):
            tagger(np.zeros((2, 2), "f4"), np.arange(2))


class TestEvents:
    """Events and objects that do not belong together are refused, and nothing is sent."""

    @pytest.mark.parametrize(
        ("objects", "events", "why"),
        [
            (
                np.zeros((3, 2), "f4"),
                np.array([0, 1, 7]),
                "1 of 3 events.*event 2 in fold 7.*models for 0, 1",
            ),
            (np.zeros((3, 2), "f4"), np.array([0, 1]), "3 events, but 2 have a fold"),
            (np.zeros((3, 2), "f4"), np.array([0.0, 1.0, 0.0]), "float64.*one whole number"),
            (np.zeros((1, 2), "f4"), np.array([[0]]), "one whole number"),
            (np.zeros((2, 2), "f4"), ak.Array([0, None]), "None"),
            ({"X": np.zeros((2, 2), "f4")}, np.array([0, 1]), "objects are dict"),
        ],
    )
    def test_refused(self, server, objects, events, why):
        a, b, *_ = models(server)
        with pytest.raises((InputError, SpecError), match=why):
            dk.KFold(lambda number: number, held_out={0: a, 1: b})(objects, events)

    def test_an_error_of_one_model_is_raised(self, server):
        a, *_ = models(server)
        broken = dk.Model("other", servers=["127.0.0.1:9"], connect_timeout="0.3 s")
        with pytest.raises(dk.DaskonicError, match="127.0.0.1:9"):
            dk.KFold(lambda n: n % 2, held_out={0: a, 1: broken})(np.zeros((2, 2), "f4"), np.arange(2))


class TestInTasks:
    """A handle, as a model is: small, and it works where it arrives."""

    def test_is_small_and_survives_pickling(self, server):
        tagger = five(server)
        text = cloudpickle.dumps(tagger)
        assert len(text) < 4000
        x, numbers = np.zeros((7, 2), "f4"), np.arange(7)
        np.testing.assert_array_equal(cloudpickle.loads(text)(x, numbers), tagger(x, numbers))
        assert "scores fold 4" in repr(tagger)

    def test_in_tasks_of_dask(self, server):
        """On workers with the plugin, whose pool all the models use."""
        handles = {k: dk.Model("signed", version=k + 1) for k in range(K)}
        tagger = dk.KFold(lambda number: number % K, held_out=handles)

        def task(first):
            numbers = np.arange(first, first + 20)
            return tagger(jagged([n % 3 for n in numbers]), numbers)[:, :, 0]

        with dk.local_cluster(1, servers=[server.address]) as cluster, Client(cluster) as client:
            made = client.gather(client.map(task, [0, 100, 205]))
        for first, scores in zip([0, 100, 205], made, strict=True):
            numbers = np.arange(first, first + 20)
            same(scores, by_hand(jagged([n % 3 for n in numbers]), numbers, server)[:, :, 0])
