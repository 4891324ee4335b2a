"""How a batch reaches a server: one class per protocol, all of them a :class:`Transport`."""

from __future__ import annotations

from daskonic.transport.base import Account, Listed, Reply, Transport

__all__ = ["Account", "Listed", "Reply", "Transport"]
