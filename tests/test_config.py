"""Settings are checked where the user is, before anything runs."""

from __future__ import annotations

from pathlib import Path

import dask.config
import jsonschema
import pytest
import yaml

import daskonic.config
from daskonic.config import resolve
from daskonic.errors import ConfigError

HERE = Path(daskonic.config.__file__).parent
SCHEMA = yaml.safe_load((HERE / "daskonic-schema.yaml").read_text())


def test_defaults_fit_the_schema():
    """daskonic.yaml is valid by its own schema."""
    jsonschema.validate(daskonic.config.DEFAULTS, SCHEMA)


def test_schema_and_defaults_have_the_same_keys():
    """No default without a description, no description without a default."""

    def keys(schema, defaults, at="daskonic"):
        assert set(schema["properties"]) == set(defaults), at
        for key, sub in schema["properties"].items():
            if "properties" in sub:
                keys(sub, defaults[key], f"{at}.{key}")

    keys(SCHEMA["properties"]["daskonic"], daskonic.config.DEFAULTS["daskonic"])


def test_units_are_read_once():
    """Times and sizes with units become seconds and bytes."""
    settings = resolve(["a:8001"], timeout="2 m", batch_bytes="1 MiB")
    assert (settings.timeout_s, settings.batch_nbytes) == (120.0, 2**20)


def test_settings_come_from_the_dask_configuration():
    """dask.config.set reaches resolve(); arguments win over it."""
    with dask.config.set({"daskonic.servers": ["a:8001", "grpc://b:8001", "a:8001"], "daskonic.window": 3}):
        assert resolve().servers == ("a:8001", "b:8001")
        assert resolve().window == 3
        assert resolve("c:1", window=5) == resolve(["c:1"], window=5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"daskonic.windw": 3}, "did you mean daskonic.window"),
        ({"daskonic.window": 0}, "daskonic.window is 0"),
        ({"daskonic.window": True}, "daskonic.window is True"),
        ({"daskonic.timeout": "soon"}, "daskonic.timeout is 'soon'"),
        ({"daskonic.batch-bytes": "many"}, "daskonic.batch-bytes is 'many'"),
        ({"daskonic.server.instalation": "x"}, "did you mean daskonic.server.installation"),
        ({"daskonic.servers": ["triton"]}, "'triton' is not HOST:PORT"),
        ({"daskonic.servers": ["http://triton:8000"]}, "'http://triton:8000' is not HOST:PORT"),
    ],
)
def test_a_wrong_setting_is_named(settings, named):
    """A typo or a wrong value is a ConfigError that says which key and what to write."""
    with dask.config.set(settings), pytest.raises(ConfigError) as caught:
        resolve()
    assert named in str(caught.value)


def test_wrong_argument_is_named():
    """Keyword settings are checked like the configuration's."""
    with pytest.raises(ConfigError, match="unknown setting daskonic.windows; did you mean daskonic.window"):
        resolve(["a:1"], windows=3)
