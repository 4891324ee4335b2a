"""A subclass of coffea's ``triton_wrapper`` gives the same with daskonic's, which refuses where coffea's is wrong.

Both wrappers call the same Triton. What is checked of coffea's is what its own tests check: jets with constituents,
padded in ``prepare_awkward``, eager and lazy, and one output as a dict of arrays.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import warnings

import awkward as ak
import cloudpickle
import numpy as np
import pytest
from distributed import Client
from triton_models import write_model

import daskonic as dk
from daskonic import demo, server
from daskonic.coffea import triton_wrapper as ours
from daskonic.errors import ConfigError, DaskonicError, InputError, ModelNotFoundError, SpecError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries that coffea imports
    from coffea.ml_tools.triton_wrapper import triton_wrapper as coffeas

PLAIN = {"ssl": False}
LENGTH = 40


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A Triton with small models and the shipped network, once with and once without a batch dimension."""
    repository = tmp_path_factory.mktemp("models")
    for kind in ("identity", "neighbours", "sum", "two_outputs", "fail", "pooled"):
        write_model(repository, kind, kind=kind)
    write_model(repository, "flags", kind="identity", dtype="BOOL")
    server.add_onnx(repository, "tagger", demo.shipped().model, max_batch_size=64)
    server.add_onnx(repository, "unbatched", demo.shipped().model, max_batch_size=0)
    with dk.local_server(repository) as running:
        yield running.address


def make_jets(n_jets, seed=3):
    """Jets with 0 to 60 constituents."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 60, n_jets)
    fields = {name: rng.normal(size=counts.sum()) for name in ("deta", "dphi", "pt")}
    jets = ak.zip({"pt": rng.uniform(300, 900, n_jets)})
    jets["pfcands"] = ak.unflatten(ak.zip(fields), counts)
    return jets


def padded(array):
    return ak.fill_none(ak.pad_none(array, LENGTH, axis=1, clip=True), 0.0)


def network_inputs(jets):
    """Inputs of the shipped network as users of coffea make them: in float64."""
    parts = jets.pfcands
    columns = {
        "pf_points": [parts.deta, parts.dphi],
        "pf_features": [parts.deta, parts.dphi, *[parts.pt * (i / 10) for i in range(13)]],
        "pf_mask": [ak.ones_like(parts.pt)],
    }
    return {
        name: ak.concatenate([padded(c)[:, np.newaxis, :] for c in arrays], axis=1)
        for name, arrays in columns.items()
    }


def tagger_of(base):
    class Tagger(base):
        def prepare_awkward(self, output_list, jets):
            return [], {"output_list": output_list, "input_dict": network_inputs(jets)}

    return Tagger


def plain_of(base):
    """No preparation: arrays come by the model's names."""

    class Plain(base):
        def prepare_awkward(self, output_list, input_dict):
            return [], {"output_list": output_list, "input_dict": input_dict}

    return Plain


def by(base, make, address, model, *arguments, **options):
    """What a subclass of one of the wrappers gives."""
    wrapper = make(base)(f"triton+grpc://{address}/{model}/1", client_args=PLAIN, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # coffea's, on every cast
        return wrapper(*arguments)


@pytest.mark.parametrize("batch_size", [-1, 7, 64])
@pytest.mark.parametrize("model", ["tagger", "unbatched"])
def test_scores_of_jets_are_those_of_coffea(address, model, batch_size):
    """In the same container and nesting, whether the server says that there is a batch dimension or not."""
    jets = make_jets(150)
    outputs = [o["name"] for o in metadata(address, model)["outputs"]]
    theirs = by(coffeas, tagger_of, address, model, outputs, jets, batch_size=batch_size)
    mine = by(ours, tagger_of, address, model, outputs, jets, batch_size=batch_size)
    assert list(mine) == list(theirs) == outputs
    for name in outputs:
        assert mine[name].type == theirs[name].type
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6)


