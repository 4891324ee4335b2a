"""``daskonic check``, and the features that every command takes, on a real server."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from jet_files import make_events, write_root
from test_planted_faults import write_network
from test_tag_cli import FEATURES
from triton_models import write_model

import daskonic as dk
from daskonic import demo, server
from daskonic.cli import main

FILES = demo.shipped()
NETWORKS = {
    "of_cmssw": """(float[N, 2, 32] pf) => (float[N, 2] score) {
        score = ReduceMean<axes = [2], keepdims = 0>(pf)
    }""",
    "of_jetclass": """(float[N, 2, L] pf_points, float[N, 7, L] pf_features, float[N, 4, L] pf_vectors, float[N, 1, L] pf_mask)
        => (float[N, 7] score) <int64[1] places = {2}> {
        items = Mul(pf_features, pf_mask)
        score = ReduceSum<keepdims = 0>(items, places)
    }""",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A Triton with good models, one whose rows mix, and one that is not loaded."""
    repository = tmp_path_factory.mktemp("models")
    for name, text in NETWORKS.items():
        server.add_onnx(repository, name, write_network(repository.parent / f"{name}.onnx", text))
    write_model(repository, "sum", kind="sum")
    write_model(repository, "neighbours", kind="neighbours")
    write_model(repository, "late", kind="sum")
    loaded = [f"--load-model={p.name}" for p in repository.iterdir() if p.name != "late"]
    with dk.local_server(repository, model_control="explicit", flags=loaded) as triton:
        yield triton


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two files of jets and features of their code."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in "ab":
        write_root(folder / f"{name}.root", make_events(40))
    (folder / "features.yaml").write_text(FEATURES)
    (folder / "short.yaml").write_text("inputs:\n  X:\n    vars:\n      - [jet_code, null]\n")
    return folder


@pytest.mark.parametrize("command", ["check", "lock", "tag"])
def test_features_of_cmssw_and_those_that_are_ready(models, tmp_path, command):
    """They have no YAML of the user's: the JSON beside a network of CMSSW, or a name."""
    numbers = {"median": 0, "norm_factor": 1}
    group = {"var_names": ["pfcand_etarel", "pfcand_charge"], "var_length": 32}
    group["var_infos"] = dict.fromkeys(group["var_names"], numbers)
    (tmp_path / "preprocess.json").write_text(json.dumps({"input_names": ["pf"], "pf": group}))
    for name, features in (("of_cmssw", str(tmp_path / "preprocess.json")), ("of_jetclass", "jetclass-kin")):
        file, output = str(FILES.jets[0]), ["--output", str(tmp_path / name)]
        arguments = {
            "check": [file, "--model", name],
            "lock": [name, file, *output],
            "tag": [file, "--model", name, "--workers", "1", *output],
        }[command]
        common = ["--features", features, "--server", models.address]
        result = CliRunner().invoke(main, [command, *arguments, *common])
        assert result.exit_code == 0, result.output


def test_features_that_are_none():
    """The error says which there are, and that only weaver makes NaN 0."""
    common = ["check", "a.root", "--model", "m", "--server", "a:1", "--features"]
    result = CliRunner().invoke(main, [*common, "jetclas-kin"])
    assert result.exit_code == 2
    assert "there is no file jetclas-kin" in result.output
    assert "there are jetclass-full, jetclass-kin," in result.output
    result = CliRunner().invoke(main, [*common, "jetclass-kin", "--nan", "zero"])
    assert result.exit_code == 2
    assert "is for a YAML of weaver" in result.output


def run(inputs, address, *more, features="features.yaml"):
    """The command, in this process."""
    arguments = [
        "check",
        str(inputs / "*.root"),
        "--server",
        address,
        "--features",
        str(inputs / features),
        *more,
    ]
    return CliRunner().invoke(main, arguments)


def test_command(models, inputs):
    """It says what a run on these files costs, for a reader and for a script."""
    result = run(inputs, models.address, "--model", "sum")
    assert result.exit_code == 0, result.output
    assert "ready" in result.output
    result = run(inputs, models.address, "--model", "sum", "--json")
    facts = json.loads(result.stdout)
    assert facts["ok"]
    assert facts["exit_code"] == 0
    n_jets = sum(len(jets) for jets in make_events(40).jets)
    assert facts["estimate"]["rows"] == 2 * n_jets


@pytest.mark.parametrize(
    ("more", "features", "code"),
    [
        (("--model", "sum"), "short.yaml", 4),
        (("--model", "sum", "--version", "9"), "features.yaml", 5),
        (("--model", "late"), "features.yaml", 8),
        (("--model", "neighbours"), "features.yaml", 9),
        (("--model", "sum", "--reference", "nowhere.onnx"), "features.yaml", 2),
    ],
)
def test_exit_codes(models, inputs, more, features, code):
    """Those of the error that a run would end in."""
    result = run(inputs, models.address, *more, features=features)
    assert result.exit_code == code, result.output
    result = run(inputs, models.address, *more, "--json", features=features)
    assert result.exit_code == code
    if code != 2:
        assert json.loads(result.stdout)["exit_code"] == code
