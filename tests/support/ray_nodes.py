"""A Ray cluster of two nodes on this machine, one core each, in a process of its own: its second node comes and goes.

As a program it prints the address, then does what each line of its input says, ``kill`` or ``add``, and says ``done``.
"""

from __future__ import annotations

import subprocess
import sys

from support.commands import environ


class TwoNodes:
    """Starts the cluster, and ends it with the ``with`` block."""

    def __enter__(self) -> TwoNodes:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "support.ray_nodes"],
            env=environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.address = self._line()
        return self

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the cluster did not start"
        return line

    def tell(self, what: str) -> None:
        """Have the second node killed (``kill``), or another one added (``add``)."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._line() == "done"

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(timeout=120)


def serve() -> None:
    """Run the cluster until the input ends."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
        else:
            second = cluster.add_node(num_cpus=1)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    serve()
