"""Arrays without values are answered with the type of the scores, and no request."""

from __future__ import annotations

import awkward as ak
import pytest

import daskonic as dk
from daskonic import demo, server
from daskonic.tagging import read_file


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    repository = tmp_path_factory.mktemp("models")
    server.add_onnx(repository, demo.MODEL, demo.shipped().model)
    features = dk.Features.from_weaver(demo.shipped().features)
    with dk.local_server(repository) as triton:
        yield dk.Model(demo.MODEL, features=features, classes=features.labels, servers=[triton.address])


@pytest.fixture(scope="module")
def jets(tagger):
    """Some jets, with fields that no feature needs."""
    jets = read_file(demo.shipped().jets[0], tagger.features, stop=20).jets
    constituents = ak.with_field(jets["constituents"], jets["constituents"].pt, "idle")
    return ak.with_field(ak.with_field(jets, jets.pt, "idle"), constituents, "constituents")


def traced(array):
    """The array without its values, and the report of what is touched."""
    form = array.layout.form_with_key("node{id}")
    typetracer, report = ak.typetracer.typetracer_with_report(form)
    return ak.Array(typetracer, behavior=array.behavior), report, form


def keys_of(form, *path):
    """Key of a column."""
    while not form.is_numpy:
        form, path = (form.content(path[0]), path[1:]) if form.is_record else (form.content, path)
    return form.form_key


def test_type_and_columns_without_a_request(tagger, jets):
    """The type is that of the scores, the columns marked are those of the features, and nothing is inferred."""
    typetracer, report, form = traced(jets)
    before = tagger.pool().stats().requests_total
    scores = tagger(typetracer)
    assert tagger.pool().stats().requests_total == before
    assert ak.backend(scores) == "typetracer"
    assert str(scores.type) == str(tagger(jets).type).replace("20 *", "## *", 1)
    touched = set(report.data_touched)
    constituents = set(jets["constituents"].fields)
    jet, inner = tagger.features.fields(set(jets.fields) - {"constituents"}, constituents)
    columns = {("constituents", n) for n in constituents} | {
        (n,) for n in set(jets.fields) - {"constituents"}
    }
    needed = {("constituents", n) for n in inner} | {(n,) for n in jet}
    assert {path for path in columns if keys_of(form, *path) in touched} == needed


class Lazy:
    """What a collection of dask-awkward looks like to a model."""

    __module__ = "dask_awkward.lib.core"

    def map_partitions(self, function):
        return "mapped", function


def test_collections_of_dask_awkward_are_mapped(tagger):
    """They become a graph of calls of the model, without dask-awkward being imported here."""
    assert tagger(Lazy()) == ("mapped", tagger)
