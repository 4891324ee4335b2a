"""What was asked for when a fleet was made: the same for its controllers, one after the other, and for its jobs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from daskonic import __version__
from daskonic.errors import ConfigError
from daskonic.fleet.scaling import Scaling
from daskonic.roster import Folder

__all__ = ["Spec"]


@dataclass(frozen=True, slots=True)
class Spec:
    """A fleet.

    Attributes
    ----------
    system : str
        One of :data:`daskonic.deploy.batch.SYSTEMS`.
    options : mapping
        Of its jobs, for dask-jobqueue.
    repository : str
        Model repository, seen from the nodes.
    models : tuple of str
        All that are served.
    per_server : int
        How many of them a server has.
    minimum, maximum : int
        Servers.
    queue_s : float or None
        How long requests may wait on average; None for half as long as they are computed.
    settle_s, idle_s : float
        How long queues must be long for one more server, and short for one less.
    patience_s : float
        How long servers go on without a controller.
    start_s : float
        How long models may take to be loaded.
    installation, program : str, tuple of str
        Environment that holds Triton, or the command that starts another one; one of them is empty.
    flags : tuple of str
        More of ``tritonserver``.
    version : str
        Of daskonic.
    """

    system: str
    options: Mapping[str, Any]
    repository: str
    models: tuple[str, ...]
    per_server: int
    minimum: int
    maximum: int
    queue_s: float | None
    settle_s: float
    idle_s: float
    patience_s: float
    start_s: float
    installation: str
    program: tuple[str, ...]
    flags: tuple[str, ...]
    version: str = __version__

    @property
    def least(self) -> int:
        """Fewest servers that hold all models."""
        return math.ceil(len(self.models) / self.per_server)

    def scaling(self, now: float) -> Scaling:
        """The policy."""
        return Scaling(
            max(self.minimum, self.least) if self.minimum else 0,
            self.maximum,
            now=now,
            least=self.least,
            longest_queue_s=self.queue_s,
            settle_s=self.settle_s,
            idle_s=self.idle_s,
        )

    def write(self, folder: Folder) -> None:
        """Make the fleet's folder; OSError if there is one."""
        folder.create(asdict(self))

    @classmethod
    def read(cls, folder: Folder) -> Spec:
        """What a folder says.

        Raises
        ------
        ConfigError
            There is no fleet, or it is another daskonic's.
        """
        found = folder.spec()
        if found is None:
            raise ConfigError(f"there is no fleet in {folder.path}")
        if found["version"] != __version__:
            raise ConfigError(
                f"{folder} was started by daskonic {found['version']}, this is {__version__}; stop it with that one"
            )
        return cls(**found)
