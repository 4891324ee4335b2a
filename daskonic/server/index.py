"""What a running Triton says about itself and its models, over HTTP on the loopback interface."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping

from daskonic.server.launch import HOST

__all__ = ["ask", "load_failure", "repository_index"]


def ask(port: int, method: str, path: str) -> bytes:
    """One HTTP call, never by a proxy; OSError unless it is answered with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request(method, path, body=b"{}" if method == "POST" else None)
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"{HOST}:{port}{path} answers {response.status}")
        return response.read()
    finally:
        connection.close()


def repository_index(port: int, server_id: str) -> list[dict[str, str]]:
    """``name``, ``version``, ``state``, ``reason`` of each model version; OSError if it is another server."""
    metadata = json.loads(ask(port, "GET", "/v2"))
    # Whoever took the port in the meantime may speak the same protocol.
    if not isinstance(metadata, Mapping) or metadata.get("name") != server_id:
        raise OSError(f"port {port} is another server's")
    keys = ("name", "version", "state", "reason")
    index = json.loads(ask(port, "POST", "/v2/repository/index"))
    return [{key: model.get(key, "") for key in keys} for model in index]


def load_failure(model: Mapping[str, str], log: str) -> str:
    """Why a model is not ready, as Triton said it."""
    name = f"{model['name']} (version {model['version']})" if model["version"] else model["name"]
    return f"{name}: {model['reason'].rstrip() or _poll_failure(log, model['name'])}"


def _poll_failure(log: str, name: str) -> str:
    """Why a model's folder or configuration was refused; the index does not say."""
    found = re.search(
        rf"(?P<before>.*\n)?.*Poll failed for model directory '{re.escape(name)}': (?P<why>.*)", log
    )
    if found is None:
        return "no reason is given"
    syntax = re.search(r"Error parsing text-format [^:]*: (.*)", found["before"] or "")
    return found["why"].rstrip('"') + (f" ({syntax[1]})" if syntax else "")
