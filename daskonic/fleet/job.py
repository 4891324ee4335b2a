"""A batch job with a server in it: dask-jobqueue's, with another program than a Dask worker."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daskonic.deploy.batch import cluster_class, named, options_of, preset
from daskonic.deploy.job import BatchJob
from daskonic.roster import Entry, Pulse

__all__ = ["SILENT_S", "Member", "job_of", "options_for"]

SILENT_S = 5.0
"""A server that says nothing for so long is off the list; a controller that does not may be succeeded."""


OF_CLUSTERS = ("name", "processes", "scheduler_options", "shared_temp_directory", "worker_extra_args")
"""Options of a Dask cluster that mean nothing here."""


def options_for(system: str, name: str, gpus: int, **parameters: Any) -> tuple[str, dict[str, Any]]:
    """Batch system, and options of every job of a fleet, as text and numbers.

    Parameters
    ----------
    system : str
        A batch system, or a preset in ``daskonic.sites``.
    name : str
        Of the fleet.
    gpus : int
        Of a job.
    **parameters
        Of a cluster's jobs.

    Raises
    ------
    ConfigError
        One of them is not usable.
    """
    system, site = named(system)
    cluster_class(system)  # with dask-jobqueue's configuration, which the options are read from
    options = options_of(system, **({"name": f"daskonic-{name}"} | preset(system, site) | parameters))
    options = {key: value for key, value in options.items() if key not in OF_CLUSTERS}
    extra = options["job_extra_directives"]
    if gpus and system == "htcondor":
        options["job_extra_directives"] = {"request_gpus": str(gpus)} | extra
    elif gpus:
        options["job_extra_directives"] = [f"--gres=gpu:{gpus}", *extra]
    return system, options


def job_of(system: str, folder: Path, key: str, options: dict[str, Any]) -> BatchJob:
    """The job of a server, not submitted yet.

    Raises
    ------
    ValueError, TypeError
        An option is not one of dask-jobqueue's, or not usable.
    """
    job = cluster_class(system).job_cls(None, key, processes=1, **options)
    interface = f" --interface {options['interface']}" if options.get("interface") else ""
    # exec: signals of the batch system reach the program
    command = f"exec {job.python} -m daskonic.fleet.server {shlex.quote(str(folder))} {key}{interface}"
    before = (
        job._job_script_prologue if system == "htcondor" else []
    )  # else it has a place of its own in the script
    job._command_template = "; ".join([*before, command])
    return job


@dataclass(eq=False)
class Member:
    """One job and its server, as the controller sees them."""

    key: str
    job: BatchJob
    models: tuple[str, ...]
    submitted_s: float
    entry: Entry = field(default_factory=Entry)
    pulse: Pulse = field(default_factory=Pulse)
    still_s: float = 0.0
    has_served: bool = False
    disowned_s: float = float("inf")

    @property
    def serves(self) -> bool:
        """Whether it takes requests."""
        return self.entry.state == "serves" and self.still_s < SILENT_S and not self.is_disowned

    @property
    def is_disowned(self) -> bool:
        """Whether it has to go."""
        return self.disowned_s < float("inf")

    def stays(self, lead_s: float) -> bool:
        """Whether it counts: it serves, or will, and not only until another one could be there."""
        going = self.entry.state in ("leaves", "ended") or time.time() + lead_s > self.entry.leaves_s
        return not (going or self.is_disowned)
