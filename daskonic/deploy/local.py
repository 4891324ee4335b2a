"""A Dask cluster on this machine, with the plugin installed."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterable
from typing import Any

import dask.config
from distributed import Client, LocalCluster, Worker, WorkerPlugin

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


def local_cluster(
    n_workers: int = 2,
    *,
    servers: Iterable[str] | str | None = None,
    threads_per_worker: int | None = None,
    settings: dict[str, Any] | None = None,
    **kwargs: Any,
) -> LocalCluster:
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
