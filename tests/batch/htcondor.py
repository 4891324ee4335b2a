"""A real HTCondor pool on one machine: manager, submit daemon, and startds, the last one with pretended GPUs.

``python tests/batch/htcondor.py`` runs one until Ctrl-C and says how to talk to it. Needs root and what
``install.sh`` unpacks; writes only to its own folder.

HTCondor does not run jobs of root as root. The daemons live in a user namespace in which root has another
number: they take themselves and their jobs for a common user's, and outside they are root, so that jobs can
read what the tests write.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from daemons import Daemons, free_ports, run_until_interrupted

ROOT = Path(os.environ.get("CONDOR_ROOT", "/opt/daskonic-condor"))
GPUS = 2
CPUS, MEMORY_MB = 8, 16_000
NAMESPACE = ("unshare", "--user", "--map-user=1", "--map-group=1")

CONFIGURATION = """\
RELEASE_DIR = {root}/usr
LIB = $(RELEASE_DIR)/lib/condor
LIBEXEC = $(RELEASE_DIR)/libexec/condor
SHARE = $(RELEASE_DIR)/share/condor
LOCAL_DIR = {folder}
ETC = {folder}
RUN = {folder}/run
LOG = {folder}/log
LOCK = {folder}/lock
SPOOL = {folder}/spool
EXECUTE = {folder}/execute
SEC_TOKEN_SYSTEM_DIRECTORY = {folder}/tokens
SEC_PASSWORD_DIRECTORY = {folder}/passwords
LOCAL_CONFIG_FILE =
LOCAL_CONFIG_DIR =
REQUIRE_LOCAL_CONFIG_FILE = False
# its master, run by root, would set the machine's kernel parameters
ENABLE_KERNEL_TUNING = False

use ROLE: CentralManager
use ROLE: Submit
use ROLE: Execute
DAEMON_LIST = MASTER, COLLECTOR, NEGOTIATOR, SCHEDD, {startds}
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
COLLECTOR_HOST = 127.0.0.1:{port}
USE_SHARED_PORT = True
SHARED_PORT_PORT = {port}
DEFAULT_DOMAIN_NAME = pool.test
UID_DOMAIN = pool.test
FILESYSTEM_DOMAIN = pool.test
TRUST_UID_DOMAIN = True
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, CLAIMTOBE
SEC_DEFAULT_ENCRYPTION = OPTIONAL
SEC_DEFAULT_INTEGRITY = OPTIONAL
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADMINISTRATOR = *

# seconds where a site has minutes
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
UPDATE_INTERVAL = 5
STARTER_UPDATE_INTERVAL = 5
SHADOW_QUEUE_UPDATE_INTERVAL = 5
PERIODIC_EXPR_INTERVAL = 2
MAX_PERIODIC_EXPR_INTERVAL = 4
JOB_START_DELAY = 0
RUNBENCHMARKS = 0
MachineMaxVacateTime = 10

