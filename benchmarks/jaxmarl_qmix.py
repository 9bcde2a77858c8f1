"""Measure QMIX on SMAX 3m beside JaxMARL's own, at equal work: 256 joint steps and about 4,096 transitions an update.

    git clone https://github.com/FLAIROx/JaxMARL ../JaxMARL && pip install flashbax
    python benchmarks/jaxmarl_qmix.py --jaxmarl ../JaxMARL [--turns 5] [--steps 65536]

Both: 16 environments, random play (so that episodes stay as long as they are), recurrent agents of 64 units, a mixer
of 32 made by two layers of 64, Adam, one thread. An update learns from 32 windows of 128 steps in JaxMARL, from 235
episodes of 17.4 steps on average here. In turns, one after the other; what is compared is processor time after
compilation, since it holds on a machine that others use too. Evaluations are off in both.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

from training import RUNS, WAYS, train

EPISODES = 235  # of 17.4 steps on average at random: what 32 windows of 128 steps hold
PEER: dict[str, Any] = {
    "NUM_ENVS": 16,
    "NUM_STEPS": 128,
    "BUFFER_SIZE": 5000,
    "BUFFER_BATCH_SIZE": 32,
    "HIDDEN_SIZE": 64,
    "MIXER_EMBEDDING_DIM": 32,
    "MIXER_HYPERNET_HIDDEN_DIM": 64,
    "MIXER_INIT_SCALE": 0.001,
    "EPS_START": 1.0,
    "EPS_FINISH": 1.0,
    "EPS_DECAY": 0.1,
    "MAX_GRAD_NORM": 10,
    "TARGET_UPDATE_INTERVAL": 10,
    "TAU": 1.0,
    "NUM_EPOCHS": 8,  # updates for 2,048 joint steps
    "LR": 0.0005,
    "LEARNING_STARTS": 0,
    "LR_LINEAR_DECAY": False,
    "GAMMA": 0.99,
    "REW_SCALE": 10.0,
    "ENV_NAME": "HeuristicEnemySMAX",
    "MAP_NAME": "3m",
    "ENV_KWARGS": {"see_enemy_actions": True, "walls_cause_death": True, "attack_mode": "closest"},
    "TEST_DURING_TRAINING": False,
    "TEST_INTERVAL": 1.0,
    "TEST_NUM_ENVS": 1,
    "TEST_NUM_STEPS": 1,
    "WANDB_MODE": "disabled",
}


def run_peer(checkout: Path, steps: int) -> dict[str, float]:
    """Train by JaxMARL's script in this process, compiled beforehand.

    It begins to learn after as many rounds as its batch has windows; those rounds alone are timed too, and taken off.
    """
    import jax

    sys.path[:0] = [str(checkout), str(checkout / "baselines" / "QLearning")]
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))  # imported there, and not used when disabled
    script: Any = importlib.import_module("qmix_rnn")
    collected = PEER["NUM_ENVS"] * PEER["NUM_STEPS"] * (PEER["BUFFER_BATCH_SIZE"] - 1)
    found = []
    for total in (collected, collected + steps):
        config = {**PEER, "ENV_KWARGS": dict(PEER["ENV_KWARGS"]), "TOTAL_TIMESTEPS": total}
        env, _ = script.env_from_config(config)
        compiled = jax.jit(script.make_train(config, env)).lower(jax.random.PRNGKey(0)).compile()
        wall, cpu = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(compiled(jax.random.PRNGKey(1)))["runner_state"][0]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found.append((wall, cpu, int(state.timesteps), int(state.grad_steps)))
    wall, cpu, taken, updates = (after - before for before, after in zip(*found, strict=True))
    return {"steps_per_cpu_s": taken / cpu, "steps_per_s": taken / wall, "steps_per_update": taken / updates}


def peer(checkout: Path, steps: int) -> dict[str, float]:
    """Run :func:`run_peer` in a process of its own, with one thread."""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = {**os.environ, "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--peer", str(checkout), "--steps", str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jaxmarl", type=Path, help="a checkout of JaxMARL")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=65536, help="joint steps of a run")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        print(json.dumps(run_peer(options.peer, options.steps)))
        return
    if options.jaxmarl is None:
        parser.error("--jaxmarl=PATH is needed")
    overrides = [*RUNS["smax_3m"][1], *WAYS["turns"], f"replay.batch_size={EPISODES}", "mixer.hypernet_layers=2"]
    overrides += ["mixer.hypernet_dim=64"]
    ratios = []
    for turn in range(options.turns):
        theirs, ours = peer(options.jaxmarl, options.steps), train(overrides, options.steps)
        ratios.append(ours["steps_per_cpu_s"] / theirs["steps_per_cpu_s"])
        print(
            f"turn {turn + 1}: joint steps a second of processor time: here {ours['steps_per_cpu_s']:,.0f}, "
            f"JaxMARL {theirs['steps_per_cpu_s']:,.0f}; ratio {ratios[-1]:.2f}; joint steps an update "
            f"{ours['steps_per_update']:.0f} and {theirs['steps_per_update']:.0f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
