"""Dask clusters of batch jobs: dask-jobqueue's, with what an analysis needs set."""

from __future__ import annotations

import hashlib
import importlib
import os
import shlex
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config
from dask.utils import parse_timedelta

from daskonic.deploy.node import UNFIT
from daskonic.ending import END_TIME, MARGIN
from daskonic.errors import ConfigError
from daskonic.plugin import InferencePlugin

if TYPE_CHECKING:
    from daskonic.deploy.cluster import JobCluster

__all__ = [
    "SYSTEMS",
    "cluster_class",
    "cluster_named",
    "cluster_of",
    "htcondor_cluster",
    "named",
    "options_of",
    "preset",
    "slurm_cluster",
]

SYSTEMS = ("slurm", "htcondor")

ALLOWED_FAILURES = 10
"""How often a task may see its worker die before it is blamed: jobs die for reasons of their own."""

SHORTEST_MARGIN_S, LONGEST_MARGIN_S = 3.0, 300.0
PART_OF_JOB = 0.1

PACKED = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz")


def slurm_cluster(jobs: int = 0, **parameters: Any) -> JobCluster:
    """Start a Dask scheduler here, and its workers in jobs of SLURM.

    Parameters
    ----------
    jobs : int
        Jobs to submit now; ``scale()`` and ``adapt()`` do so later.
    site : str
        Name of a preset in ``daskonic.sites`` of the Dask configuration: any of these parameters.
    servers : iterable of str
        Addresses of the Triton servers; default is ``daskonic.servers``.
    settings : dict
        Further settings for :class:`~daskonic.InferencePlugin`.
    cores, memory, walltime, queue, account, ...
        Those of ``dask_jobqueue.SLURMCluster``, to which all others go too; default is one core and ``"2 GB"``,
        and what ``jobqueue.yaml`` says.
    margin : str or float
        A worker takes no new task that long before its job's end, or up to half as long again, for not all to
        leave at once: more than a task takes. Default is a tenth of the walltime and 3 s, at most 5 minutes.
    environment : str
        What Python to take along: a packed environment (``.tar.gz`` of venv-pack or conda-pack), or a container
        image (``.sif``, a folder, or ``docker://...``). Default is the Python that runs this, at the same path.

    Returns
    -------
    JobCluster
        A ``dask_jobqueue.SLURMCluster`` with :class:`~daskonic.InferencePlugin` on every worker. Jobs that end are
        replaced; ``print(cluster.job_script())`` shows what is submitted.

    Raises
    ------
    ConfigError
        No server is named, no such preset, or a parameter is not usable.
    BatchSystemError
        SLURM refuses such jobs, or is not there; in its own words.

    Examples
    --------
    >>> cluster = dk.slurm_cluster(20, queue="short", walltime="02:00:00", memory="3 GB")  # doctest: +SKIP
    """
    return cluster_of("slurm", jobs, **parameters)


def htcondor_cluster(jobs: int = 0, **parameters: Any) -> JobCluster:
    """Start a Dask scheduler here, and its workers in jobs of HTCondor.

    Parameters
    ----------
    jobs, site, servers, settings, margin, environment
        As for :func:`slurm_cluster`. A packed environment travels with the job.
    cores, memory, disk, job_extra_directives, ...
        Those of ``dask_jobqueue.HTCondorCluster``; default is one core, ``"2 GB"`` and ``"2 GB"``.
    walltime : str
        How long a job may run; the job is removed after that. Default is no limit that workers know of.

    Returns
    -------
    JobCluster

    Raises
    ------
    ConfigError, BatchSystemError
        As for :func:`slurm_cluster`.
    """
    return cluster_of("htcondor", jobs, **parameters)


def cluster_class(system: str) -> type[JobCluster]:
    """Of one of :data:`SYSTEMS`; with it comes dask-jobqueue's configuration."""
    found: type[JobCluster] = importlib.import_module(f"daskonic.deploy.{system}").Cluster
    return found


