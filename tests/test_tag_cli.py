"""``daskonic tag`` as a user meets it: exit codes, one-line errors, interruption, output for scripts."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import awkward as ak
import dask.config
import pytest
from click.testing import CliRunner
from distributed import Client
from jet_files import make_events, write_root

import daskonic as dk
from daskonic.cli import main
from daskonic.errors import BatchSystemError, OutputError
from daskonic.tagging.jobs import RunJobs
from daskonic.tagging.manifest import Output, refuse_endless

FEATURES = (
    """\
inputs:
  X:
    vars:
"""
    + 16 * "      - [jet_code, null]\n"
)
"""Sixteen times the jet's code; the model gives their sum."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A file of 300 events and its features."""
    folder = tmp_path_factory.mktemp("inputs")
    events = make_events(300)
    write_root(folder / "a.root", events)
    (folder / "features.yaml").write_text(FEATURES)
    return folder, events


@pytest.fixture(scope="module")
def scheduler(triton):
    """Address of a scheduler with one worker and no plugin."""
    with (
        dk.local_cluster(1, servers=[triton.address], threads_per_worker=2) as cluster,
        Client(cluster) as client,
    ):
        client.unregister_worker_plugin("daskonic")
        yield cluster.scheduler_address


def arguments(inputs, triton, output, *more):
    """A complete command."""
    folder, _ = inputs
    return [
        "tag", str(folder / "a.root"), "--model", "sum", "--server", triton.address,
        "--features", str(folder / "features.yaml"), "--output", str(output), "--classes", "plus,minus", *more,
    ]  # fmt: skip


def process(args, **options):
    """The command as a process of its own, in its own group, so that Ctrl-C reaches its workers too."""
    code = "from daskonic.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finished_lines(output: Path) -> int:
    """Partitions that are logged as done."""
    log = output / "partitions.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def await_half(run, output, n_partitions):
    """Wait until about half of the partitions are done."""
    while finished_lines(output) < n_partitions // 2:
        assert run.poll() is None, run.communicate()
        time.sleep(0.002)


def contents(output):
    """Bytes of the files of scores, temporary ones left out."""
    return {p.name: p.read_bytes() for p in (output / "scores").glob("*.parquet")}


def test_a_kill_at_half_costs_only_the_missing_half(inputs, triton, tmp_path):
    """After SIGKILL the same command does only what is missing, and every byte is as if undisturbed."""
    args = ("--chunk-size", "2", "--workers", "1", "--json")
    run = process(arguments(inputs, triton, tmp_path / "killed", *args))
    await_half(run, tmp_path / "killed", 150)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    done = finished_lines(tmp_path / "killed")
    assert 75 <= done < 150
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed" / "scores").glob("*.parquet")}
    logged = {
        json.loads(line)["path"]
        for line in (tmp_path / "killed" / "partitions.jsonl").read_text().splitlines()
    }
    facts = succeed(arguments(inputs, triton, tmp_path / "killed", *args))
    assert facts["partitions_computed"] == 150 - done
    for path, mtime in before.items():
        if f"scores/{path.name}" in logged:
            assert path.stat().st_mtime_ns == mtime
    whole = succeed(arguments(inputs, triton, tmp_path / "whole", *args))
    assert whole["partitions_computed"] == 150
    assert facts["requests"] < whole["requests"]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 150
    assert not list((tmp_path / "killed" / "scores").glob(".*"))


def succeed(args):
    """Run a command; its JSON."""
    run = process(args)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    return json.loads(out)


def test_ctrl_c(inputs, triton, tmp_path):
    """Ctrl-C ends with 130, says how to continue, and leaves no process and nothing half-written."""
    run = process(arguments(inputs, triton, tmp_path / "out", "--chunk-size", "2", "--workers", "1"))
    await_half(run, tmp_path / "out", 100)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "run the same command again to continue" in err
    assert "Traceback" not in err
    assert not out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"] is False
    until = time.monotonic() + 20
    while living(run.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert living(run.pid) == []


def living(group):
    """Command lines of the processes of a group; zombies, which await their parent only, left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, process_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                found.append((folder / "cmdline").read_bytes())
        except OSError:  # it ended meanwhile
            continue
    return found


def test_full_disk(inputs, triton, tmp_path):
    """A file that cannot be written whole is exit code 6, in one line, and not there."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    run = process(
        arguments(inputs, triton, tmp_path / "out", "--chunk-size", "300", "--workers", "1"), preexec_fn=limit
    )
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (6, ""), err
    assert "File too large" in err
    assert "Traceback" not in err
    assert contents(tmp_path / "out") == {}


