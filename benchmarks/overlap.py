"""Measure whether collecting while an update runs changes what is learned, and what it gains.

    python benchmarks/overlap.py --folder outputs/overlap [--tasks simple_spread] [--seeds 1 2 3 4 5] [--jobs 2]

Each task is trained with every seed, once with ``rollout.asynchronous=false`` and once with ``true``, and evaluated at
the end over 400 greedy episodes. The table has the mean return over the seeds with half of its 95 % interval
(Student's t), whether the two intervals overlap, and how far apart the means are. What is finished already is not run
again. The returns do not depend on the machine's speed, nor on what else it does.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seeds import QUIET, interval, train_once, with_half

from qmix_lightning.training.summary import versions

TASKS: dict[str, tuple[int, list[str]]] = {
    # joint steps, settings: an update per episode, or per 128 joint steps, so that every round is one update stale
    "simple_spread": (
        60_000,
        ["experiment=simple_spread_qmix", "algorithm=vdn", "optimizer.lr=1e-3", "rollout.updates=1"],
    ),
    "lbf_6x6_2p_2f": (
        150_000,
        [
            *("experiment=lbf_8x8_2p_3f", "env.task=6x6-2p-2f", "optimizer.lr_anneal_steps=150000"),
            "exploration.epsilon_anneal_steps=50000",
        ],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/overlap"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one update thread each")
    parser.add_argument("--output", type=Path, default=Path("overlap.json"))
    options = parser.parse_args()
    jobs = [(task, seed, mode) for task in options.tasks for seed in options.seeds for mode in ("false", "true")]

    def run(job: tuple[str, int, str]) -> float | None:
        task, seed, mode = job
        steps, settings = TASKS[task]
        budget = [f"total_env_steps={steps}", f"eval_interval={steps}", "eval_episodes=400", f"seed={seed}"]
        overrides = [*settings, *QUIET, *budget, f"rollout.asynchronous={mode}"]
        found = train_once(
            f"{task} asynchronous={mode} seed {seed}", overrides, options.folder / task / mode / str(seed)
        )
        return None if found is None else found["eval"]["return_mean"]

    with ThreadPoolExecutor(options.jobs) as pool:
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))
    rows = []
    print("\n| task | seeds | one after the other | asynchronous | intervals overlap | means apart |")
    print("|---|---|---|---|---|---|")
    for task in options.tasks:
        returns = {
            mode: [r for seed in options.seeds if (r := results[task, seed, mode]) is not None]
            for mode in ("false", "true")
        }
        if min(map(len, returns.values())) < 2:
            print(f"| {task} | failed, or one seed only |")
            continue
        (plain, plain_half), (asynchronous, asynchronous_half) = interval(returns["false"]), interval(returns["true"])
        overlap = abs(plain - asynchronous) <= plain_half + asynchronous_half
        apart = abs(asynchronous - plain) / abs(plain)
        rows.append({"task": task, "returns": returns, "intervals_overlap": overlap, "means_apart": apart})
        texts = [with_half(returns["false"]), with_half(returns["true"]), "yes" if overlap else "no", f"{apart:.1%}"]
        print(f"| {task} ({TASKS[task][0]:,} steps) | {len(options.seeds)} | {' | '.join(texts)} |")
    options.output.write_text(json.dumps({"versions": versions(), "seeds": options.seeds, "results": rows}, indent=1))


if __name__ == "__main__":
    main()
