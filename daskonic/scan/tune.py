"""An entry's settings from a scan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from daskonic.errors import ConfigError
from daskonic.scan.result import Scan
from daskonic.server.entry import Settings, read_config, write_config

__all__ = ["recommended", "tune"]

ENOUGH = 0.95
"""Of the best rate: what did that much in any round cannot be told from it."""
DELAY = 0.1
"""Of the time of one execution: waiting that long for other requests costs no more than this part."""


def recommended(scan: Scan) -> Settings:
    """Settings of an entry that follow from a scan.

    Instances: the fewest that reach 95 % of the best rate in one of their rounds. Among their batch sizes, the smallest
    that does so is preferred, and the largest is the maximum. Requests wait for others a tenth of the time that the
    preferred size takes to compute.

    Returns
    -------
    Settings
        ``instances`` only where several numbers were scanned, no batch sizes for a model without a batch dimension.
    """
    enough = [p for p in scan.points if p.rows_per_s_most >= ENOUGH * scan.best.rows_per_s]
    instances = min(p.instances for p in enough)
    settings: Settings = {"instances": instances} if instances else {}
    sizes = {p.batch_size for p in enough if p.instances == instances}
    if sizes == {0}:
        return settings
    preferred = min(sizes)
    (alone, *_) = sorted(
        (p for p in scan.points if (p.instances, p.batch_size) == (instances, preferred)),
        key=lambda p: p.concurrency,
    )
    settings |= {"max_batch_size": max(sizes), "preferred_batch_sizes": [preferred]}
    settings |= {"queue_delay_us": round(DELAY * 1e3 * (alone.compute_ms or alone.latency_ms))}
    return settings


def tune(repository: str | os.PathLike[str], name: str, scan: Scan) -> dict[str, tuple[Any, Any]]:
    """Write what follows from a scan into an entry.

    Parameters
    ----------
    repository : path
    name : str
    scan : Scan
        Of this model on the kind of machine that will serve it.

    Returns
    -------
    dict of str to (before, after)
        Settings of :func:`recommended` that have changed.

    Raises
    ------
    InputError
        There is no such entry.
    ConfigError
        The entry and the scan disagree on whether there is a batch dimension.
    """
    path = Path(repository, name, "config.pbtxt")
    config, new = read_config(path), recommended(scan)
    if ("max_batch_size" in new) != (config.max_batch_size > 0):
        raise ConfigError(
            f"{name!r} and the scan of {scan.model!r} disagree on whether there is a batch dimension"
        )
    before = _settings(config)
    if "max_batch_size" in new:
        config.max_batch_size = new["max_batch_size"]
        del config.dynamic_batching.preferred_batch_size[:]
        config.dynamic_batching.preferred_batch_size.extend(new["preferred_batch_sizes"])
        config.dynamic_batching.max_queue_delay_microseconds = new["queue_delay_us"]
    if "instances" in new:
        for group in config.instance_group or [config.instance_group.add()]:
            group.count = new["instances"]
    if all(
        w.name.startswith("zeros_") and w.batch_size for w in config.model_warmup
    ):  # as add_onnx wrote them
        _warm_up_each(config)
    write_config(path, config)
    after = _settings(config)
    return {key: (before[key], after[key]) for key in after if before[key] != after[key]}


def _settings(config: Any) -> dict[str, Any]:
    """What a scan may change."""
    return {
        "max_batch_size": config.max_batch_size,
        "preferred_batch_sizes": list(config.dynamic_batching.preferred_batch_size),
        "queue_delay_us": config.dynamic_batching.max_queue_delay_microseconds,
        "instances": sum(group.count for group in config.instance_group),
    }


def _warm_up_each(config: Any) -> None:
    """The first request of the warm-up again, if there is one, of one row and of each preferred size."""
    if not config.model_warmup:
        return
    first = type(config.model_warmup[0])()
    first.CopyFrom(config.model_warmup[0])
    del config.model_warmup[:]
    for size in sorted({1, *config.dynamic_batching.preferred_batch_size}):
        config.model_warmup.add().CopyFrom(first)
        config.model_warmup[-1].name, config.model_warmup[-1].batch_size = f"zeros_{size}", size
