"""Measure how fast whole runs are: collecting, storing, sampling and updating, beside the raw simulator.

    python benchmarks/training.py [--cases lbf_1 smax_3m] [--steps 40000] [--repeats 3] [--output training.json]

Every case is a real ``qmix-train`` in a process of its own, at the work per environment step of a peer's row: a
feed-forward agent of 64 units on LBF and simple_spread (epsilon 1, so that episodes stay long), batches of 32
episodes, an update for each so many episodes; on SMAX a recurrent agent and an update of 32 episodes for each 256 joint
steps; in Overcooked's kitchen, as often as ``env=overcooked``, one of 4 episodes of 400 for each 16 joint steps. Ways:
``turns`` collects, then updates; ``thread`` and ``process`` collect the next round while an update runs, in a thread or
in a process of its own. The first quarter of a run is not counted (start, compilation, filling the first batch). The
raw simulator plays random legal actions through its own interface (the kitchen: our class), one environment in one
process, right before and after each run, so that the ratio holds on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback
from rollout import CASES, rate, raw_foraging, raw_spread, raw_vector

from qmix_lightning.runtime.resources import available_cores
from qmix_lightning.training.summary import versions

COMMON = [
    *("preset=pymarl", "algorithm=qmix", "mixer=qmix_paper"),
    "optimizer=adam",
    "logger=none",
    "eval_interval=1000000000",
    "checkpoint_interval=1000000000",
    "eval_episodes=1",
    "rollout.num_eval_envs=1",
    "trainer.enable_progress_bar=false",
    "num_threads=1",
    "exploration.epsilon_start=1",
    "exploration.epsilon_finish=1",
]
LBF = ["env=lbf", "env.task=8x8-2p-3f", "agent=feedforward"]
SPREAD = ["env=mpe", "env.scenario=simple_spread", "agent=feedforward"]
EIGHT = ["rollout=process", "rollout.num_envs=8", "rollout.num_workers=2", "rollout.update_every=8"]
EIGHT_BATCHED = ["rollout.num_envs=8", "rollout.update_every=8"]
RUNS: dict[str, tuple[str, list[str]]] = {
    "lbf_1": ("lbf_8x8_2p_3f", [*LBF, "rollout.num_envs=1", "rollout.update_every=1"]),
    "lbf_8": ("lbf_8x8_2p_3f", [*LBF, *EIGHT]),
    "spread_8": ("simple_spread", [*SPREAD, *EIGHT]),
    "jax_spread_8": (
        "jax_spread",
        ["env=jaxmarl", "env.id=MPE_simple_spread_v3", "agent=feedforward", *EIGHT_BATCHED],
    ),
    "smax_3m": (
        "smax_3m",
        [
            *("env=smax", "env.scenario=3m", "rollout.num_envs=16"),
            *("rollout.update_every=256", "rollout.update_unit=env_steps"),
        ],
    ),
    "cramped_room": (
        "cramped_room",
        [
            *("env=overcooked", "agent=feedforward", "rollout.num_envs=16", "replay.batch_size=4"),
            *("rollout.update_every=16", "rollout.update_unit=env_steps"),
            *("algorithm.returns=peng_lambda", "algorithm.td_lambda=0.8", "algorithm.normalize_values=true"),
        ],
    ),
}
WAYS = {
    "turns": ["rollout.asynchronous=false"],
    "thread": ["rollout.asynchronous=true"],
    "process": ["rollout.asynchronous=true", "rollout.collector=process"],
}
RAW: dict[str, Callable[[], Callable[[], int]]] = {
    "lbf_8x8_2p_3f": raw_foraging,
    "simple_spread": raw_spread,
    "smax_3m": lambda: raw_vector(CASES["smax_3m"], 16),
    "jax_spread": lambda: raw_vector({"name": "jaxmarl", "id": "MPE_simple_spread_v3"}, 8),
    "cramped_room": lambda: raw_vector({"name": "overcooked"}, 1),
}


class Clock(Callback):
    """Callback that writes times (by the clock, of the processor) and joint steps after every update to a file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.rows: list[tuple[float, float, int, int]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        counters = trainer.datamodule.counters
        now = time.perf_counter(), time.process_time()
        self.rows.append((*now, counters.env_steps, counters.updates))

    def on_train_end(self, trainer: Any, *args: Any) -> None:
        if trainer.is_global_zero:
            Path(self.path).write_text(json.dumps(self.rows))


def train(overrides: list[str], steps: int) -> dict[str, float]:
    """Run once; return joint steps and updates per second, without its first quarter."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock.json"
        command = [
            *(sys.executable, "-W", "ignore", "-m", "qmix_lightning.commands.train", *COMMON, *overrides),
            *(f"total_env_steps={steps}", f"run_dir={folder}/run"),
            f"callbacks.clock={{_target_:training.Clock,path:{clock}}}",
        ]
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        rows = [row for row in json.loads(clock.read_text()) if row[2] >= steps // 4]
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    (t0, cpu0, steps0, updates0), (t1, cpu1, steps1, updates1) = rows[0], rows[-1]
    return {
        "steps_per_s": (steps1 - steps0) / (t1 - t0),
        "steps_per_cpu_s": (steps1 - steps0) / (cpu1 - cpu0),  # of the training process alone
        "steps_per_update": (steps1 - steps0) / (updates1 - updates0),
        "updates_per_s": (updates1 - updates0) / (t1 - t0),
        "peak_rss_mb": summary["peak_rss_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--steps", type=int, default=40000, help="joint steps of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--output", default="training.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    print(f"{'case':<14}{'way':>10}{'joint steps/s':>15}{'updates/s':>11}{'raw':>9}{'of raw':>8}")
    for case in options.cases:
        simulator, overrides = RUNS[case]
        raw_step = RAW[simulator]()
        for way in options.ways:
            runs = []
            for _ in range(options.repeats):
                before = rate(raw_step, 1.0, 1)["median"]
                run = train([*overrides, *WAYS[way]], options.steps)
                raw = statistics.mean([before, rate(raw_step, 1.0, 1)["median"]])
                runs.append({**run, "raw": raw, "ratio": run["steps_per_s"] / raw})
            median = {name: statistics.median(r[name] for r in runs) for name in runs[0]}
            results.append({"case": case, "way": way, "median": median, "runs": runs})
            print(
                f"{case:<14}{way:>10}{median['steps_per_s']:>15,.0f}{median['updates_per_s']:>11,.1f}"
                f"{median['raw']:>9,.0f}{median['ratio']:>8.2f}",
                flush=True,
            )
    machine = {"machine": platform.machine(), "cores": available_cores(), "threads": 1, "versions": versions()}
    Path(options.output).write_text(json.dumps({**machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
