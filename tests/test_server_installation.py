"""Triton's own environment: made once, whole, and only where it can run; every failure says what to do."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import dask.config
import pytest
from triton_models import write_model

import daskonic as dk
from daskonic import errors
from daskonic.server import find, install, installation


@pytest.fixture(scope="session")
def real():
    """The installation that the other tests use."""
    return find()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "daskonic"


class QuickInstaller:
    """In place of venv and pip: links to an environment that exists, as slowly as wanted."""

    def __init__(self, real, monkeypatch, fails=False):
        self.real, self.fails, self.commands = Path(real.path), fails, []
        monkeypatch.setattr(installation, "_run", self)
        monkeypatch.setattr(shutil, "which", lambda name: None)

    def __call__(self, command):
        self.commands.append(command)
        if "venv" in command:
            path = Path(command[-1])
            path.mkdir(parents=True)
            for part in ("bin", "lib", "pyvenv.cfg"):
                (path / part).symlink_to(self.real / part)
        elif self.fails:
            raise errors.LocalServerError("interrupted")


class TestMade:
    def test_pins_stay_in_their_own_environment(self, real, cache, monkeypatch):
        """NumPy is that of the wheel, and the wheel comes without its other requirements."""
        installer = QuickInstaller(real, monkeypatch)
        said = []
        made = find(said.append)
        assert made.path.parent == cache
        assert any("fetching Triton Inference Server 2.51.0 (about 55 MB, once)" in line for line in said)
        _, ordinary, wheel = installer.commands
        assert ordinary[-2].startswith("numpy")
        assert wheel[-2:] == ["--no-deps", "nvidia-pytriton==0.7.0"]
        assert all(c[0] == str(made.python) for c in (ordinary, wheel))

    def test_made_once(self, real, cache, monkeypatch):
        """The second use installs nothing and says nothing."""
        installer = QuickInstaller(real, monkeypatch)
        find()
        said = []
        assert find(said.append) == find()
        assert (len(installer.commands), said) == (3, [])

    def test_half_an_environment_is_made_anew(self, real, cache, monkeypatch):
        """What an interrupted installation left is not taken for Triton."""
        QuickInstaller(real, monkeypatch, fails=True)
        with pytest.raises(errors.LocalServerError):
            find()
        (half,) = cache.glob("tritonserver-*/")
        (half / "rubbish").touch()
        QuickInstaller(real, monkeypatch)
        assert find().path == half
        assert not (half / "rubbish").exists()

    def test_other_requirements_make_it_anew(self, real, cache, monkeypatch):
        """An environment made from other requirements is replaced."""
        QuickInstaller(real, monkeypatch)
        install(cache / "env", numpy="numpy==1.26.4")
        (cache / "env" / "old").touch()
        install(cache / "env", numpy="numpy>=2")
        assert not (cache / "env" / "old").exists()

    def test_one_process_at_a_time(self, real, cache, tmp_path):
        """Of processes that need it at once one makes it, the others wait and say so."""
        script = tmp_path / "first_use.py"
        script.write_text(FIRST_USE)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, script, real.path, tmp_path / "built"]
        users = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)
        ]
        outputs = [user.communicate(timeout=60)[0] for user in users]
        assert [user.returncode for user in users] == [0, 0, 0]
        assert len((tmp_path / "built").read_text().splitlines()) == 1
        assert sum("waiting for another process" in output for output in outputs) == 2

    def test_with_uv(self, real, cache, monkeypatch):
        """Where uv is on PATH, it makes the environment."""
        installer = QuickInstaller(real, monkeypatch)
        monkeypatch.setattr(shutil, "which", lambda name: "/opt/uv" if name == "uv" else None)
        find()
        assert [command[:2] for command in installer.commands] == [
            ["/opt/uv", "venv"],
            ["/opt/uv", "pip"],
            ["/opt/uv", "pip"],
        ]

    def test_numpy_2_where_the_old_one_has_no_wheel(self, real, cache, monkeypatch):
        """Python 3.13 gets NumPy 2; models then pass tensors by DLPack."""
        installer = QuickInstaller(real, monkeypatch)
        own = installation._inspect(Path(sys.executable))
        newest = installation._Python(own.path, "3.13", own.site, None)
        inspect = installation._inspect
        monkeypatch.setattr(
            installation, "_inspect", lambda p: newest if p == Path(sys.executable) else inspect(p)
        )
        assert find().path.name.endswith("-py313")
        assert "numpy>=2.1,<3" in installer.commands[1]


FIRST_USE = """
import os, sys, time
from pathlib import Path
from daskonic.server import find, installation

def run(command):
    if "venv" in command:
        with open(sys.argv[2], "a") as file:
            file.write("built\\n")
        path = Path(command[-1])
        path.mkdir(parents=True)
        time.sleep(2)
        for part in ("bin", "lib", "pyvenv.cfg"):
            (path / part).symlink_to(Path(sys.argv[1]) / part)

