"""A Dask cluster on this machine, with the plugin installed."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterable
from typing import Any

import dask.config
import distributed
from distributed import Client, Nanny, Worker, WorkerPlugin

from daskonic.deploy.adaptive import ServerAdaptive
from daskonic.deploy.worker import JobWorker
from daskonic.plugin import InferencePlugin

__all__ = ["local_cluster"]


class _Undisturbed(WorkerPlugin):
    """Ctrl-C in a terminal or a notebook goes to all processes of its group; it is meant for the one that waits there."""

    name = "daskonic-undisturbed"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        """On the main thread of a worker process; a worker in the user's own process is left as it is."""
        if (
            multiprocessing.parent_process() is not None
            and threading.current_thread() is threading.main_thread()
        ):
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Nanny(Nanny):
    """Its worker finishes what it has begun when it is told to leave."""

    def __init__(self, scheduler: str, **kwargs: Any) -> None:
        super().__init__(scheduler, worker_class=JobWorker, **kwargs)


class LocalCluster(distributed.LocalCluster):
    """Dask's, whose workers can be adapted to the servers."""

    def adapt(self, *args: Any, **kwargs: Any) -> Any:
        """Let Dask decide how many workers there shall be; no more than the servers can serve."""
        kwargs.setdefault("Adaptive", ServerAdaptive)
        return super().adapt(*args, **kwargs)


def local_cluster(
    n_workers: int = 2,
    *,
    servers: Iterable[str] | str | None = None,
    threads_per_worker: int | None = None,
    settings: dict[str, Any] | None = None,
    **kwargs: Any,
) -> distributed.LocalCluster:
    """Start a Dask cluster of worker processes on this machine.

    Parameters
    ----------
    n_workers : int
        Worker processes; one for each core to be used.
    servers : iterable of str, optional
        Addresses of the Triton servers; default is ``daskonic.servers``.
    threads_per_worker : int, optional
        Task threads of a worker; default is ``daskonic.threads-per-core``. A task that waits for a
        server holds its thread, so several per core keep the core busy.
    settings : dict, optional
        Further settings for :class:`~daskonic.InferencePlugin`.
    **kwargs
        Passed to ``distributed.LocalCluster``.

    Returns
    -------
    distributed.LocalCluster
        With :class:`~daskonic.InferencePlugin` on every worker, later ones included.

    Raises
    ------
    ConfigError
        No server is named, or a setting is not usable.
    """
    plugin = InferencePlugin(servers, **(settings or {}))
    kwargs.setdefault("dashboard_address", ":0")
    plugin.cores = 1
    if kwargs.get("processes", True):
        kwargs.setdefault("worker_class", _Nanny)
    cluster = LocalCluster(
        n_workers=n_workers,
        threads_per_worker=threads_per_worker or dask.config.get("daskonic.threads-per-core"),
        **kwargs,
    )
    try:
        with Client(cluster) as client:
            client.register_plugin(_Undisturbed())
            client.register_plugin(plugin)
    except BaseException:
        cluster.close()
        raise
    return cluster
