"""Measure what a piece of speed work is worth: two working trees, with it and without, take turns at the same work.

    git worktree add ../without my_branch
    python benchmarks/pieces.py --before . --after ../without [--cases lbf_1 small ...] [--output pieces.json]

A case is a whole run of ``training.py``, in turns and in one process (``lbf_8`` and ``spread_8`` step their
environments in it, so that all the time is seen), or an update of ``learner.py``; each tree runs its own copy of the
two. The trees work in child processes that wait for each other: a turn is so many joint steps or updates, in slices,
and counts processor time (user and system, all threads of the child, torch with one), which leaves out what else runs
on the machine, but not what that does to caches and memory. The ratio is the speed after to the speed before, its
interval the 95 % bootstrap one of the median over turns. There are 7 turns; where the ratio is within 0.02 of 0.95 or
the interval holds 0.95, 8 more follow, of new children, since processes differ too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback

LIMIT, NEAR = 0.95, 0.02
TURNS, MORE_TURNS = 7, 8
SLICES = 4
"""Parts of a turn, in which the trees alternate: what a neighbour does to the caches lasts for seconds."""
JOINT_STEPS = {
    "lbf_1": 600,
    "lbf_8": 2_000,
    "spread_8": 1_000,
    "jax_spread_8": 2_400,
    "smax_3m": 2_560,
    "cramped_room": 240,
}
UPDATES = {"small": 4, "large": 1, "smax": 14, "lbf": 12}
"""Work of a slice, some tenths of a second."""
WARM_SLICES = 6
"""Before anything is counted: compilation, and filling the first batch."""
REAL = {"smax": "smax_3m", "lbf": "lbf_8x8_2p_3f"}
"""Cases of the learner on real episodes, and the recipes that play them."""
CHANNEL = 1
"""Descriptor by which a child tells its parent."""


class Turns(Callback):
    """Callback that lets a run go on for a turn at a time, and writes the processor time of a joint step."""

    def __init__(self, joint_steps: int) -> None:
        self.joint_steps = joint_steps
        self.until = WARM_SLICES * joint_steps
        self.begun: tuple[float, int] | None = None

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        env_steps = trainer.datamodule.counters.env_steps
        if env_steps < self.until:
            return
        if self.begun is not None:
            report((time.process_time() - self.begun[0]) / (env_steps - self.begun[1]))
        wait()
        self.begun, self.until = (time.process_time(), env_steps), env_steps + self.joint_steps


def report(seconds: float) -> None:
    """Tell the parent what a unit of work took."""
    os.write(CHANNEL, f"{seconds}\n".encode())


def wait() -> None:
    """Wait until the parent wants another turn; end where it wants none."""
    if not sys.stdin.readline():
        os._exit(0)  # what is under way is of no use any more


def run_training(case: str, folder: str) -> None:
    """Train as ``qmix-train`` does, without an end, a turn at a time."""
    from training import COMMON, RUNS, WAYS

    from qmix_lightning.commands.train import main as train

    processes = {"rollout=process", "rollout.num_workers=2"}
    overrides = [override for override in RUNS[case][1] if override not in processes]
    turns = f"callbacks.turns={{_target_:__main__.Turns,joint_steps:{JOINT_STEPS[case]}}}"
    endless = ["total_env_steps=1000000000", f"run_dir={folder}/run"]
    sys.argv = ["qmix-train", *COMMON, *overrides, *WAYS["turns"], *endless, turns]
    train()


def run_learner(case: str, batches: str) -> None:
    """Update on one batch, a turn at a time."""
    import learner

    from qmix_lightning.types import TrajectoryBatch

    getattr(learner, "keep_freed_memory", int)()  # one of the trees may be without it
    torch.set_num_threads(1)
    torch.manual_seed(0)
    real = Path(batches, f"{case}.pt")
    batch = TrajectoryBatch(**torch.load(real)) if real.exists() else learner.random_batch(learner.SHAPES[case])
    update = learner.OurUpdate(learner.our_learner(learner.shape_of(batch)), batch, "float32")
    for _ in range(UPDATES[case]):
        update()
    while True:
        wait()
        begun = time.process_time()
        for _ in range(UPDATES[case]):
            update()
        report((time.process_time() - begun) / UPDATES[case])


def save_batch(case: str, batches: str) -> None:
    """Write a batch of real episodes, after some training."""
    from learner import real_batch

    batch = real_batch(REAL[case], 60_000)
    values = {field.name: getattr(batch, field.name, None) for field in fields(batch)}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor) and name != "restarts"}
    torch.save(tensors, Path(batches, f"{case}.pt"))


def start(tree: Path, task: str, case: str, folder: str) -> subprocess.Popen[str]:
    """Start a child that imports the package, ``benchmarks/learner.py`` and ``training.py`` from ``tree``."""
    path = os.pathsep.join([str(tree), str(tree / "benchmarks")])
    command = [sys.executable, "-P", "-W", "ignore", __file__, "--child", task, case, folder, str(tree)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    Path(folder).mkdir(exist_ok=True)
    with Path(folder, "log.txt").open("w") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )


def child(task: str, case: str, folder: str, tree: str) -> None:
    """Do a child's ``task`` with the package of ``tree``, its environments and its configuration."""
    import qmix_lightning

    if Path(qmix_lightning.__file__).parents[1] != Path(tree):
        raise SystemExit(f"imported {qmix_lightning.__file__}, not that of {tree}")
    qmix_lightning.__path__.append(tree)  # holds envs/ and conf/, which an installation would take from elsewhere
    {"train": run_training, "update": run_learner, "save": save_batch}[task](case, folder)


