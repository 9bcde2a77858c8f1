"""Time ``qmix-report`` over many runs, all files written.

    python -W ignore benchmarks/report.py [--runs 200] [--rows 1000]

Makes run folders of made-up numbers, five seeds of each of four algorithms on as many tasks as it takes, each with
half of its rows evaluations, and runs the command on them in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ALGORITHMS, SEEDS = ("iql", "vdn", "qmix", "qplex"), 5


def write_run(folder: Path, task: str, algorithm: str, seed: int, rows: int) -> None:
    """Write what a finished training leaves for a report: configuration, metrics and summary."""
    rng, steps = random.Random(f"{task} {algorithm} {seed}"), 50 * rows
    folder.mkdir(parents=True)
    config = {"env": {"name": task}, "algorithm": {"name": algorithm}, "seed": seed, "total_env_steps": steps}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"run_dir": str(folder)}))
    lines = ["updates,env_steps,episodes,train/loss,eval/return_mean,eval/return_ci95"]
    for row in range(1, rows // 2 + 1):
        lines.append(f"{2 * row - 1},{100 * row - 50},{row},{rng.random()},,")
        lines.append(f"{2 * row},{100 * row},{row},,{row / rows + rng.gauss(0, 0.1)},0.1")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    walls = [[100 * row, 1.0 * row] for row in range(1, rows // 2 + 1)]
    summary = {"status": "completed", "env_steps": steps, "wall_s": rows / 2, "versions": {}, "eval_wall_s": walls}
    (folder / "summary.json").write_text(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.runs):
            which, seed = divmod(number, SEEDS)
            task, algorithm = f"task{which // len(ALGORITHMS)}", ALGORITHMS[which % len(ALGORITHMS)]
            write_run(Path(folder, "runs", str(number)), task, algorithm, seed, arguments.rows)
        command = [sys.executable, "-m", "qmix_lightning", "report", "runs"]
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        wall_s, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime
    print(f"{arguments.runs} runs of {arguments.rows} rows: {wall_s:.1f} s, {cpu_s:.1f} s of the processor")


if __name__ == "__main__":
    main()
