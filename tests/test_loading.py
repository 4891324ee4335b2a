"""Runs bring their model to servers in explicit mode, and take it away again, however they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from faults import eventually
from triton_models import write_model

import daskonic as dk
from daskonic import errors, plugin, server
from daskonic.cli import main

X = np.ones((3, 16), "f4")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Entries of a user: of two contents, one in two versions with labels, and one that does not load."""
    folder = tmp_path_factory.mktemp("mine")
    write_model(folder, "sum", kind="sum")
    write_model(folder, "identity", kind="identity")
    write_model(folder, "broken", kind="fails_to_load")
    write_model(folder, "two", kind="sum", version=3)
    config = write_model(folder, "two", kind="sum", version=7) / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: [ 2 ]", 'dims: [ 2 ] label_filename: "labels.txt"'))
    (config.parent / "labels.txt").write_text("up\ndown\n")
    (config.parent / "7" / "__pycache__").mkdir()
    return folder


@pytest.fixture(scope="module")
def explicit(tmp_path_factory):
    """A server that lets its clients load models, with one of its own."""
    folder = tmp_path_factory.mktemp("theirs")
    write_model(folder, "own", kind="sum")
    with dk.local_server(folder, model_control="explicit", flags=["--load-model=own"]) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(explicit):
    """Whatever a test does, it takes its models away."""
    yield
    assert eventually(lambda: not server.listed(explicit.address))


def names(running):
    return [found.name for found in server.listed(running.address)]


def score(name, running):
    return dk.Model(name, servers=[running.address], connect_timeout="30 s")(X)


def test_there_in_the_block(explicit, repository):
    """It answers under a name of its own, and is gone afterwards; the server's own models stay."""
    with dk.loaded(repository / "sum", [explicit.address]) as name:
        assert name.startswith("sum.")
        np.testing.assert_array_equal(score(name, explicit), [[16, -16]] * 3)
        (found,) = server.listed(explicit.address)
        assert found.name == name
        assert f"({os.getpid()})" in found.owner
    np.testing.assert_array_equal(score("own", explicit), [[16, -16]] * 3)


def test_versions_and_labels(explicit, repository):
    """All that is in the folder travels but for what Python left there."""
    with dk.loaded(repository / "two", explicit.address) as name:
        for version in (3, 7):
            model = dk.Model(name, version, servers=[explicit.address])
            np.testing.assert_array_equal(model(X), [[16, -16]] * 3)


