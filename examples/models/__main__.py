"""Write the networks into a model repository.

In the folder above this one::

python -m models REPOSITORY [NAME ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models.catalogue import NETWORKS


def main() -> None:
    """All of them, or those named."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(NETWORKS))
    if unknown:
        parser.error(f"no network {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    for name in args.names or NETWORKS:
        print(NETWORKS[name].add_to(args.repository))


if __name__ == "__main__":
    main()
