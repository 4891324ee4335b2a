"""What analyses do around a tagger: select before and after, ratios of classes, several models and collections."""

from __future__ import annotations

import time

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import daskonic as dk


@pytest.fixture(scope="module")
def tagger(triton):
    """Its scores are two numbers that tell the jet: the sum of all, and minus that."""
    return dk.Model("sum", servers=[triton.address], classes=["top", "qcd"])


def jets_of(counts):
    """Jets whose 16 numbers are those after each other, n_events * var * 16."""
    rows = np.arange(16 * sum(counts), dtype=np.float32).reshape(-1, 16) / 16 + 1
    return ak.unflatten(ak.from_numpy(rows, regulararray=True), np.array(counts, int))


def expected(jets):
    return ak.sum(jets, axis=-1)


def same(one, other):
    """Equal in nesting, None and, to the precision of a sum, in value."""
    assert ak.to_list(ak.is_none(one, axis=0)) == ak.to_list(ak.is_none(other, axis=0))
    assert ak.to_list(ak.num(one, axis=0)) == ak.to_list(ak.num(other, axis=0))
    flat, want = ak.drop_none(ak.flatten(one, axis=None)), ak.drop_none(ak.flatten(other, axis=None))
    np.testing.assert_allclose(ak.to_numpy(flat), ak.to_numpy(want), rtol=1e-5)


SELECTIONS = {
    "jets above a threshold": lambda jets, cut: jets[jets[..., 0] > cut],
    "masked jets": lambda jets, cut: ak.mask(jets, jets[..., 0] > cut),
    "events with two jets": lambda jets, cut: jets[ak.num(jets) >= 2],
    "masked events": lambda jets, cut: ak.mask(jets, ak.num(jets) >= 2),
    "masked jets of masked events": lambda jets, cut: ak.mask(ak.mask(jets, jets[..., 0] > cut), ak.num(jets) >= 1),
    "leading jet": lambda jets, cut: ak.firsts(jets),
    "the two leading jets": lambda jets, cut: jets[:, :2],
    "two places each": lambda jets, cut: ak.pad_none(jets, 2, clip=True),
    "by falling first number": lambda jets, cut: jets[ak.argsort(jets[..., 0], ascending=False)],
    "the largest": lambda jets, cut: jets[ak.argmax(jets[..., 0], axis=1, keepdims=True)],
    "pairs": lambda jets, cut: ak.concatenate([x[:, :, None] for x in ak.unzip(ak.combinations(jets, 2, axis=1))], axis=2),
    "nothing": lambda jets, cut: jets[jets[..., 0] < 0],
    "no events": lambda jets, cut: jets[:0],
}  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 4), max_size=8),
    selection=st.sampled_from(sorted(SELECTIONS)),
    cut=st.integers(0, 20),
)
def test_selecting_before_is_selecting_after(tagger, counts, selection, cut):
    """Scores of the selected jets are the jets' scores, selected; each in its place."""
    jets = jets_of(counts)
    select = SELECTIONS[selection]
    chosen = select(jets, cut)
    scores = tagger(chosen)
    if chosen.ndim == jets.ndim or selection == "pairs":
        assert ak.to_list(ak.num(scores.top, axis=1)) == ak.to_list(ak.num(chosen, axis=1))
    same(scores.top, expected(chosen))
    same(scores.qcd, -expected(chosen))


@settings(deadline=None, max_examples=40)
@given(counts=st.lists(st.integers(0, 4), max_size=6), selection=st.sampled_from(sorted(SELECTIONS)))
def test_ratios_of_classes(tagger, counts, selection):
    """``score.top / (score.top + score.qcd)`` nests as the jets do, None and emptiness included."""
    chosen = SELECTIONS[selection](jets_of(counts), 5)
    score = tagger(chosen)
    ratio = score.top / (score.top - 2 * score.qcd)
    assert ak.to_list(ak.is_none(ratio)) == ak.to_list(ak.is_none(chosen))
    np.testing.assert_allclose(ak.to_numpy(ak.drop_none(ak.flatten(ratio, axis=None))), 1 / 3, rtol=1e-6)
    assert ratio.ndim == chosen.ndim - 1


def test_classes_of_numpy_rows(tagger):
    """A record, too, so that the same line works."""
    score = tagger(np.ones((3, 16), np.float32))
    np.testing.assert_array_equal(score.top, 16)
    assert score.fields == ["top", "qcd"]
    assert len(tagger(np.ones((0, 16), np.float32)).qcd) == 0


def test_several_models_and_collections_are_in_flight_together(triton):
    """Three models and two collections are started before any is collected, and all of them wait at one time."""
    slow, total, both = (
        dk.Model(name, servers=[triton.address], window=8) for name in ("sleep", "sum", "two_outputs")
    )
    large, small = jets_of([2, 0, 3]), jets_of([1, 4, 0])
    for model in (slow, total, both):
        model.spec()
    pending = {
        "slow": slow.submit(large),
        "slower": slow.submit(small),
        "large": total.submit(large),
        "small": total.submit(small),
        "both": both.submit(small),
    }
    pool, most = slow.pool(), 0
    while not pending["slow"].done():
        most = max(most, pool.stats().in_flight)
        time.sleep(0.005)
    assert most >= 2
    same(pending["large"].result()[..., 0], expected(large))
    same(pending["small"].result()[..., 0], expected(small))
    same(pending["both"].result().Y, 2 * small)
    same(pending["slow"].result(), large)
    same(pending["slower"].result(), small)