def metadata(address, model):
    return plain_of(ours)(f"triton+grpc://{address}/{model}/1", client_args=PLAIN).model_metadata


def test_arrays_of_numpy_give_arrays_of_numpy(address):
    x = np.arange(48, dtype="f4").reshape(3, 16)
    for base in (coffeas, ours):
        made = by(base, plain_of, address, "sum", output_list := ["Y"], {"X": x})
        assert list(made) == output_list
        assert isinstance(made["Y"], np.ndarray)
        np.testing.assert_array_equal(made["Y"], np.stack([x.sum(1), -x.sum(1)], axis=1))


def test_outputs_are_those_asked_for_in_that_order(address):
    x = np.ones((5, 3), np.float32)
    for wanted in (["Y"], ["LENGTH"], ["LENGTH", "Y"]):
        theirs, mine = (by(b, plain_of, address, "two_outputs", wanted, {"X": x}) for b in (coffeas, ours))
        assert list(mine) == list(theirs) == wanted
        for name in wanted:
            assert mine[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_no_rows_give_outputs_of_the_right_dtype(address):
    """Coffea's are float64 whatever the model gives, and cannot be made where a dimension is open."""
    none = np.ones((0, 16), np.float32)
    assert by(coffeas, plain_of, address, "sum", ["Y"], {"X": none})["Y"].shape == (0, 2)
    made = by(ours, plain_of, address, "sum", ["Y"], {"X": none})["Y"]
    assert (made.shape, made.dtype) == ((0, 2), np.float32)
    assert by(ours, plain_of, address, "identity", ["Y"], {"X": none})["Y"].shape[0] == 0


def test_values_that_the_dtype_holds_are_cast_as_in_coffea(address):
    flags = np.array([[1.0, 0.0], [0.0, 1.0]])
    for base in (coffeas, ours):
        made = by(base, plain_of, address, "flags", ["Y"], {"X": flags})["Y"]
        np.testing.assert_array_equal(made, flags.astype(bool))


def test_values_that_the_dtype_does_not_hold_are_refused(address):
    """Coffea makes True of 0.5."""
    assert by(coffeas, plain_of, address, "flags", ["Y"], {"X": np.full((1, 2), 0.5)})["Y"].all()
    with pytest.raises(SpecError, match="'X' is float64 with values that the model's bool cannot hold"):
        by(ours, plain_of, address, "flags", ["Y"], {"X": np.full((1, 2), 0.5)})


def test_a_model_that_mixes_rows_is_refused(address):
    """Coffea's numbers depend on its batch size."""
    x = np.arange(10, dtype="f4")[:, None]
    seven, ten = (
        by(coffeas, plain_of, address, "neighbours", ["Y"], {"X": x}, batch_size=n)["Y"] for n in (7, 10)
    )
    assert np.abs(seven - ten).max() > 1
    with pytest.raises(SpecError, match="'neighbours' does not score a row by itself: output 'Y' changes"):
        by(ours, plain_of, address, "neighbours", ["Y"], {"X": x})


def test_graphs_are_refused(address):
    """Coffea cuts nodes and their indices into slices of ten: [50, 0, 40, 10, 0, 0, 50] for sums of 50, 40, 35."""
    inputs = {"x": np.full((25, 1), 5, np.float32), "batch": np.repeat(np.arange(3), [10, 8, 7])}
    assert len(by(coffeas, plain_of, address, "pooled", ["total"], inputs)["total"]) == 7
    with pytest.raises(SpecError, match=r"came as float32\[3, 1\] for 25 rows.*graph=dk.Graph"):
        by(ours, plain_of, address, "pooled", ["total"], inputs)
    with pytest.raises(SpecError, match=r"different numbers of rows \(x: 25, batch: 20\).*graph=dk.Graph"):
        by(ours, plain_of, address, "pooled", ["total"], inputs | {"batch": inputs["batch"][:20]})


WRONG = {
    "input": ({"Z": np.ones((2, 16), "f4")}, ["Y"], "Z is none of them"),
    "rank": ({"X": np.ones(16, "f4")}, ["Y"], "needs at least 2 dimensions"),
    "length": ({"X": np.ones((2, 5), "f4")}, ["Y"], r"rows of input X have shape \[5\]"),
    "output": ({"X": np.ones((2, 16), "f4")}, ["Q"], "has no output Q; it has Y"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_do_not_fit_are_a_value_error(address, case):
    """As in coffea; both when asked to validate and when called."""
    inputs, outputs, message = WRONG[case]
    with pytest.raises(ValueError, match="Input|output"):
        by(coffeas, plain_of, address, "sum", outputs, inputs)
    with pytest.raises(SpecError, match=message):
        by(ours, plain_of, address, "sum", outputs, inputs)
    wrapper = plain_of(ours)(f"triton+grpc://{address}/sum/1", client_args=PLAIN)
    with pytest.raises(SpecError, match=message):
        wrapper.validate_numpy_input(outputs, inputs)


def test_nan_is_a_missing_value_and_an_infinity_is_refused(address):
    """As for trees; coffea sends infinities, too."""
    x = np.ones((2, 16), np.float32)
    x[0, 3] = np.nan
    theirs, mine = (by(b, plain_of, address, "identity", ["Y"], {"X": x})["Y"] for b in (coffeas, ours))
    np.testing.assert_array_equal(mine, theirs)
    x[0, 3] = np.inf
    with pytest.raises(InputError, match="not finite"):
        by(ours, plain_of, address, "identity", ["Y"], {"X": x})


def test_permanent_errors_are_raised_at_once(address):
    """Coffea asks seven times for a model that is not there any more."""
    wrapper = plain_of(ours)(f"triton+grpc://{address}/fail/1", client_args=PLAIN)
    with pytest.raises(DaskonicError, match="fails on purpose"):
        wrapper(["Y"], {"X": np.ones((2, 4), "f4")})
    assert wrapper.handle.pool().stats().retries_total == 0
    with pytest.raises(ModelNotFoundError, match="gone"):
        by(ours, plain_of, address, "gone", ["Y"], {"X": np.ones((2, 4), "f4")})


def test_what_a_subclass_reads_of_the_model_is_as_in_coffea(address):
    for model in ("two_outputs", "tagger", "unbatched"):
        url = f"triton+grpc://{address}/{model}/1"
        theirs, mine = (plain_of(base)(url, client_args=PLAIN) for base in (coffeas, ours))
        assert mine.model_inputs == theirs.model_inputs
        assert {n: o["shape"] for n, o in mine.model_outputs.items()} == {
            n: o["shape"] for n, o in theirs.model_outputs.items()
        }
        for name in ("protocol", "address", "model", "version", "client_args"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert [i["name"] for i in mine.model_metadata["inputs"]] == [
            i["name"] for i in theirs.model_metadata["inputs"]
        ]
    assert plain_of(ours)(f"triton+grpc://{address}/tagger/1", client_args=PLAIN).batch_size == 64
    assert plain_of(ours)(f"triton+grpc://{address}/unbatched/1", client_args=PLAIN).batch_size == 256


def test_postprocess_is_called_with_the_scores_and_the_arguments(address):
    class Nested(tagger_of(ours)):
        def postprocess_awkward(self, ret, output_list, jets):
            return ak.unflatten(ret[output_list[0]], [len(jets)])

    output = metadata(address, "tagger")["outputs"][0]["name"]
    made = Nested(f"triton+grpc://{address}/tagger/1", client_args=PLAIN)([output], make_jets(5))
    assert ak.num(made).tolist() == [5]


def test_survives_pickling_and_runs_in_dask_tasks(address):
    """With nothing live inside; each process has one pool, whatever number of wrappers."""
    jets = make_jets(20)
    output = metadata(address, "tagger")["outputs"][0]["name"]
    wrapper = tagger_of(ours)(f"triton+grpc://{address}/tagger/1", client_args=PLAIN)
    expected = wrapper([output], jets)[output]
    again = cloudpickle.loads(cloudpickle.dumps(wrapper))
    np.testing.assert_array_equal(again([output], jets)[output], expected)
    assert again.handle.pool() is wrapper.handle.pool()
    plain = PlainOfModule(f"triton+grpc://{address}/sum/1", client_args=PLAIN)
    assert pickle.loads(pickle.dumps(plain)).address == address
    with Client(n_workers=1, threads_per_worker=2, dashboard_address=":0") as client:
        for scores in client.gather(client.map(lambda _: wrapper([output], jets)[output], range(4))):
            np.testing.assert_array_equal(scores, expected)


PlainOfModule = plain_of(ours)
PlainOfModule.__qualname__ = "PlainOfModule"


def test_threads_share_one_wrapper(address):
    """Coffea's makes several clients."""
    wrapper = plain_of(ours)(f"triton+grpc://{address}/sum/1", client_args=PLAIN)
    made = {}

    def score(i):
        made[i] = wrapper(["Y"], {"X": np.full((50, 16), i, "f4")})["Y"]

    threads = [threading.Thread(daemon=True, target=score, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((made[i][:, 0] == 16 * i).all() for i in range(8))


class TestConstructor:
    def test_speaks_tls_unless_told_otherwise_as_in_coffea(self):
        assert plain_of(ours)("triton+grpc://host:8001/m/1").handle.pool().settings.servers == (
            "grpcs://host:8001",
        )
        plain = plain_of(ours)("triton+grpc://host:8001/m/1", {"ssl": False, "verbose": True}, 100)
        assert plain.handle.pool().settings.servers == ("host:8001",)
        assert plain.handle.batch_size == 100

    def test_files_of_tritonclient_are_daskonic_s(self):
        files = {"root_certificates": "ca.pem", "private_key": "k.pem", "certificate_chain": "c.pem"}
        found = plain_of(ours)("triton+grpc://host:8001/m/1", files).handle.pool().settings.credentials
        assert (found.ca_file, found.key_file, found.certificate_file) == ("ca.pem", "k.pem", "c.pem")

    def test_a_url_without_triton_will_do(self):
        assert plain_of(ours)("grpc://host:8001/m/2").version == "2"

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("triton+http://host:8000/m/1", r"speaks gRPC only, .* triton\+grpc://host:8001/m/1"),
            ("triton+grpc://host:8001/m", "HOST:PORT/MODEL/VERSION is needed"),
            ("triton+ws://host:8001/m/1", "HOST:PORT/MODEL/VERSION is needed"),
            ("triton+grpc://host/m/1", "not HOST:PORT"),
        ],
    )
    def test_a_url_that_is_no_use_is_explained(self, url, message):
        with pytest.raises(ConfigError, match=message):
            plain_of(ours)(url)

    def test_an_argument_without_counterpart_is_explained(self):
        with pytest.raises(ConfigError, match="client_args has channel_args, which has no counterpart"):
            plain_of(ours)("triton+grpc://host:8001/m/1", {"channel_args": []})

    def test_a_hook_that_nobody_calls_is_explained(self):
        with pytest.raises(ConfigError, match="Own overrides run_infer, which daskonic does not call"):

            class Own(ours):
                def run_infer(self, inputs, outputs, attempt=0):
                    pass

        with pytest.raises(AttributeError, match="no attribute 'client': there is none"):
            _ = plain_of(ours)("triton+grpc://host:8001/m/1").client


def test_nothing_else_imports_coffea():
    """It takes a second, and is an extra."""
    code = "import sys, daskonic.model, daskonic.cli, daskonic.features; assert 'coffea' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