def test_blocks_of_a_process_share_it(explicit, repository):
    """The last of several blocks, in whatever thread, takes it away; another content is another model."""
    inside, leave = threading.Barrier(3), threading.Event()
    seen = []

    def block():
        with dk.loaded(repository / "sum", explicit.address) as name:
            seen.append(name)
            inside.wait(30)
            leave.wait(30)

    threads = [threading.Thread(daemon=True, target=block) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(30)
    with (
        dk.loaded(repository / "sum", explicit.address) as name,
        dk.loaded(repository / "identity", explicit.address) as other,
    ):
        assert seen == [name, name]
        assert sorted(names(explicit)) == sorted([name, other])
    assert eventually(lambda: names(explicit) == [name])
    np.testing.assert_array_equal(score(name, explicit), [[16, -16]] * 3)
    leave.set()
    for thread in threads:
        thread.join()


def test_exception(explicit, repository):
    """It goes, and the exception comes."""
    with pytest.raises(ZeroDivisionError), dk.loaded(repository / "sum", explicit.address):
        1 / 0  # noqa: B018


def test_not_allowed(triton, explicit, repository):
    """A server in another mode says no, in one line, and those before it are left as they were."""
    with (
        pytest.raises(
            errors.ConfigError, match=rf"{triton.address} does not let .*model-control-mode=explicit"
        ),
        dk.loaded(repository / "sum", [explicit.address, triton.address]),
    ):
        pass


def test_broken(explicit, repository, tmp_path):
    """A model that does not load, with the server's words; a folder that is no entry; none at all."""
    for entry, text in (
        (repository / "broken", "cannot load the entry 'broken'.*the weights are not where they should be"),
        (repository, r"config\.pbtxt cannot be read"),
        (tmp_path, r"config\.pbtxt cannot be read"),
    ):
        with pytest.raises(errors.InputError, match=f"(?s){text}"):
            server.load(entry, explicit.address)
    (tmp_path / "config.pbtxt").write_text('backend: "python"')
    with pytest.raises(errors.InputError, match="has no version"):
        server.load(tmp_path, explicit.address)
    with pytest.raises(errors.UnavailableError):
        server.load(repository / "sum", "127.0.0.1:1")


def test_names(explicit, repository):
    """A name that is taken is refused, whoever has it; the server's own models cannot be taken away."""
    name = server.load(repository / "sum", explicit.address, name="mine")
    assert name == "mine"
    for taken in ("mine", "own"):
        with pytest.raises(errors.ConfigError, match=f"has a model '{taken}' already"):
            server.load(repository / "identity", explicit.address, name=taken)
    with pytest.raises(errors.ConfigError, match="nobody brought a model 'own'"):
        server.unload("own", explicit.address)
    assert server.unload("mine", explicit.address) == [explicit.address]


def test_recognised(explicit, repository):
    """The same content under the same name is the same configuration, whoever brings it; another content is not."""
    digests = []
    for entry in ("sum", "sum", "identity"):
        with dk.loaded(repository / entry, explicit.address, name="mine") as name:
            model = dk.Model(name, servers=[explicit.address])
            digests.append(model.spec().config_digest)
            model.pool().close()
            plugin._process_pools.clear()
        assert eventually(lambda: not names(explicit))
    assert digests[0] == digests[1] != digests[2]


def test_server_that_went_away(repository, tmp_path, caplog):
    """The block ends as it would, and says what it could not do."""
    running = dk.local_server(tmp_path, model_control="explicit").start()
    try:
        with dk.loaded(repository / "sum", running.address):
            running.stop(grace_s=0)
    finally:
        running.stop(grace_s=0)
    assert "may still have the model sum." in caplog.text


BLOCK = """
    import sys, time
    import daskonic as dk

    with dk.loaded(sys.argv[1], sys.argv[2]) as name:
        print(name, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def run(explicit, repository):
    """Another process inside a block; its name of the model."""
    processes = []

    def start():
        words = [sys.executable, "-c", textwrap.dedent(BLOCK), repository / "sum", explicit.address]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_runs_do_not_disturb_each_other(explicit, run):
    """Two runs of the same content: the first to end, by Ctrl-C, takes nothing from the other."""
    (first, one), (second, other) = run(), run()
    assert one != other
    first.send_signal(signal.SIGINT)
    first.wait(30)
    assert eventually(lambda: names(explicit) == [other])
    np.testing.assert_array_equal(score(other, explicit), [[16, -16]] * 3)
    second.send_signal(signal.SIGINT)
    second.wait(30)


def test_killed(explicit, run):
    """Nobody takes it away; it is listed with its owner, and can be taken away by hand."""
    process, name = run()
    process.kill()
    process.wait(30)
    (found,) = server.listed(explicit.address)
    assert (found.name, f"({process.pid})" in found.owner) == (name, True)
    server.unload(name, explicit.address)


class TestCommand:
    """``daskonic models load``, ``list`` and ``unload``."""

    def run(self, *words):
        return CliRunner().invoke(main, ["models", *map(str, words)])

    def test_by_hand(self, explicit, repository):
        """The name is printed, listed for a reader and for a script, and taken away."""
        at = ["--server", explicit.address]
        done = self.run("load", repository / "sum", *at)
        assert done.exit_code == 0, done.output
        name = done.output.strip()
        (found,) = json.loads(self.run("list", *at, "--json").output)
        assert found["name"] == name
        assert name in self.run("list", *at).output
        assert self.run("unload", name, *at).output.strip() == f"{explicit.address} has unloaded {name}"
        assert eventually(lambda: "nobody brought a model" in self.run("list", *at).output)
        done = self.run("unload", name, *at)
        assert (done.exit_code, "nobody brought a model" in done.output) == (2, True)

    def test_around_a_command(self, explicit, repository):
        """The command gets the name, and its exit code is passed on."""
        check = "import sys; sys.exit(len(sys.argv) - 2 if sys.argv[1].startswith('sum.') else 9)"
        words = [
            "load",
            repository / "sum",
            "--server",
            explicit.address,
            "--",
            sys.executable,
            "-c",
            check,
            "{}",
        ]
        assert self.run(*words).exit_code == 0
        assert self.run(*words, "one", "more").exit_code == 2
        done = self.run(*words[:5], "no-such-command")
        assert (done.exit_code, "cannot be run" in done.output) == (3, True)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ended_by_a_signal(self, explicit, repository, number):
        """Ctrl-C is for the command as well; a batch system's SIGTERM for this process alone. Both take the model away."""
        words = [
            sys.executable,
            "-m",
            "daskonic",
            "models",
            "load",
            repository / "sum",
            "--server",
            explicit.address,
        ]
        process = subprocess.Popen(
            [*words, "--", "sleep", "600"], start_new_session=True, stderr=subprocess.PIPE
        )
        with process:
            assert eventually(lambda: len(names(explicit)) == 1, 60)
            assert eventually(lambda: children(process.pid))
            if number == signal.SIGINT:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            assert process.wait(60) == 128 + number


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()
