"""Dask clusters with the plugin installed: on this machine, on SLURM, on HTCondor.

Names are imported when used: the check that a job runs first on its node
(:mod:`daskonic.deploy.node`) takes a tenth of a second that way.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskonic.deploy.batch import cluster_named as cluster_named
    from daskonic.deploy.batch import htcondor_cluster as htcondor_cluster
    from daskonic.deploy.batch import slurm_cluster as slurm_cluster
    from daskonic.deploy.local import local_cluster as local_cluster

_HOMES = {
    "cluster_named": "batch",
    "htcondor_cluster": "batch",
    "local_cluster": "local",
    "slurm_cluster": "batch",
}

__all__ = ["cluster_named", "htcondor_cluster", "local_cluster", "slurm_cluster"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
