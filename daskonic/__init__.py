"""Inference for particle physics from Dask workers, by shared Triton servers.

>>> import daskonic as dk
>>> tagger = dk.Model("particlenet", features=dk.Features.from_weaver("particlenet.yaml"))  # doctest: +SKIP
>>> scores = tagger(events.FatJet)  # doctest: +SKIP

Names are imported when used, so that ``import daskonic`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskonic.constituents import link_constituents as link_constituents
    from daskonic.constituents import secondary_vertices as secondary_vertices
    from daskonic.deploy import htcondor_cluster as htcondor_cluster
    from daskonic.deploy import local_cluster as local_cluster
    from daskonic.deploy import slurm_cluster as slurm_cluster
    from daskonic.errors import DaskonicError as DaskonicError
    from daskonic.features import Features as Features
    from daskonic.features import Graph as Graph
    from daskonic.features import Pad as Pad
    from daskonic.features import Variations as Variations
    from daskonic.fleet import ServerFleet as ServerFleet
    from daskonic.kfold import KFold as KFold
    from daskonic.model import Model as Model
    from daskonic.model import Pending as Pending
    from daskonic.plugin import InferencePlugin as InferencePlugin
    from daskonic.plugin import current_pool as current_pool
    from daskonic.preflight import CheckReport as CheckReport
    from daskonic.processor import TwoPhaseProcessor as TwoPhaseProcessor
    from daskonic.report import Report as Report
    from daskonic.server import LocalServer as LocalServer
    from daskonic.server import loaded as loaded
    from daskonic.server import local_server as local_server
    from daskonic.watching import progress as progress

__version__ = "0.1.0"

_HOMES = {
    "CheckReport": "preflight",
    "DaskonicError": "errors",
    "Features": "features",
    "Graph": "features",
    "InferencePlugin": "plugin",
    "KFold": "kfold",
    "LocalServer": "server",
    "Model": "model",
    "Pad": "features",
    "Pending": "model",
    "Report": "report",
    "ServerFleet": "fleet",
    "TwoPhaseProcessor": "processor",
    "Variations": "features",
    "current_pool": "plugin",
    "htcondor_cluster": "deploy",
    "link_constituents": "constituents",
    "secondary_vertices": "constituents",
    "loaded": "server",
    "local_cluster": "deploy",
    "local_server": "server",
    "progress": "watching",
    "slurm_cluster": "deploy",
}

__all__ = [
    "CheckReport",
    "DaskonicError",
    "Features",
    "Graph",
    "InferencePlugin",
    "KFold",
    "LocalServer",
    "Model",
    "Pad",
    "Pending",
    "Report",
    "ServerFleet",
    "TwoPhaseProcessor",
    "Variations",
    "__version__",
    "current_pool",
    "htcondor_cluster",
    "link_constituents",
    "loaded",
    "local_cluster",
    "local_server",
    "progress",
    "secondary_vertices",
    "slurm_cluster",
]


if not TYPE_CHECKING:  # or a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
