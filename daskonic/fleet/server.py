"""What runs in a server's job: ``python -m daskonic.fleet.server FOLDER KEY``.

It starts Triton, puts it on the fleet's list when it is ready, and takes it off early enough: before the job's end, at SIGTERM,
when it is not wanted any more, and when nobody has controlled the fleet for too long. Then new requests stop, those under
way end, and so does the job. Whatever happens to the controller, no job stays for longer than the fleet's patience.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import dask.config

from daskonic.deploy.node import UNFIT
from daskonic.ending import job_end_s, job_margin_s
from daskonic.errors import DaskonicError, LocalServerError
from daskonic.fleet.spec import Spec
from daskonic.roster import CLIENT_LOOKS_S, Entry, Folder, Pulse
from daskonic.server import LocalServer
from daskonic.server.index import ask

__all__ = ["ServerJob"]

logger = logging.getLogger("daskonic.fleet")

BEAT_S = 1.0
POLL_S = 0.25
UNLISTED_S = 5.0
"""How long the controller may take to strike a server off that leaves; if there is none, it stays on the list."""
DRAIN_S = 60.0
"""How long requests under way may take; less where the job ends before."""
LAST_S = 1.0


class ServerJob:
    """A server of a fleet, from its start to its end.

    Parameters
    ----------
    folder : Folder
    key : str
        Of this job.
    host : str
        Name or number by which clients reach this node.
    """

    def __init__(self, folder: Folder, key: str, host: str) -> None:
        self._folder, self._key, self._host = folder, key, host
        self._spec = Spec.read(folder)
        self._entry = folder.entry(key) or Entry()
        self._end_s = job_end_s()
        self._entry = Entry(
            beat=self._entry.beat,
            node=platform.node(),
            job=os.environ.get("SLURM_JOB_ID", ""),
            models=self._entry.models,
            leaves_s=self._end_s - job_margin_s(),
        )
        self._lock = threading.Lock()
        self._pulse = Pulse()
        self._missed = 0
        self._terminated = threading.Event()
        self._over = threading.Event()
        self._server: LocalServer | None = None

    def run(self) -> int:
        """The whole life; an exit code."""
        signal.signal(signal.SIGTERM, lambda *_: self._terminated.set())
        beating = threading.Thread(target=self._beat, name="daskonic-beat")
        beating.start()
        code = 0
        try:
            why = self._why_leave() or self._serve()
        except DaskonicError as error:
            why, code = str(error), UNFIT
            sys.stderr.write(f"daskonic: node {platform.node()}: {error}\n")
        finally:
            self._over.set()
            beating.join()
        self._write(state="ended", why=why)
        return code

    def _serve(self) -> str:
        """Start, be listed, leave; the reason for leaving."""
        spec = self._spec
        with dask.config.set({"daskonic.server.installation": spec.installation or None}):
            loaded = [f"--load-model={name}" for name in self._entry.models]
            server = LocalServer(
                spec.repository,
                model_control="explicit",
                log=os.path.join(spec.options["log_directory"], f"triton-{self._key}.log"),
                timeout_s=spec.start_s,
                program=spec.program,
                flags=("--grpc-address=0.0.0.0", f"--exit-timeout-secs={DRAIN_S:.0f}", *loaded, *spec.flags),
            ).start()
        try:
            self._refuse_not_ready(server)
            self._server = server
            self._write(state="serves", address=f"{self._host}:{server.address.rpartition(':')[2]}")
            logger.info("%s serves %s", self._entry.address, ", ".join(self._entry.models))
            while not (why := self._why_leave()):
                if (ended := server.wait(POLL_S)) is not None:
                    raise LocalServerError(
                        f"Triton has ended by itself with code {ended}; its log is {server.log}"
                    )
            logger.info("%s leaves: %s", self._entry.address, why)
            self._write(state="leaves", why=why)
            self._wait_for_clients()
        except BaseException:
            server.stop(grace_s=0)
            raise
        server.stop(grace_s=max(min(DRAIN_S, self._end_s - time.time() - LAST_S), 0.0))
        return why

    def _refuse_not_ready(self, server: LocalServer) -> None:
        """LocalServerError unless all its models are loaded."""
        for model in server.models():
            if model["name"] in self._entry.models and model["state"] != "READY":
                raise LocalServerError(
                    f"Triton cannot load {model['name']}: {model['reason']}; its log is {server.log}"
                )

    def _why_leave(self) -> str:
        """Why it is time to go; empty while it is not."""
        if self._terminated.is_set():
            return "the batch system ends its job"
        if time.time() > self._entry.leaves_s:
            return "its job's time is over"
        roster = self._folder.roster()
        if roster is None:
            self._missed += self._folder.is_gone()
            return "the fleet is gone" if self._missed > 1 else ""
        self._missed = 0
        if self._key not in roster.jobs:
            return "it is not wanted any more"
        if self._pulse.still_s(roster) > self._spec.patience_s:
            return f"nobody has controlled the fleet for {self._spec.patience_s:g} s"
        return ""

    def _wait_for_clients(self) -> None:
        """Until they do not send any more: the controller strikes it off, and they look at the list."""
        end = time.monotonic() + UNLISTED_S
        while time.monotonic() < end and self._is_listed():
            time.sleep(POLL_S)
        last_s = self._end_s - time.time() - LAST_S
        time.sleep(max(min(CLIENT_LOOKS_S + POLL_S, last_s), 0.0))

    def _is_listed(self) -> bool:
        """Whether clients are told to send requests here."""
        roster = self._folder.roster()
        return roster is not None and self._entry.address in roster.servers

    def _beat(self) -> None:
        """Say again and again how things are."""
        while not self._over.wait(BEAT_S):
            self._write(**self._sums())

    def _sums(self) -> dict[str, Any]:
        """What the server has done; nothing while it does not answer."""
        try:
            if self._server is None:
                return {}
            told = json.loads(
                ask(int(self._server.http_address.rpartition(":")[2]), "GET", "/v2/models/stats")
            )
            stats = [model["inference_stats"] for model in told["model_stats"]]
        except (OSError, ValueError, KeyError, LocalServerError):
            return {}
        return {
            "requests": sum(s["success"]["count"] for s in stats),
            "queue_s": sum(s["queue"]["ns"] for s in stats) / 1e9,
            "compute_s": sum(s["compute_infer"]["ns"] for s in stats) / 1e9,
        }

    def _write(self, **changes: Any) -> None:
        """Tell the controller."""
        with self._lock:
            self._entry = dataclasses.replace(
                self._entry, beat=self._entry.beat + 1, written_s=time.time(), **changes
            )
            with suppress(OSError):  # the folder is gone, or cannot be reached just now
                self._folder.write_entry(self._key, self._entry)


def main() -> None:
    """Serve, and exit."""
    from distributed.utils import get_ip, get_ip_interface

    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("key")
    parser.add_argument("--interface")
    given, _ = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    host = get_ip_interface(given.interface) if given.interface else get_ip()  # type: ignore[no-untyped-call]
    try:
        code = ServerJob(Folder(given.folder), given.key, host).run()
    except DaskonicError as error:
        sys.stderr.write(f"daskonic: node {platform.node()}: {error}\n")
        code = UNFIT
    sys.exit(code)


if __name__ == "__main__":
    main()
