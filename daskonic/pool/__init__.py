"""Who gets the next request, when, and what happens if it fails."""

from __future__ import annotations

from daskonic.pool.call import Call
from daskonic.pool.claim import Claim
from daskonic.pool.contact import confirm
from daskonic.pool.pool import Pool
from daskonic.pool.share import Share
from daskonic.pool.stats import EndpointStats, PoolStats

__all__ = ["Call", "Claim", "EndpointStats", "Pool", "PoolStats", "Share", "confirm"]
