"""Make the table of what each algorithm reaches on each task, from real runs at equal environment steps.

    python benchmarks/results.py --folder outputs/results [--tasks two_step lbf] [--algorithms vdn qmix] [--seeds 1 2 3]
    python benchmarks/results.py --folder outputs/standardized --tasks simple_spread \
        --also algorithm.normalize_rewards=standardize

Runs ``qmix-train`` for every task, algorithm and seed, some side by side, and prints a table in Markdown: the mean of
the last evaluation's greedy return over the seeds, with half of its 95 % interval (Student's t). What is finished
already is not run again, so the command can be interrupted and repeated. One setting for each task, the same for all
algorithms but for what stands in ALGORITHMS; COMA, which has no replay, has a round of its own size. The four games
are played uniformly by those that learn from replay (the claims made on them are about full data); COMA learns from
what its own policy does.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seeds import QUIET, train_once, with_half

COMMON = ["optimizer=adam", *QUIET]
EIGHT = ["rollout.num_envs=8", "rollout.update_every=4"]
SIXTEEN = ["rollout.num_envs=16", "rollout.update_every=128", "rollout.update_unit=env_steps"]
STEPS = 200_000
MANY = ["rollout.num_envs=256", "rollout.update_every=256", "rollout.updates=3"]  # a game is one or two steps long
GAME = ["agent=feedforward", "eval_episodes=1", "optimizer.lr=2e-3"]
UNIFORM = ["exploration.epsilon_start=1", "exploration.epsilon_finish=1", *MANY]
LONG = ["algorithm.returns=peng_lambda", "algorithm.td_lambda=0.6", "exploration.epsilon_anneal_steps=100000"]
TASKS: dict[str, tuple[int, list[str], list[str]]] = {
    # joint steps, settings of every algorithm, settings of those that learn from replay
    "two_step": (STEPS, ["env=two_step", *GAME], [*UNIFORM, "algorithm.target_update_every=50"]),
    "qtran_game": (STEPS, ["env=qtran_game", *GAME], UNIFORM),
    "climbing": (STEPS, ["env=climbing", *GAME], UNIFORM),
    "penalty": (STEPS, ["env=penalty", *GAME], UNIFORM),
    "simple_spread": (
        STEPS,
        ["env=mpe", "env.scenario=simple_spread", "agent=feedforward", "eval_episodes=100", "optimizer.lr=1e-3"],
        [*EIGHT, *LONG],
    ),
    "lbf_8x8_2p_3f": (
        STEPS,
        ["env=lbf", "env.task=8x8-2p-3f", "agent=feedforward", "eval_episodes=100", "optimizer.lr=1e-3"],
        [*SIXTEEN, *LONG],
    ),
    "smax_3m": (
        STEPS,
        [
            *("env=smax", "env.scenario=3m", "env.timeout_is_terminal=true", "optimizer.lr=1e-3"),
            *("eval_episodes=128", "rollout.num_eval_envs=16"),
        ],
        [*SIXTEEN, *LONG],
    ),
}
GAMES = ("two_step", "qtran_game", "climbing", "penalty")
ON_POLICY = [
    *("rollout.num_envs=64", "replay.capacity=64", "replay.batch_size=64"),
    f"exploration.epsilon_anneal_steps={STEPS // 2}",
]
# The defaults of 0.1.0, with which the table was made.
OLD_IQL = ["algorithm.dead_agents=zero"]
OLD_COMA = [
    *("algorithm.target_update_every=200", "algorithm.target_update_unit=episodes"),
    *("algorithm.mask_before_softmax=true", "algorithm.critic_max_grad_norm=null"),
]
ALGORITHMS: dict[str, tuple[list[str], list[str]]] = {
    # settings on the games, and on the others: sizes that the games need, and a mixer that begins small
    "iql": ([], OLD_IQL),
    "vdn": ([], []),
    "qmix": ([], ["mixer=qmix_small_init"]),
    "qmix_ns": ([], []),
    "qmix_lin": ([], []),
    "vdn_s": ([], []),
    "qtran_base": ([], []),
    "qtran_alt": ([], []),
    "cw_qmix": (["algorithm.alpha=0.1"], ["mixer=qmix_small_init"]),
    "ow_qmix": (["algorithm.alpha=0.1"], ["mixer=qmix_small_init"]),
    "qplex": (["mixer.attention_layers=3"], []),
    "qatten": ([], []),
    "coma": ([*ON_POLICY, *OLD_COMA], OLD_COMA),
}


def overrides(task: str, algorithm: str, seed: int) -> list[str]:
    """Return the overrides of one run: a task, an algorithm and a seed."""
    steps, settings, replayed = TASKS[task]
    return [
        *(*COMMON, *settings, f"algorithm={algorithm}"),
        *(f"total_env_steps={steps}", f"eval_interval={steps}", f"seed={seed}"),
        *([] if algorithm == "coma" else replayed),
        *ALGORITHMS[algorithm][task not in GAMES],
    ]


def run(task: str, algorithm: str, seed: int, root: Path, also: list[str]) -> dict[str, float] | None:
    """Return the last evaluation of a run, which is made if it is not there yet; ``None`` if it failed."""
    folder = root / task / algorithm / f"seed{seed}"
    found = train_once(f"{task} {algorithm} seed {seed}", [*overrides(task, algorithm, seed), *also], folder)
    return None if found is None else found["eval"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/results"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--also", nargs="+", default=[], metavar="OVERRIDE", help="for every run; take another folder")
    options = parser.parse_args()
    jobs = [(t, a, s) for t in options.tasks for s in options.seeds for a in options.algorithms]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = dict(zip(jobs, pool.map(lambda job: run(*job, options.folder, options.also), jobs), strict=True))
    metric = {task: "win_rate" if task.startswith("smax") else "return_mean" for task in options.tasks}
    print(f"\nSeeds {', '.join(map(str, options.seeds))}; mean ± half of the 95 % interval (Student's t).")
    print(f"\n| algorithm | {' | '.join(f'{t} ({TASKS[t][0]:,} steps)' for t in options.tasks)} |")
    print(f"|---{'|---' * len(options.tasks)}|")
    for algorithm in options.algorithms:
        cells = []
        for task in options.tasks:
            found = [results[task, algorithm, seed] for seed in options.seeds]
            cells.append(with_half([result[metric[task]] for result in found if result is not None]))
        print(f"| {algorithm} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