def invoke(args):
    """The command in this process."""
    return CliRunner().invoke(main, args)


def test_summary_for_a_person(inputs, triton, scheduler, tmp_path):
    """On an existing scheduler the plugin is installed; the closing table has events, jets and the rate."""
    _, events = inputs
    result = invoke(arguments(inputs, triton, tmp_path / "out", "--scheduler", scheduler))
    assert result.exit_code == 0, result.output
    assert "jets/s" in result.stdout
    assert f"{sum(len(jets) for jets in events.jets):,}" in result.stdout
    got = ak.from_parquet(tmp_path / "out" / "scores")
    assert got["FatJet_sum_plus"].tolist() == [[16 * code for code in jets] for jets in events.codes()]


def test_defaults_are_the_library_s():
    """The command line imports the library late, so its default is written twice."""
    from daskonic.cli.tag import EVENTS_PER_TASK
    from daskonic.tagging import CHUNK_SIZE

    assert EVENTS_PER_TASK == CHUNK_SIZE


def test_failing_model(inputs, triton, scheduler, tmp_path):
    """A model that fails is exit code 9, with the partition and the model's own words."""
    args = arguments(inputs, triton, tmp_path / "out", "--scheduler", scheduler)
    args[args.index("--model") + 1] = "fail"
    del args[args.index("--classes") : args.index("--classes") + 2]
    refused(invoke(args), 9, r"a\.root entries 0 to 300: .*fails on purpose.*0 of 1 partitions are done")
    assert contents(tmp_path / "out") == {}


