"""Triton servers as jobs of a batch system, as many as the load wants."""

from __future__ import annotations

from daskonic.fleet.fleet import ServerFleet
from daskonic.fleet.status import FleetStatus, JobStatus, fleet_status

__all__ = ["FleetStatus", "JobStatus", "ServerFleet", "fleet_status"]
