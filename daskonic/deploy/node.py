"""What a job does first on its node: say in one line why no worker can run there.

``python -m daskonic.deploy.node VERSION SCHEDULER`` ends with 0, or with :data:`UNFIT` and a line on stderr. It
needs neither Dask nor a second, so that a thousand jobs may do it.
"""

from __future__ import annotations

import importlib.util
import platform
import socket
import sys
from urllib.parse import urlsplit

from daskonic import __version__

__all__ = ["UNFIT", "trouble"]

UNFIT = 81
"""Exit code of a job whose node cannot run a worker; also where Python or daskonic are not there at all."""

CONNECT_S = 15.0


def trouble(version: str, scheduler: str) -> str:
    """Why no worker can run here; empty if one can.

    Parameters
    ----------
    version : str
        Of daskonic, where the cluster was made.
    scheduler : str
        Address, such as ``tcp://10.0.0.1:35123``.
    """
    if version != __version__:
        return f"{sys.executable} has daskonic {__version__}, the cluster was made with {version}"
    if importlib.util.find_spec("distributed") is None:
        return f"{sys.executable} has daskonic, but not distributed"
    at = urlsplit(scheduler)
    try:
        socket.create_connection((at.hostname or "", at.port or 0), CONNECT_S).close()
    except OSError as error:
        return (
            f"no connection to the Dask scheduler at {scheduler} ({error}): a firewall may be in between, "
            "or the scheduler listens on another network (see interface= and scheduler_options=)"
        )
    return ""


def main() -> None:
    """Check and exit."""
    found = trouble(*sys.argv[1:])
    if found:
        sys.stderr.write(f"daskonic: node {platform.node()}: {found}\n")
        sys.exit(UNFIT)


if __name__ == "__main__":
    main()
