"""A real Triton on this machine, and the model repositories it serves."""

from __future__ import annotations

from daskonic.server.doctor import Finding, examine
from daskonic.server.installation import Installation, find, install
from daskonic.server.loading import Loaded, listed, load, loaded, unload
from daskonic.server.local import LocalServer, local_server
from daskonic.server.repository import add_function, add_onnx, add_plan, add_torch
from daskonic.server.shared import shared_server

__all__ = [
    "Finding",
    "Installation",
    "Loaded",
    "LocalServer",
    "add_function",
    "add_onnx",
    "add_plan",
    "add_torch",
    "examine",
    "find",
    "install",
    "listed",
    "load",
    "loaded",
    "local_server",
    "shared_server",
    "unload",
]
