"""What a run tells: how far it is, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from daskonic.report import Report

__all__ = ["Progress", "Summary"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    events, events_total : int
        Events done, those of earlier runs included, and all.
    rows : int
        Jets scored by this run.
    partitions, partitions_total : int
        Partitions done, those of earlier runs included, and all.
    """

    events: int
    events_total: int
    rows: int
    partitions: int
    partitions_total: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did.

    Attributes
    ----------
    output : str
        The output folder.
    model, model_version : str
    paths : tuple of str
        All files of scores, in the order of the input.
    columns : tuple of str
        Names of the scores.
    files, events, rows : int
        Input files, events and jets of the whole job.
    partitions, computed : int
        All partitions, and those that this run computed.
    computed_rows : int
        Jets that this run scored.
    report : Report
        Account of this run's requests and of the time in each stage, summed over tasks.
    seconds : float
        Wall time of this run.
    """

    output: str
    model: str
    model_version: str
    paths: tuple[str, ...]
    columns: tuple[str, ...]
    files: int
    events: int
    rows: int
    partitions: int
    computed: int
    computed_rows: int
    report: Report = field(default_factory=Report)
    seconds: float = 0.0