# machines as large as we say
NUM_CPUS = {cpus}
MEMORY = {memory}
SLOT_TYPE_1 = 100%
NUM_SLOTS_TYPE_1 = 1
MACHINE_RESOURCE_NAMES = GPUs
# one node has some; of this setting itself a node cannot have its own
MACHINE_RESOURCE_GPUs = $(PRETENDED)
PRETENDED =
GPU_DISCOVERY_EXTRA =
ENVIRONMENT_FOR_AssignedGPUs = CUDA_VISIBLE_DEVICES, NVIDIA_VISIBLE_DEVICES
SLOT_TYPE_1_PARTITIONABLE = True
BASE_CGROUP =
ENABLE_URL_TRANSFERS = False
START = True
SUSPEND = False
PREEMPT = False
KILL = False
"""

STARTD = """\
STARTD_{upper} = $(STARTD)
STARTD_{upper}_ARGS = -local-name {name}
{name}.STARTD_NAME = {name}
{name}.STARTD_LOG = {folder}/log/StartLog.{name}
{name}.STARTER_LOG = {folder}/log/StarterLog.{name}
{name}.EXECUTE = {folder}/execute/{name}
"""

PRETENDED = """\
{name}.PRETENDED = {gpus}
"""


class Htcondor:
    """Three startds; ``environment`` is what its commands need."""

    name = "htcondor"

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        self.folder, self.nodes, self.port = folder, nodes, free_ports(1)
        self.environment = {
            "CONDOR_CONFIG": str(folder / "condor_config"),
            "PATH": f"{ROOT}/usr/bin:{ROOT}/usr/sbin:{os.environ['PATH']}",
            "CONDOR_IDS": "0.0",
        }
        self._daemons = Daemons(folder)
        self._daemons.environment = self.environment

    @staticmethod
    def missing() -> str:
        """What is not there; empty if nothing."""
        return "" if (ROOT / "complete").exists() and not os.geteuid() else f"HTCondor in {ROOT}, or root"

    def start(self) -> None:
        """All daemons; back when all nodes take jobs."""
        names = [f"n{i}" for i in range(1, self.nodes)] + ["gpu"]
        for sub in ("run", "log", "lock", "spool", "tokens", "passwords", *(f"execute/{n}" for n in names)):
            (self.folder / sub).mkdir(parents=True)
        startds = ", ".join(f"STARTD_{n.upper()}" for n in names)
        text = CONFIGURATION.format(
            root=ROOT, folder=self.folder, port=self.port, startds=startds, cpus=CPUS, memory=MEMORY_MB
        )
        text += "".join(STARTD.format(name=n, upper=n.upper(), folder=self.folder) for n in names)
        text += PRETENDED.format(name="gpu", gpus=", ".join(f"pretended{i}" for i in range(GPUS)))
        (self.folder / "condor_config").write_text(text)
        inside = {k: v for k, v in self.environment.items() if k != "CONDOR_IDS"}
        self._daemons.environment = inside
        self._daemons.start("condor_master", "-f", prefix=NAMESPACE)
        self._daemons.environment = self.environment
        self._daemons.wait(lambda: len(self._nodes()) == self.nodes and self._is_open())

    def stop(self) -> None:
        """End all jobs, then all daemons."""
        self._daemons.ask("condor_rm", "-all")
        end = time.monotonic() + 15
        while self.jobs() and time.monotonic() < end:
            time.sleep(0.2)
        self._daemons.stop()

    def jobs(self) -> list[str]:
        """Those that wait or run."""
        return self._daemons.ask("condor_q", "-af:j", "JobStatus").split()[::2]

    def cancel(self, job: str) -> None:
        """As its user would."""
        self._run("condor_rm", job)

    def close_nodes(self) -> None:
        """No job starts any more."""
        for name in self._nodes():
            self._run("condor_drain", name)

    def open_nodes(self) -> None:
        """Jobs start again."""
        for name in self._nodes():
            self._run("condor_drain", "-cancel", name)

    def lose_node(self) -> str:
        """One where jobs run dies with all that runs there, and comes back empty; its name."""
        running = self._daemons.ask("condor_q", "-constraint", "JobStatus == 2", "-af", "RemoteHost")
        node = next(host for host in running.split() if "@" in host).split("@")[1].split(".")[0]
        for startd in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (startd / "cmdline").read_bytes().split(b"\0")
                mine = str(self.folder).encode() in (startd / "environ").read_bytes()
                if mine and words[0].endswith(b"condor_startd") and node.encode() in words:
                    _kill_tree(int(startd.name))
        return node

    def _run(self, *command: str) -> None:
        """A command that must work."""
        subprocess.run(command, env=os.environ | self.environment, check=True, capture_output=True)

    def _nodes(self) -> list[str]:
        """Machines that the collector knows."""
        return self._daemons.ask(
            "condor_status", "-constraint", 'SlotType =?= "Partitionable"', "-af", "Machine", "Name"
        ).split()[1::2]

    def _is_open(self) -> bool:
        """Whether jobs can be submitted."""
        return "jobs" in self._daemons.ask("condor_q", "-totals")


def _kill_tree(pid: int) -> None:
    """A process and all that it started, without a word to them."""
    with suppress(OSError):
        os.kill(pid, signal.SIGSTOP)  # it must not start others meanwhile
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(pid, signal.SIGKILL)
        for child in children:
            _kill_tree(int(child))


if __name__ == "__main__":
    run_until_interrupted(Htcondor)
