"""What a run tells: how far it is, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from daskonic import display
from daskonic.report import SHARES, Report

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
    report : Report
        Account of the partitions that came last.
    """

    events: int
    events_total: int
    rows: int
    partitions: int
    partitions_total: int
    report: Report = field(default_factory=Report)


@dataclass(frozen=True, slots=True, repr=False)
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

    @property
    def rows_per_s(self) -> float:
        """Jets per second of wall time that this run scored."""
        return self.computed_rows / self.seconds if self.seconds > 0 else 0.0

    def facts(self) -> list[tuple[str, str]]:
        """What a person wants to know, by name."""
        earlier = self.partitions - self.computed
        return [
            ("scores", f"{self.output}/scores"),
            ("model", f"{self.model}, version {self.model_version}"),
            ("columns", ", ".join(self.columns)),
            (
                "files",
                f"{self.files:,} in {self.partitions:,} partitions"
                + (f", {earlier:,} done before" if earlier else ""),
            ),
            ("events", f"{self.events:,}"),
            ("jets", f"{self.rows:,}"),
            ("rate", f"{self.rows_per_s:,.0f} jets/s" if self.computed else "nothing was left to do"),
        ]

    def __repr__(self) -> str:
        lines = (f"  {name:15}{text}" for name, text in self.facts())
        return "\n".join(["Summary", *lines, *repr(self.report).splitlines()[1:]])

    def _repr_html_(self) -> str:
        about = f"{self.rows:,} jets of {self.events:,} events, {self.seconds:.1f} s"
        spent = display.shares(self.report.spent_s(), SHARES)
        return display.card("Scores", about, display.table(self.facts()), spent)