def test_nan_in_an_input(inputs, triton, scheduler, tmp_path):
    """NaN is exit code 3 with its place, unless weaver's zeros are asked for; other files are done all the same."""
    events = make_events(20, seed=5)
    entry = next(i for i, jets in enumerate(events.jets) if jets)
    events.jets[entry][0]["eta"] = float("nan")
    write_root(tmp_path / "nan.root", events)
    (tmp_path / "eta.yaml").write_text(FEATURES.replace("jet_code", "jet_eta"))
    args = arguments(inputs, triton, tmp_path / "out", "--scheduler", scheduler, "--json")
    args[args.index("--features") + 1] = str(tmp_path / "eta.yaml")
    args.insert(1, str(tmp_path / "nan.root"))
    refused(invoke(args), 3, r"nan\.root entries 0 to 20: .*not finite.*1 of 2 partitions are done")
    result = invoke([*args, "--nan", "zero"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["partitions_computed"] == 1
    scores = ak.from_parquet(next((tmp_path / "out" / "scores").glob("*nan*")))["FatJet_sum_plus"]
    assert scores[entry, 0] == 0


def test_json(inputs, triton, scheduler, tmp_path):
    """``--json`` prints one object on stdout and nothing else."""
    _, events = inputs
    result = invoke(arguments(inputs, triton, tmp_path / "out", "--scheduler", scheduler, "--json"))
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["jets"] == sum(len(jets) for jets in events.jets)
    assert facts["columns"] == ["FatJet_sum_plus", "FatJet_sum_minus"]
    assert facts["servers"] == {triton.address: facts["requests"]}
    assert result.stderr == ""


def closed_port():
    """A port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"--model": "nosuch"}, 5, "nosuch"),
        ({"--version": "7"}, 5, "7"),
        ({"--server": "127.0.0.1"}, 2, "is not HOST:PORT"),
        ({"--features": "nosuch.yaml"}, 4, "nosuch.yaml"),
        ({"--features": None}, 2, r"say with --features"),
        ({"--jets": "AK15"}, 3, "no jets AK15"),
        ({"--tree": "Runs"}, 3, "no tree Runs; it has Events"),
        ({"--classes": "a,b,c"}, 4, "3 classes"),
        ({"--classes": "a,a"}, 2, "different names"),
        ({"--outputs": "Z"}, 4, "no output Z"),
        ({"--chunk-size": "0"}, 2, "chunk-size"),
        ({"--format": "csv"}, 2, "csv"),
        ({"--output": "/dev/null/out"}, 6, "cannot write"),
        ({"--output": "s3://bucket/out"}, 2, "is a URL"),
        ({"--wrokers": "3"}, 2, "No such option.*--workers"),
        ({"--scheduler": "tcp://127.0.0.1:1"}, 2, "no Dask scheduler at"),
        ({"--scheduler": "nonsense://x"}, 2, "no Dask scheduler at"),
        ({"FILE": "nosuch*.root"}, 3, "no file matches"),
    ],
)
def test_one_line_and_a_code(inputs, triton, scheduler, tmp_path, monkeypatch, change, code, said):
    """Each mistake is one line on stderr that names it, with the exit code of its class."""
    monkeypatch.setattr("daskonic.cli.tag.SCHEDULER_TIMEOUT", "1s")
    args = arguments(inputs, triton, tmp_path / "out", "--scheduler", scheduler)
    for option, value in change.items():
        if option == "FILE":
            args[1] = value
        elif value is None:
            del args[args.index(option) : args.index(option) + 2]
        elif option in args:
            args[args.index(option) + 1] = value
        else:
            args += [option, value]
    refused(invoke(args), code, said)
    assert not list(tmp_path.rglob("*.parquet"))


def refused(result, code, said):
    """The error of a command."""
    import re

    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert re.search(said, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    if not result.stderr.startswith("Usage"):
        assert result.stderr.count("\n") == 1


def test_server_down(inputs, triton, tmp_path):
    """A server that is not there: exit code 8, before a cluster is started."""
    with dask.config.set({"daskonic.connect-timeout": "1 s"}):
        args = arguments(inputs, triton, tmp_path / "out")
        args[args.index("--server") + 1] = f"127.0.0.1:{closed_port()}"
        refused(invoke(args), 8, "127.0.0.1")


def test_port_of_something_else(inputs, triton, tmp_path):
    """Triton's HTTP port is not its gRPC port: exit code 8."""
    with dask.config.set({"daskonic.connect-timeout": "1 s"}):
        args = arguments(inputs, triton, tmp_path / "out")
        args[args.index("--server") + 1] = triton.http_address.removeprefix("http://")
        refused(invoke(args), 8, "127.0.0.1")


def test_misspelt_setting(inputs, triton, tmp_path):
    """A typo in Dask's configuration: exit code 2, with what was meant."""
    with dask.config.set({"daskonic.windw": 3}):
        refused(invoke(arguments(inputs, triton, tmp_path / "out")), 2, "did you mean daskonic.window")


def test_no_server_named(inputs, triton, tmp_path):
    """Neither an option nor the configuration names a server: exit code 2, with where to name one."""
    args = arguments(inputs, triton, tmp_path / "out")
    del args[args.index("--server") : args.index("--server") + 2]
    refused(invoke(args), 2, r"daskonic\.servers")


def test_several_bad_files_in_one_line(inputs, triton, scheduler, tmp_path):
    """Corrupt, empty and truncated files are all named at once: exit code 3."""
    folder, _ = inputs
    whole = (folder / "a.root").read_bytes()
    (tmp_path / "empty.root").write_bytes(b"")
    (tmp_path / "corrupt.root").write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    (tmp_path / "cut.root").write_bytes(whole[:5000])
    args = arguments(inputs, triton, tmp_path / "out", "--scheduler", scheduler)
    args.insert(1, str(tmp_path / "*.root"))
    result = invoke(args)
    refused(result, 3, "3 of 4 input files cannot be used")
    for said in ("is empty", "cannot be read", "is truncated"):
        assert said in result.stderr


def test_folder_of_another_model(inputs, triton, scheduler, tmp_path):
    """Exit code 6, with what differs."""
    args = arguments(inputs, triton, tmp_path / "out", "--scheduler", scheduler)
    assert invoke(args).exit_code == 0
    before = contents(tmp_path / "out")
    args[args.index("--model") + 1] = "identity"
    del args[args.index("--classes") : args.index("--classes") + 2]
    refused(invoke(args), 6, "belongs to another run: model is sum there and identity now")
    assert contents(tmp_path / "out") == before


def test_jobs_of_a_run_leave_a_folder_of_others_alone(tmp_path):
    """Nothing is written and no job submitted where the output folder has something else in it."""
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"holds other things \(thesis.tex\)"):
        RunJobs.of(tmp_path, "slurm").submit("slurm", [], of_workers={}, of_driver={})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("finished", "has_workers", "is_endless"),
    [([], True, True), ([], False, False), ([0], True, False), ([0, 0], False, True), ([0, 0, 3], True, False),
     ([3, 0], True, False), ([3, 0, 0], True, True)],
)  # fmt: skip
def test_a_driver_that_finishes_nothing_is_not_started_for_ever(tmp_path, finished, has_workers, is_endless):
    """Two jobs in a row without a partition; workers of their own may wait in the queue meanwhile."""
    if finished:
        with Output(tmp_path, {}) as output:
            for partitions in finished:
                output.begin({})
                output.end([], False, {"partitions": partitions})
    if is_endless:
        with pytest.raises(BatchSystemError, match="--driver-option walltime"):
            refuse_endless(tmp_path, has_workers)
    else:
        refuse_endless(tmp_path, has_workers)
