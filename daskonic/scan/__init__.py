"""How many rows a second a served model does, by batch size and by requests in flight, and what follows for its entry."""

from __future__ import annotations

from daskonic.scan.measure import scan, scan_entry
from daskonic.scan.result import Point, Scan
from daskonic.scan.tune import recommended, tune

__all__ = ["Point", "Scan", "recommended", "scan", "scan_entry", "tune"]
