"""A real SLURM on one machine: a controller and several slurmd, the last one with pretended GPUs.

``python tests/batch/slurm.py`` runs one until Ctrl-C and says how to talk to it. Needs root and what
``install.sh`` installs; writes only to its own folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from daemons import Daemons, free_ports, run_until_interrupted

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
GPUS = 2
CPUS, MEMORY_MB = 8, 16_000

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a job that is started again waits until its first credential is no more
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
# a container has no cgroups of its own, and nothing here is to be measured
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
# machines as large as we say
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
# a job that can start does so at once
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=2,sched_min_interval=0
# what a partition does not take is refused, as with accounts of a database
EnforcePartLimits=ALL
ReturnToService=2
KillWait=5
SlurmdTimeout=10
MinJobAge=300
{nodes}
PartitionName=cpu Nodes={all} Default=YES MaxTime=UNLIMITED DefaultTime=60 State=UP
PartitionName=short Nodes={all} MaxTime=2 DefaultTime=1 State=UP
PartitionName=group Nodes={all} AllowAccounts=cms State=UP
PartitionName=gpu Nodes={last} MaxTime=UNLIMITED DefaultTime=60 State=UP
"""


class Slurm:
    """Four nodes; ``environment`` is what its commands need."""

    name = "slurm"

    def __init__(self, folder: Path, nodes: int = 4) -> None:
        self.folder, self.nodes, self.port = folder, nodes, free_ports(1 + nodes)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons = Daemons(folder)
        self._daemons.environment = self.environment

    @staticmethod
    def missing() -> str:
        """What is not there; empty if nothing."""
        away = [program for program in PROGRAMS if shutil.which(program) is None]
        return f"SLURM's {', '.join(away)}" if away else "root" if os.geteuid() else ""

    def start(self) -> None:
        """Munge with a key of its own, controller, nodes; back when all nodes are idle."""
        for sub in ("munge", "state"):
            (self.folder / sub).mkdir(parents=True)
        self._configure()
        self._munge()
        self._daemons.start("slurmctld", "-D")
        for i in range(1, self.nodes + 1):
            (self.folder / f"spool.n{i}").mkdir()
            self._daemons.start("slurmd", "-D", "-N", f"n{i}")
        self._daemons.wait(lambda: len(self._idle()) == self.nodes)

    def stop(self) -> None:
        """End all jobs, then all daemons."""
        self._daemons.ask("scancel", "--user=root")
        end = time.monotonic() + 15
        while self.jobs() and time.monotonic() < end:
            time.sleep(0.2)
        self._daemons.stop()

    def jobs(self) -> list[str]:
        """Those that wait or run."""
        return self._daemons.ask("squeue", "--noheader", "--format=%i").split()

    def cancel(self, job: str) -> None:
        """As its user would."""
        subprocess.run(["scancel", job], env=os.environ | self.environment, check=True)

    def close_nodes(self) -> None:
        """No job starts any more."""
        self._update(f"n[1-{self.nodes}]", "state=drain", "reason=maintenance")

    def open_nodes(self) -> None:
        """Jobs start again."""
        self._update(f"n[1-{self.nodes}]", "state=resume")

    def lose_node(self) -> str:
        """One where jobs run goes down with them, and comes back empty when it is heard of; its name."""
        node = self._daemons.ask("squeue", "--noheader", "--states=running", "--format=%N").split()[0]
        self._update(node, "state=down", "reason=lost")
        return node

    def _update(self, nodes: str, *what: str) -> None:
        """Tell the controller."""
        subprocess.run(
            ["scontrol", "update", f"nodename={nodes}", *what], env=os.environ | self.environment, check=True
        )

    def _idle(self) -> list[str]:
        """Names of nodes that wait for jobs."""
        return self._daemons.ask(
            "sinfo", "--noheader", "--Node", "--states=idle", "--format=%N", "-p", "cpu"
        ).split()

    def _configure(self) -> None:
        """``slurm.conf`` and ``gres.conf``."""
        host, last = socket.gethostname().split(".")[0], f"n{self.nodes}"
        nodes = "\n".join(
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.port + i} CPUs={CPUS} "
            f"RealMemory={MEMORY_MB} State=UNKNOWN{f' Gres=gpu:pretended:{GPUS}' if f'n{i}' == last else ''}"
            for i in range(1, self.nodes + 1)
        )
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host,
                port=self.port,
                folder=self.folder,
                nodes=nodes,
                all=f"n[1-{self.nodes}]",
                last=last,
            )
        )
        for i in range(GPUS):
            (self.folder / f"gpu{i}").touch()
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={last} Name=gpu Type=pretended File={self.folder}/gpu[0-{GPUS - 1}]\n"
        )

    def _munge(self) -> None:
        """Who is who; it insists that others cannot write where its files are."""
        folder = self.folder / "munge"
        folder.chmod(0o711)
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        options = {
            "key-file": key,
            "socket": folder / "socket",
            "pid-file": folder / "pid",
            "seed-file": folder / "seed",
        }
        self._daemons.start(
            "munged",
            "--foreground",
            "--force",
            "--num-threads=2",
            *(f"--{k}={v}" for k, v in options.items()),
        )
        self._daemons.wait(lambda: self._daemons.ask("munge", "-S", str(folder / "socket"), "-n") != "")


if __name__ == "__main__":
    run_until_interrupted(Slurm)
