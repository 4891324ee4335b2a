"""``python -m daskonic``."""

from __future__ import annotations

from daskonic.cli import main

main()
