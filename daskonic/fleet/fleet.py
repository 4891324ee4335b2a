"""A fleet, as its user has it in hand."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from dask.utils import parse_timedelta

from daskonic.config import FLEET, fleet_folder
from daskonic.errors import ConfigError, InputError
from daskonic.fleet.spec import Spec
from daskonic.fleet.status import FleetStatus
from daskonic.roster import Folder
from daskonic.server import find
from daskonic.server.launch import refuse_nothing_to_serve

if TYPE_CHECKING:
    from daskonic.fleet.controller import Controller

__all__ = ["ServerFleet"]

WAIT_S = 1.0


class ServerFleet:
    """Triton servers in jobs of a batch system, as many as the load wants; controlled by this process.

    The fleet lives in a folder that the submit host, the nodes and the workers share (``daskonic.fleets``). Clients name it
    as a server: ``fleet:NAME``. Use it in a ``with`` statement, or call :meth:`start` and :meth:`stop`. If this process dies,
    servers go on, and :meth:`attach` takes them over; without a controller they end after ``patience``.

    Parameters
    ----------
    name : str
        Of letters, digits, ``-``, ``_`` and ``.``; or the path of the folder.
    system : str
        ``"slurm"``, ``"htcondor"``, or the name of a preset in ``daskonic.sites``.
    repository : path
        Model repository, seen from the nodes.
    models : sequence of str, optional
        Which of its models; default is all.
    models_per_server : int, optional
        Spread the models: so many on each server, those first that the fewest others have. Default is all on all.
    minimum, maximum : int
        Servers. With a minimum of 0 there are none until a client waits for one.
    gpus : int
        Of each job.
    queue_time : str or float, optional
        A server is added when requests wait longer in queues, on average; default is half as long as they are computed.
    settle, idle : str or float
        How long queues must be long for one more server; and how long short for one less, or empty for none.
    patience : str or float
        How long servers go on when nobody controls the fleet.
    load_time : str or float
        How long models may take to be loaded.
    triton : sequence of str, optional
        Command in place of the Triton that daskonic fetches, such as ``["apptainer", "exec", "--nv", "triton.sif",
        "tritonserver"]``.
    flags : sequence of str
        More flags of ``tritonserver``.
    **job
        As for :func:`daskonic.slurm_cluster` and :func:`daskonic.htcondor_cluster`: ``cores``, ``memory``, ``walltime``,
        ``queue``, ``account``, ``environment``, ``margin``, ``interface``, ...

    Raises
    ------
    ConfigError
        A parameter is not usable.
    InputError
        There is no such model.

    Examples
    --------
    >>> with dk.ServerFleet("top", "slurm", "models/", maximum=4, queue="gpu", walltime="04:00:00"):  # doctest: +SKIP
    ...     scores = dk.Model("top_tagger", features=features, servers=["fleet:top"])(jets)
    """

    def __init__(
        self,
        name: str,
        system: str,
        repository: str | os.PathLike[str],
        *,
        models: Sequence[str] | None = None,
        models_per_server: int | None = None,
        minimum: int = 0,
        maximum: int = 1,
        gpus: int = 1,
        queue_time: str | float | None = None,
        settle: str | float = "10 s",
        idle: str | float = "5 m",
        patience: str | float = "10 m",
        load_time: str | float = "10 m",
        triton: Sequence[str] = (),
        flags: Sequence[str] = (),
        **job: Any,
    ) -> None:
        from daskonic.fleet.job import job_of, options_for  # needs dask-jobqueue

        self._folder = Folder(fleet_folder(name))
        self._controller: Controller | None = None
        self._thread: threading.Thread | None = None
        names = _names(Path(repository), models)
        per_server = models_per_server or len(names)
        least = -(-len(names) // per_server)
        if not 0 <= minimum <= maximum or maximum < least:
            of_models = f", of which it takes {least} for {len(names)} models" if least > 1 else ""
            raise ConfigError(
                f"minimum is {minimum} and maximum {maximum}; 0 <= minimum <= maximum is needed{of_models}"
            )
        system, options = options_for(system, self.name, gpus, **job)
        try:
            job_of(system, self._folder.path, "", options)
            json.dumps(options)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"such a job is not possible: {error}") from error
        self._spec: Spec | None = Spec(
            system=system,
            options=options,
            repository=str(Path(repository).absolute()),
            models=names,
            per_server=per_server,
            minimum=minimum,
            maximum=maximum,
            queue_s=None if queue_time is None else _seconds("queue_time", queue_time),
            settle_s=_seconds("settle", settle),
            idle_s=_seconds("idle", idle),
            patience_s=_seconds("patience", patience),
            start_s=_seconds("load_time", load_time),
            installation="",
            program=tuple(triton),
            flags=tuple(flags),
        )

    @classmethod
    def attach(cls, name: str) -> Self:
        """Control a fleet that exists, and whose controller is gone; its servers go on.

        Raises
        ------
        ConfigError
            There is no such fleet, or somebody controls it.
        """
        fleet = cls.__new__(cls)
        fleet._folder = Folder(fleet_folder(name))
        fleet._spec = None
        fleet._thread = None
        fleet._control()
        return fleet

    @property
    def name(self) -> str:
        """Of its folder."""
        return self._folder.path.name

    @property
    def address(self) -> str:
        """What stands for its servers in ``servers=[...]``."""
        return f"{FLEET}{self._folder.path}"

    def __repr__(self) -> str:
        return repr(self.status()) if self._folder.spec() else f"<ServerFleet {self.name}: not running>"

    def __enter__(self) -> Self:
        return self if self._thread is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Make the fleet, and control it from a thread of this process.

        Raises
        ------
        ConfigError
            There is such a fleet already.
        LocalServerError
            Triton cannot be fetched.
        """
        self.create()
        self._control()
        return self

    def create(self) -> None:
        """Make the fleet's folder, for whoever attaches; see :meth:`start`."""
        if self._spec is None:
            raise ConfigError(f"{self._folder} exists already")
        installation = "" if self._spec.program else str(find().path)  # here, for nodes may have no network
        try:
            dataclasses.replace(self._spec, installation=installation).write(self._folder)
        except FileExistsError as error:
            raise ConfigError(
                f"{self._folder} exists already (in {self._folder.path}): attach to it, or stop it first "
                f"(daskonic fleet stop {self.name})"
            ) from error
        except OSError as error:
            raise ConfigError(f"the folder of {self._folder} cannot be made: {error}") from error

    def status(self) -> FleetStatus:
        """What the fleet is doing; see :func:`daskonic.fleet.status`."""
        return FleetStatus.of(self._folder)

    def stop(self) -> None:
        """Cancel all jobs, and forget the fleet; who waits for its servers is told that there is none."""
        self._finish("stop")

    def detach(self) -> None:
        """Give up control; servers go on for the fleet's patience, and somebody else may attach."""
        self._finish("detach")

    def release(self) -> None:
        """As :meth:`detach`, but without waiting."""
        if self._controller is not None:
            self._controller.end("detach")

    def wait(self) -> None:
        """Until the fleet is stopped from elsewhere, or controlled by another process."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(WAIT_S)  # signals are looked at in between

    def _finish(self, how: Literal["stop", "detach"]) -> None:
        """End the thread."""
        if self._thread is None or self._controller is None:
            return
        self._controller.end(how)
        self._thread.join()
        self._thread = None

    def _control(self) -> None:
        """Take over, and go on in a thread."""
        from daskonic.fleet.controller import Controller

        controller = self._controller = Controller(self._folder)
        try:
            controller.take_over()
        except FileNotFoundError:
            raise ConfigError(f"{self._folder} has just been stopped by somebody else") from None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(controller.run()), name="daskonic-fleet", daemon=True
        )
        self._thread.start()


def _names(repository: Path, models: Sequence[str] | None) -> tuple[str, ...]:
    """Models to be served; InputError if one is not there."""
    refuse_nothing_to_serve(repository, is_explicit=False)
    there = sorted(p.parent.name for p in repository.glob("*/config.pbtxt"))
    missing = sorted(set(models or ()) - set(there))
    if missing:
        raise InputError(
            f"the model repository {repository} has no model {', '.join(missing)}; it has {', '.join(there)}"
        )
    if not there:
        raise InputError(f"no model of the repository {repository} has a config.pbtxt")
    return tuple(there if models is None else dict.fromkeys(models))


def _seconds(key: str, value: str | float) -> float:
    """A time; ConfigError if it is none."""
    try:
        seconds = float(parse_timedelta(value, default="s"))
    except (KeyError, ValueError, TypeError, AttributeError):
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(f"{key} is {value!r}; a time such as '30 s' or '5 m' is needed")
    return seconds
