"""Measure how long the commands take to answer, and a run to its first update.

    python benchmarks/startup.py [--repeats 7] [--imports 20] [--output startup.json]

``qmix-train --help`` and ``qmix-envs`` are timed from the command to its end; ``qmix-train experiment=two_step_qmix``
from the command to the end of its first update, which needs a batch of 32 episodes collected. Each is a process of its
own, with the files in the machine's cache: a turn that is not counted comes first. *CPU* is processor time of all its
threads. ``--imports N`` also prints which modules took longest to import on the way to the first update, each
without those it imports itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from qmix_lightning.runtime.resources import available_cores
from qmix_lightning.training.summary import versions

if __name__ == "__main__":
    Callback: Any = object  # the benchmark itself needs no Lightning
else:
    from pytorch_lightning import Callback

AIMS = {"help": 1.5, "envs": 2.0, "first_update": 6.0}


class FirstUpdate(Callback):
    """Callback that writes when the first update was done, on the clock that all processes share."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, *args: Any) -> None:
        if not self.path.exists():
            times = os.times()
            self.path.write_text(json.dumps([time.time(), times.user + times.system]))


def _module(name: str, *flags: str) -> list[str]:
    return [sys.executable, *flags, "-m", f"qmix_lightning.{name}"]


def _first_update(folder: str, *flags: str) -> list[str]:
    return [
        *_module("train", *flags),
        *("experiment=two_step_qmix", "total_env_steps=100", f"run_dir={folder}/run"),
        f"callbacks.first={{_target_:startup.FirstUpdate,path:{folder}/first.json}}",
    ]


def _start(command: list[str], folder: str) -> tuple[float, float, str]:
    """Run a command; return its wall and processor seconds, and what it wrote to standard error."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    before, started = os.times(), time.time()
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    wall, after = time.time() - started, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    first = Path(folder) / "first.json"
    if first.exists():
        ended, cpu = json.loads(first.read_text())
        return ended - started, cpu, done.stderr
    children = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return wall, children, done.stderr


def _turn(case: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "help": [*_module("commands.train"), "--help"],
            "envs": _module("commands.envs"),
            "first_update": _first_update(folder),
        }
        wall, cpu, _ = _start(commands[case], folder)
    return {"wall_s": wall, "cpu_s": cpu}


def import_times() -> list[tuple[str, float]]:
    """Return milliseconds of each module on the way to the first update, without what it imports, longest first."""
    with tempfile.TemporaryDirectory() as folder:
        _, _, errors = _start(_first_update(folder, "-X", "importtime"), folder)
    found: defaultdict[str, float] = defaultdict(float)
    for own, name in re.findall(r"^import time: +(\d+) \| +\d+ \|  *(\S+)$", errors, re.MULTILINE):
        found[name] += int(own) / 1000
    return sorted(found.items(), key=lambda item: -item[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(AIMS), choices=list(AIMS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--imports", type=int, default=0, help="print so many modules that took longest to import")
    parser.add_argument("--output", type=Path, default=Path("startup.json"))
    options = parser.parse_args()
    turns: dict[str, list[dict[str, float]]] = {case: [] for case in options.cases}
    for repeat in range(options.repeats + 1):
        for case in options.cases:
            turn = _turn(case)
            if repeat:
                turns[case].append(turn)
    print(f"{'case':<14}{'wall, s':>9}{'least':>8}{'most':>8}{'CPU, s':>8}{'aim, s':>8}")
    for case, rows in turns.items():
        walls = [row["wall_s"] for row in rows]
        cpu = statistics.median(row["cpu_s"] for row in rows)
        print(
            f"{case:<14}{statistics.median(walls):>9.2f}{min(walls):>8.2f}{max(walls):>8.2f}{cpu:>8.2f}{AIMS[case]:>8}"
        )
    slowest = import_times()[: options.imports] if options.imports else []
    for name, milliseconds in slowest:
        print(f"{milliseconds:>9.0f} ms  {name}")
    machine = {"machine": platform.machine(), "cores": available_cores(), "versions": versions()}
    result = {**machine, "load": os.getloadavg(), "aims_s": AIMS, "turns": turns, "imports_ms": slowest}
    options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