installation._run = run
installation.shutil.which = lambda name: None
find(print)
"""


class TestNotHere:
    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("system", "Darwin", "no Triton wheel for Darwin x86_64"),
            ("machine", "aarch64", "no Triton wheel for Linux aarch64"),
            ("libc_ver", ("glibc", "2.31"), r"needs glibc 2\.35, this is glibc 2\.31"),
            ("libc_ver", ("", ""), r"needs glibc 2\.35, this is another libc"),
        ],
    )
    def test_platform(self, cache, monkeypatch, name, value, text):
        """Another system, processor or C library: nothing is fetched, the ways out are named."""
        monkeypatch.setattr(platform, name, lambda: value)
        with pytest.raises(errors.LocalServerError, match=f"{text}.*daskonic.servers"):
            find()
        assert not cache.exists()

    @pytest.mark.parametrize(
        ("version", "text"),
        [
            ("3.11", r"no shared library libpython3\.11\.so\.1\.0"),
            ("3.14", r"not of a version.*3\.9 to 3\.13"),
        ],
    )
    def test_interpreter(self, cache, monkeypatch, version, text):
        """An interpreter that the Python backend cannot use, and no other one."""
        monkeypatch.setattr(shutil, "which", lambda name: None)
        monkeypatch.setattr(
            installation, "_inspect", lambda path: installation._Python(path, version, Path(), None)
        )
        with pytest.raises(errors.LocalServerError, match=rf"(?s){text}.*Install"):
            find()

    def test_another_interpreter_on_the_path(self, cache, monkeypatch):
        """One that can be used is found on PATH."""
        monkeypatch.setattr(shutil, "which", lambda name: f"/opt/{name}" if name == "python3.10" else None)

        def inspect(path):
            shared = "/lib" if path == Path("/opt/python3.10") else None
            return installation._Python(path, "3.10" if shared else "3.11", Path(), shared)

        monkeypatch.setattr(installation, "_inspect", inspect)
        assert installation._suitable_python().path == Path("/opt/python3.10")

    def test_no_network(self, cache, monkeypatch):
        """Shown are pip's own words and the ways out; nothing that looks complete is left."""
        monkeypatch.setattr(shutil, "which", lambda name: None)
        for name, value in {
            "INDEX_URL": "http://127.0.0.1:9/",
            "RETRIES": "0",
            "CONFIG_FILE": os.devnull,
        }.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(errors.LocalServerError) as caught:
            find()
        assert "No matching distribution found for numpy" in str(caught.value)
        assert "daskonic.server.installation" in str(caught.value)
        assert not list(cache.rglob(installation.MARKER))

    def test_cache_that_cannot_be_written(self, tmp_path, monkeypatch):
        """The folder and the two settings that help are named."""
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(errors.LocalServerError, match=r"file/daskonic cannot be written.*XDG_CACHE_HOME"):
            find()


class TestConfigured:
    def test_environment_or_its_parent(self, real, cache):
        """An administrator's folder is used as it is; nothing is fetched."""
        for folder in (real.path, real.path.parent):
            with dask.config.set({"daskonic.server.installation": str(folder)}):
                assert find() == real
        assert not cache.exists()

    def test_serves(self, real, tmp_path):
        """An environment that was made by hand, without daskonic's marker, serves."""
        env = tmp_path / "env"
        env.mkdir()
        for part in ("bin", "lib", "pyvenv.cfg"):
            (env / part).symlink_to(real.path / part)
        write_model(tmp_path / "r", "identity", kind="identity")
        with (
            dask.config.set({"daskonic.server.installation": env}),
            dk.local_server(tmp_path / "r") as server,
        ):
            assert server.models()[0]["state"] == "READY"
            server.stop(grace_s=0)

    @pytest.mark.parametrize(
        ("make", "text"),
        [(False, "does not exist and so has no environment"), (True, "has no environment with Triton")],
    )
    def test_nothing_there(self, tmp_path, make, text):
        """A folder without Triton is an error, not a reason to fetch another."""
        folder = tmp_path / "triton"
        if make:
            folder.mkdir()
        with (
            dask.config.set({"daskonic.server.installation": str(folder)}),
            pytest.raises(errors.LocalServerError, match=f"{text}.*--install-only"),
        ):
            find()

    def test_environment_of_something_else(self):
        """An environment without Triton is told from one with."""
        with (
            dask.config.set({"daskonic.server.installation": sys.prefix}),
            pytest.raises(errors.LocalServerError, match=r"holds no nvidia-pytriton==0\.7\.0.*is missing"),
        ):
            find()

    def test_not_a_path(self):
        """A value that is no path is a ConfigError."""
        with (
            dask.config.set({"daskonic.server.installation": 3}),
            pytest.raises(errors.ConfigError, match="the path of a folder"),
        ):
            find()


def test_marker_names_what_it_was_made_from(real):
    """The marker is JSON that lists the requirements."""
    made_from = json.loads((real.path / installation.MARKER).read_text())
    assert "nvidia-pytriton==0.7.0" in made_from["requirements"]
