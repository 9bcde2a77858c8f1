"""SLURM itself on two nodes of one machine: its daemons in the network namespaces of :class:`TwoNodes`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.commands import environ
from support.nodes import NotPermitted, TwoNodes
from support.processes import wait_until

NAMES = ("node0", "node1")

_CONFIGURATION = """\
ClusterName=two
SlurmctldHost={names[0]}(10.77.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName={names[0]} NodeAddr=10.77.0.1 CPUs=2
NodeName={names[1]} NodeAddr=10.77.0.2 CPUs=2
PartitionName=cpu Nodes=ALL Default=YES
"""


class Slurm:
    """A controller on the first of two nodes, and what runs jobs on both; use it in a ``with`` statement.

    Args:
        nodes: entered before.
        folder: short, for sockets lie there.
    """

    def __init__(self, nodes: TwoNodes, folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
        if absent:
            raise NotPermitted(f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge")
        for name in ("munge", "state", *NAMES):
            (self.folder / name).mkdir()
        (self.folder / "munge" / "key").write_bytes(os.urandom(128))
        (self.folder / "munge" / "key").chmod(0o400)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n10.77.0.1 {NAMES[0]}\n10.77.0.2 {NAMES[1]}\n")
        (self.folder / "slurm.conf").write_text(_CONFIGURATION.format(names=NAMES, folder=self.folder))
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={self.folder}/munge/{name}" for option, name in names.items()]
        # By force: a folder of pytest's is not open to all users, as munged wants it.
        self._daemon(["munged", "--foreground", "--force", *files])
        wait_until((self.folder / "munge" / "socket").exists, "munged has no socket", 120)
        self._daemon(self._inside(0, "slurmctld", "-D"))
        for node, name in enumerate(NAMES):
            self._daemon(self._inside(node, "slurmd", "-D", "-N", name))
        idle = ("sinfo", "-h", "-o", "%T %D")
        wait_until(lambda: self.call(*idle).strip() == "idle 2", "the nodes do not come up", 120, every=0.5)
        return self

    def __exit__(self, *args: object) -> None:
        for node in range(2):
            self.nodes.kill(node)
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()

    def _daemon(self, command: list[str]) -> None:
        with (self.folder / f"daemon{len(self.daemons)}.log").open("w") as log:
            self.daemons.append(subprocess.Popen(command, env=self._environ(), stdout=log, stderr=subprocess.STDOUT))

    def _environ(self) -> dict[str, str]:
        return environ() | {"SLURM_CONF": f"{self.folder}/slurm.conf", "OMP_NUM_THREADS": "1"}

    def _inside(self, node: int, *command: str) -> list[str]:
        """What runs a command on a node; not ``ip netns exec``, which hides the control groups that slurmd wants."""
        script = f'mount --bind {self.folder}/hosts /etc/hosts && hostname {NAMES[node]} && exec "$@"'
        namespace = f"--net=/run/netns/{self.nodes.names[node]}"
        return ["nsenter", namespace, "unshare", "--mount", "--uts", "sh", "-c", script, "sh", *command]

    def call(self, *command: str, cwd: Path | None = None, variables: dict[str, str] | None = None) -> str:
        """What a command on the first node prints; raises if it fails."""
        done = subprocess.run(
            self._inside(0, *command), env=self._environ() | (variables or {}), cwd=cwd, text=True, capture_output=True
        )
        assert done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, script: Path, *options: str) -> str:
        """Queue a job; returns its number."""
        return self.call(
            "sbatch", "--parsable", "--open-mode=append", f"--output={script}.log", *options, str(script)
        ).strip()

    def state(self, job: str) -> str:
        """What SLURM calls the state of a job: ``RUNNING``, ``COMPLETED``, ``FAILED``, ..."""
        shown = self.call("scontrol", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def wait(self, jobs: Sequence[str], timeout: float = 400) -> list[str]:
        """Wait until jobs have ended; a requeued one begins at once, and not after SLURM's two minutes."""
        states: list[str] = []

        def ended() -> bool:
            states[:] = [self.state(job) for job in jobs]
            for job, state in zip(jobs, states, strict=True):
                if state == "PENDING":
                    with contextlib.suppress(AssertionError):  # it has just begun
                        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")
            return not {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"} & set(states)

        wait_until(ended, f"jobs {jobs} do not end", timeout, every=0.5)
        return states