def cluster_of(system: str, jobs: int = 0, *, site: str | None = None, **parameters: Any) -> JobCluster:
    """A cluster on one of :data:`SYSTEMS`; see :func:`slurm_cluster`."""
    parameters = preset(system, site) | parameters
    plugin = InferencePlugin(parameters.pop("servers", None), **(parameters.pop("settings", None) or {}))
    made_by = cluster_class(system)
    options = options_of(system, **parameters)
    plugin.cores = max(1, options["cores"] // options["processes"])
    with dask.config.set(
        {"distributed.scheduler.worker-saturation": 1.0}
    ):  # what waits, waits at the scheduler
        try:
            cluster = made_by(**options)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    try:
        _install(plugin, cluster)
        if jobs:
            cluster.scale(jobs=jobs)
    except BaseException:
        cluster.close()
        raise
    return cluster


def cluster_named(name: str, jobs: int = 0, /, **parameters: Any) -> JobCluster:
    """A cluster on one of :data:`SYSTEMS`, or of a preset in ``daskonic.sites``.

    Raises
    ------
    ConfigError
        It is neither.
    """
    system, site = named(name)
    return cluster_of(system, jobs, site=site, **parameters)


def named(name: str) -> tuple[str, str | None]:
    """Batch system and preset that a name stands for.

    Raises
    ------
    ConfigError
        It is neither one of :data:`SYSTEMS` nor a preset in ``daskonic.sites``.
    """
    if name in SYSTEMS:
        return name, None
    sites = dask.config.get("daskonic.sites")
    if name not in sites:
        raise ConfigError(
            f"no cluster {name!r}; there are {', '.join((*SYSTEMS, *sites))} (presets are in daskonic.sites of the "
            "Dask configuration)"
        )
    system = sites[name].get("system", "")
    if system not in SYSTEMS:
        raise ConfigError(f"site {name!r} is of system {system!r}; known: {', '.join(SYSTEMS)}")
    return system, name


def _install(plugin: InferencePlugin, cluster: JobCluster) -> None:
    """On workers that are there, and on all that come."""
    from distributed import Client

    with Client(cluster) as client:
        client.register_plugin(plugin)


def preset(system: str, site: str | None) -> dict[str, Any]:
    """Parameters of a site, or none."""
    if site is None:
        return {}
    sites = dask.config.get("daskonic.sites")
    if site not in sites:
        known = ", ".join(sites) or "none"
        raise ConfigError(f"no site {site!r} in daskonic.sites of the Dask configuration; there is {known}")
    preset = {key.replace("-", "_"): value for key, value in sites[site].items()}
    if (there := preset.pop("system", system)) != system:
        raise ConfigError(f"site {site!r} is of {there}, not {system}")
    return preset


def options_of(
    system: str,
    *,
    walltime: str | None = None,
    margin: str | float | None = None,
    environment: str | None = None,
    threads: int | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Parameters for dask-jobqueue's cluster: what was given, else what ``jobqueue.yaml`` says, else ours."""

    def default(key: str, value: Any) -> Any:
        there = dask.config.get(f"jobqueue.{system}.{key.replace('_', '-')}", None)
        return given.pop(key, None) or there or value

    cores = default("cores", 1)
    options: dict[str, Any] = {"cores": cores, "memory": default("memory", "2 GB")}
    directory = Path(default("log_directory", "daskonic-jobs")).expanduser().absolute()
    directory.mkdir(parents=True, exist_ok=True)
    prologue = list(default("job_script_prologue", []))
    extra: Any = default("job_extra_directives", {} if system == "htcondor" else [])
    extra = type(extra)(extra)
    if system == "slurm":
        walltime = options["walltime"] = default("walltime", walltime) if walltime is None else walltime
        extra = ["--no-requeue", *extra]  # another job comes sooner than the same one again
    else:
        options["disk"] = default("disk", "2 GB")
    job_s = None if walltime is None else seconds_of(walltime)
    if job_s is not None:
        prologue += _limits(job_s, margin)
        if system == "htcondor":
            limit = f"JobStatus == 2 && time() - EnteredCurrentStatus > {job_s:.0f}"
            extra.setdefault("periodic_remove", limit)
    python = default("python", None)
    if environment is not None:
        python = _bring(environment, python, prologue, extra)
    processes = default("processes", 1)
    n_threads = threads or max(1, cores * int(dask.config.get("daskonic.threads-per-core")) // processes)
    name = given.pop("name", None) or f"daskonic-{uuid.uuid4().hex[:8]}"
    if system == "htcondor":
        extra.setdefault("batch_name", name)
    scheduler = {"dashboard_address": ":0", "allowed_failures": ALLOWED_FAILURES}
    return options | {
        "name": name,
        "job_name": name,
        "processes": processes,
        "python": python or sys.executable,
        "local_directory": default("local_directory", "${TMPDIR:-/tmp}"),
        "log_directory": str(directory),
        "shared_temp_directory": default("shared_temp_directory", str(directory)),
        "job_script_prologue": prologue,
        "job_extra_directives": extra,
        "scheduler_options": scheduler | dict(default("scheduler_options", {})),
        "worker_extra_args": [
            *default("worker_extra_args", []), "--nthreads", str(n_threads),
            "--worker-class", "daskonic.deploy.worker.JobWorker", "--preload-nanny", "daskonic.deploy.worker",
        ],
        **given,
    }  # fmt: skip


def _limits(job_s: float, margin: str | float | None) -> list[str]:
    """What tells a worker when its job ends; the clock starts with the job, not with its submission."""
    margin_s = min(SHORTEST_MARGIN_S + PART_OF_JOB * job_s, LONGEST_MARGIN_S)
    if margin is not None:
        margin_s = float(parse_timedelta(margin))
    if not 0 < 2 * margin_s < job_s:
        raise ConfigError(
            f"margin is {margin_s:g} s; twice that must be less than the walltime of {job_s:g} s"
        )
    return [f"export {END_TIME}=`date -d '{job_s:.0f} seconds' +%s`", f"export {MARGIN}={margin_s:g}"]


def _bring(
    environment: str, python: str | None, prologue: list[str], extra: dict[str, Any] | list[str]
) -> str:
    """Command for Python in an environment that a job brings along."""
    path = environment if "://" in environment else os.path.abspath(os.path.expanduser(environment))
    if "://" not in path and not os.path.exists(path):
        raise ConfigError(
            f"environment {path} is not there; a packed environment or a container image is needed"
        )
    if not path.endswith(PACKED):
        if isinstance(extra, dict):
            extra |= {"universe": "container", "container_image": path}
            return python or "python3"
        return f"apptainer exec {shlex.quote(path)} {python or 'python3'}"
    digest = hashlib.sha256(f"{path} {os.stat(path).st_mtime_ns}".encode()).hexdigest()[:12]
    folder = "${TMPDIR:-/tmp}/daskonic-" + digest
    if isinstance(extra, dict):
        extra |= {"transfer_input_files": path, "should_transfer_files": "YES"}
        path = os.path.basename(path)
    # Jobs of a node share what the first one unpacks.
    unpack = f"[ -e {folder}/complete ] || {{ tar -xf {shlex.quote(path)} -C {folder} && touch {folder}/complete; }}"
    prologue.append(f"mkdir -p {folder} && {{ flock 9; {unpack}; }} 9>{folder}/lock || exit {UNFIT}")
    return f"{folder}/bin/python"


def seconds_of(walltime: str | float) -> float:
    """A time limit as SLURM writes it (``MM``, ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM:SS``), or as Dask (``"2 h"``).

    Raises
    ------
    ConfigError
        It is neither.
    """
    text = str(walltime).strip()
    days, dash, rest = text.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        scale = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
        return float(86400 * int(days or 0) + sum(n * s for n, s in zip(parts, scale, strict=False)))
    except ValueError:
        pass
    try:
        return float(parse_timedelta(text))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"walltime is {walltime!r}; a time such as '02:00:00' is needed") from error
