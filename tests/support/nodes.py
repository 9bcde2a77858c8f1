"""Two nodes on one machine: a network namespace each, a cable between them, and what is started there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.commands import environ

RANKS = 2
"""Processes on each node."""

INTERFACE = "eth0"

NODES = ["trainer.devices=2", "trainer.num_nodes=2", "trainer.strategy=ddp_find_unused_parameters_true"]


class NotPermitted(Exception):
    """Raised where network namespaces cannot be made."""


class TwoNodes:
    """Network namespaces with the addresses 10.77.0.1 and 10.77.0.2; use it in a ``with`` statement.

    Args:
        folder: for what the nodes print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"qmix{os.getpid()}{letter}" for letter in "ab"]
        self.started = 0

    def __enter__(self) -> TwoNodes:
        try:
            for name in self.names:
                _ip("netns", "add", name)
            devices = [f"veth{os.getpid()}{letter}" for letter in "ab"]
            _ip("link", "add", devices[0], "type", "veth", "peer", "name", devices[1])
            for number, (name, device) in enumerate(zip(self.names, devices, strict=True), start=1):
                _ip("link", "set", device, "netns", name, "name", INTERFACE)
                _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", INTERFACE)
                for one in ("lo", INTERFACE):
                    _ip("-n", name, "link", "set", one, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            why = (getattr(error, "stderr", None) or str(error)).strip()
            raise NotPermitted(f"two nodes need network namespaces: run as root, with iproute2 ({why})") from error
        return self

    def __exit__(self, *args: object) -> None:
        for node, name in enumerate(self.names):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                self.kill(node)
                _ip("netns", "del", name)

    def pids(self, node: int) -> list[int]:
        """Processes of a node."""
        return [int(pid) for pid in _ip("netns", "pids", self.names[node]).split()]

    def ranks(self, node: int) -> list[int]:
        """Processes of a node that torchrun has started, by rank."""
        found = []
        for pid in self.pids(node):
            with contextlib.suppress(OSError):
                variables = dict(v.partition("=")[::2] for v in Path(f"/proc/{pid}/environ").read_text().split("\0"))
                if "LOCAL_RANK" in variables:
                    found.append((variables["LOCAL_RANK"], pid))
        return [pid for _, pid in sorted(found)]

    def kill(self, node: int) -> None:
        """Send SIGKILL to all that runs on a node."""
        _kill(self.pids(node))

    def kill_ranks(self, node: int) -> None:
        """Send SIGKILL to a node's ranks; its torchrun is left."""
        _kill(self.ranks(node))

    def start(self, node: int, command: list[str], variables: dict[str, str] | None = None, mount: str = "") -> Node:
        """Start a command on a node.

        Args:
            node: 0 or 1.
            command: what follows ``python``.
            variables: of its environment.
            mount: a folder in whose place this node sees an empty one of its own.
        """
        self.started += 1
        inside = [sys.executable, *command]
        if mount:
            inside = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {mount} && exec "$@"', "sh", *inside]
        interface = {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
        log = self.folder / f"node{node}-{self.started}.log"
        return Node(["ip", "netns", "exec", self.names[node], *inside], interface | (variables or {}), log)

    def torchrun(self, module: list[str], port: int = 29511) -> list[Node]:
        """Start a module with torchrun on both nodes, with two ranks each."""
        return [self.start(node, torchrun(node, module, port=port)) for node in range(2)]


def torchrun(node: int, module: list[str], port: int = 29511) -> list[str]:
    """What follows ``python`` for a node's torchrun."""
    where = ["--master-addr=10.77.0.1", f"--master-port={port}", f"--node-rank={node}"]
    counts = ["--nnodes=2", f"--nproc-per-node={RANKS}"]
    return ["-m", "torch.distributed.run", *counts, *where, "-m", *module]


def torchrun_that_restarts(node: int, module: list[str]) -> list[str]:
    """What follows ``python`` for a node's torchrun that starts its ranks again when some are lost."""
    where = ["--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29512", "--rdzv-id=job", "--max-restarts=3"]
    where += [f"--rdzv-conf=is_host={1 - node}", f"--local-addr=10.77.0.{node + 1}"]  # no name leads to a namespace
    return ["-m", "torch.distributed.run", "--nnodes=2", f"--nproc-per-node={RANKS}", *where, "-m", *module]


class Node:
    """What runs on a node, and what it has printed."""

    def __init__(self, command: list[str], variables: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, env=environ() | variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, timeout: float = 300) -> int:
        """Its status; what still runs after ``timeout`` seconds fails with what it printed."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.printed()}") from None

    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def errors(self) -> list[str]:
        """The lines of ours that say what went wrong."""
        return [line for line in self.printed().splitlines() if line.startswith("error: ")]


def finish(nodes: list[Node], timeout: float = 300) -> list[int]:
    """Wait for all; their statuses."""
    deadline = time.monotonic() + timeout
    return [node.wait(max(1.0, deadline - time.monotonic())) for node in nodes]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
