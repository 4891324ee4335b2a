"""The networks of the papers on inference as a service, one script each."""

from __future__ import annotations
