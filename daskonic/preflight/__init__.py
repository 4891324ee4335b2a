"""Before a run: features, servers and model held against each other."""

from __future__ import annotations

from daskonic.preflight.check import EVENTS, check
from daskonic.preflight.report import CheckReport, Estimate, Finding

__all__ = ["EVENTS", "CheckReport", "Estimate", "Finding", "check"]
