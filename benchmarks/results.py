"""Measurements of a benchmark: spread over rounds, a table to read, JSON to keep."""

from __future__ import annotations

import json
import os
import platform
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def add_arguments(parser: ArgumentParser, rounds: int) -> None:
    """Options that all benchmarks have."""
    parser.add_argument("--rounds", type=int, default=rounds, help="everything is measured once in each")
    parser.add_argument("--json", type=Path, help="write the results to this file, too")


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    listed = sorted(values)
    return {"median": statistics.median(listed), "low": listed[0], "high": listed[-1]}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Spread of the ratio, taken within each round, since neighbours on the machine come and go."""
    return spread(a / b for a, b in zip(above, below, strict=True))


def print_table(rows: Sequence[Row]) -> None:
    """One line a row; a spread as ``median (low to high)``."""
    cells = [list(rows[0])] + [[_cell(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def finish(benchmark: str, args: Namespace, *tables: Sequence[Row]) -> None:
    """Print each table and the load of the machine; write JSON if that was asked for."""
    for table in tables:
        if table:
            print_table(table)
    load = os.getloadavg()
    print(f"load of the machine ({os.cpu_count()} cores): {load[0]:.1f} over 1 min, {load[1]:.1f} over 5 min")
    if args.json is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        machine = {"cores": os.cpu_count(), "load": list(load), "python": platform.python_version()}
        told = {
            "benchmark": benchmark,
            "settings": settings,
            "machine": machine,
            "rows": [row for table in tables for row in table],
        }
        args.json.write_text(json.dumps(told, indent=1))


def _cell(value: Any) -> str:
    """Text of one cell."""
    if isinstance(value, Mapping):
        return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else str(value)