def take_slice(process: subprocess.Popen[str], folder: str) -> float:
    """Let a child do a slice of a turn; return the processor seconds of a unit of its work."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    if not (line := process.stdout.readline()):
        raise SystemExit(f"a child has ended:\n{Path(folder, 'log.txt').read_text()[-3000:]}")
    return float(line)


def compare(case: str, trees: dict[str, Path], turns: int, batches: Path) -> list[dict[str, float]]:
    """Return the processor seconds of a unit of work with each tree, turn by turn, of two new children."""
    task = "train" if case in JOINT_STEPS else "update"
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: f"{folder}/{name}" for name in trees}
        for name in trees if case in REAL else ():
            Path(folders[name]).mkdir()
            Path(folders[name], f"{case}.pt").symlink_to(batches / f"{case}.pt")
        children = {name: start(tree, task, case, folders[name]) for name, tree in trees.items()}
        try:
            taken: list[dict[str, float]] = []
            for _ in range(turns):
                spent = dict.fromkeys(trees, 0.0)
                for number in range(SLICES):
                    for name in trees if number % 2 else reversed(trees):
                        spent[name] += take_slice(children[name], folders[name]) / SLICES
                taken.append(spent)
            return taken
        finally:
            for process in children.values():
                process.kill()
                process.wait()


def summary(taken: list[dict[str, float]]) -> dict[str, float]:
    """Return the median ratio of speeds, after to before, with its 95 % bootstrap interval."""
    ratios = np.array([turn["before"] / turn["after"] for turn in taken])
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high), "turns": len(ratios)}


def measure(case: str, trees: dict[str, Path], batches: Path) -> dict[str, Any]:
    """Compare the trees in one case, and print it."""
    taken = compare(case, trees, TURNS, batches)
    found = summary(taken)
    if abs(found["ratio"] - LIMIT) < NEAR or found["low"] < LIMIT < found["high"]:
        taken += compare(case, trees, MORE_TURNS, batches)
        found = summary(taken)
    before, after = (float(np.median([turn[name] for turn in taken])) * 1e6 for name in trees)
    print(
        f"{case:<16}{before:>11,.1f}{after:>11,.1f}{found['ratio']:>8.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        f"{found['turns']:>7}",
        flush=True,
    )
    return {"case": case, **found, "seconds": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="working tree with the piece")
    parser.add_argument("--after", type=Path, required=True, help="working tree without it")
    parser.add_argument("--cases", nargs="+", default=[*JOINT_STEPS, *UPDATES], choices=[*JOINT_STEPS, *UPDATES])
    parser.add_argument("--batches", type=Path, help="folder that keeps the batches of real episodes for the next time")
    parser.add_argument("--output", default="pieces.json")
    options = parser.parse_args()
    trees = {"before": options.before.resolve(), "after": options.after.resolve()}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        batches = (options.batches or Path(temporary)).resolve()
        print(f"{'case':<16}{'before, us':>11}{'after, us':>11}{'ratio':>8}{'95 %':>16}{'turns':>7}", flush=True)
        for case in options.cases:
            saved = case not in REAL or (batches / f"{case}.pt").exists()
            if not saved and start(trees["before"], "save", case, str(batches)).wait():
                raise SystemExit((batches / "log.txt").read_text()[-3000:])
            results.append(measure(case, trees, batches))
    Path(options.output).write_text(json.dumps({"load": os.getloadavg(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        CHANNEL = os.dup(1)
        os.dup2(2, 1)  # what a run prints
        child(*sys.argv[2:])
    else:
        main()
