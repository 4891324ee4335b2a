"""A fleet's folder as a controller would write it."""

from __future__ import annotations

import itertools
import os
import time

from daskonic.fleet.spec import Spec
from daskonic.roster import Roster

BEATS = itertools.count(1)


def spec(tmp_path, **changes):
    """What was asked for, in the folder of a test."""
    options = {"log_directory": str(tmp_path)}
    values = {
        "system": "slurm", "options": options, "repository": str(tmp_path / "models"), "models": ("sum",), "per_server": 1,
        "minimum": 0, "maximum": 2, "queue_s": None, "settle_s": 10.0, "idle_s": 60.0, "patience_s": 600.0, "start_s": 60.0,
        "installation": "", "program": (), "flags": (),
    }  # fmt: skip
    return Spec(**(values | changes))


def list_servers(folder, *servers, **changes):
    """What a controller writes."""
    told = {"term": 1, "beat": next(BEATS), "written_s": time.time(), "host": "here", "pid": os.getpid()}
    folder.write_roster(Roster(servers=servers, models=("double",), **(told | changes)))
