"""How fast episodes are collected, beside the raw simulator in the same run.

    python benchmarks/rollout.py [--seconds 5] [--repeats 3] [--output rollout.json]

Joint steps per second: one joint step is one step of one environment, whatever its number of agents. The collector runs
a recurrent agent of 64 units with epsilon 0.1; the raw simulator plays random legal actions through its own interface,
one environment in one process. Torch uses one thread. A case whose package is missing is told and left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qmix_lightning.build import build_policy, env_maker
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.rollout import Collector
from qmix_lightning.summary import versions
from qmix_lightning.vector import Backend

AGENT = {
    "name": "recurrent",
    "hidden_dim": 64,
    "share_parameters": True,
    "use_obs": True,
    "use_last_action": True,
    "use_agent_id": True,
    "normalize_obs": False,
    "layer_norm": False,
    "dueling": False,
    "orthogonal_init": False,
}
CASES = {
    "lbf_8x8_2p_3f": {"name": "lbf", "task": "8x8-2p-3f"},
    "simple_spread": {"name": "mpe", "scenario": "simple_spread", "kwargs": {"max_cycles": 25}},
    "smax_3m": {"name": "smax", "scenario": "3m"},
}


def raw_foraging() -> Callable[[], int]:
    """LBF through Gymnasium."""
    import gymnasium
    import lbforaging  # noqa: F401  (registers its tasks)

    env: Any = gymnasium.make("Foraging-8x8-2p-3f-v3")
    env.reset(seed=0)
    rng = np.random.default_rng(0)

    def step() -> int:
        _, _, terminated, truncated, _ = env.step(tuple(rng.integers(0, 6, 2)))
        if terminated or truncated:
            env.reset()
        return 1

    return step


def raw_spread() -> Callable[[], int]:
    """simple_spread through PettingZoo."""
    from mpe2 import simple_spread_v3

    env: Any = simple_spread_v3.parallel_env(N=3, max_cycles=25, continuous_actions=False)
    env.reset(seed=0)
    rng = np.random.default_rng(0)

    def step() -> int:
        env.step({agent: int(a) for agent, a in zip(env.agents, rng.integers(0, 5, 3), strict=True)})
        if not env.agents:
            env.reset()
        return 1

    return step


def raw_vector(section: dict[str, Any], num_envs: int) -> Callable[[], int]:
    """A batched environment stepped with random legal actions, nothing else."""
    env = env_maker(section)(num_envs)
    everyone = torch.ones(num_envs, dtype=torch.bool)
    observation = env.reset(everyone, torch.arange(num_envs))

    def step() -> int:
        nonlocal observation
        weights = observation.avail_actions.float().flatten(0, 1)
        outcome = env.step(torch.multinomial(weights, 1).view(num_envs, -1), everyone)
        observation = outcome.next
        ended = outcome.terminated | outcome.truncated
        if ended.any():
            observation = env.reset(ended, torch.arange(num_envs))
        return num_envs

    return step


def rate(step: Callable[[], int], seconds: float, repeats: int) -> dict[str, float]:
    """Median and spread of steps per second over several stretches of time."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < min(2.0, seconds):
        step()  # compile, fill caches
    rates = []
    for _ in range(repeats):
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            done += step()
        rates.append(done / (time.perf_counter() - begun))
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def collecting(
    section: dict[str, Any], num_envs: int, backend: Backend
) -> tuple[Callable[[], int], Callable[[], None]]:
    """A collector's rounds, and how to close it."""
    env = env_maker(section, backend)(num_envs)
    torch.manual_seed(0)
    collector = Collector(env, build_policy(AGENT, env.spec), seed=0, rank=0)
    return lambda: collector.collect(0.1, max_steps=32 * num_envs).env_steps, collector.close


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="rollout.json")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    raw: dict[str, Callable[[], Callable[[], int]]] = {"lbf_8x8_2p_3f": raw_foraging, "simple_spread": raw_spread}
    print(f"{'case':<16}{'backend':<10}{'envs':>5}{'joint steps/s':>15}{'of raw':>8}")
    for case in options.cases:
        section = CASES[case]
        try:
            base = rate(raw[case](), options.seconds, options.repeats)["median"] if case in raw else 0.0
            for num_envs in options.envs:
                if case not in raw:
                    base = rate(raw_vector(section, num_envs), options.seconds, options.repeats)["median"]
                for backend in ("sync", "process") if case in raw else ("sync",):
                    step, close = collecting(section, num_envs, Backend(backend, num_workers=2))
                    measured = rate(step, options.seconds, options.repeats)
                    close()
                    ratio = measured["median"] / base
                    row = {"case": case, "backend": backend, "envs": num_envs, "raw": base, "ratio": ratio, **measured}
                    results.append(row)
                    print(f"{case:<16}{backend:<10}{num_envs:>5}{measured['median']:>15,.0f}{ratio:>8.2f}", flush=True)
        except (ConfigurationError, ModuleNotFoundError) as error:
            print(f"{case}: left out ({error})")
    machine = {"processor": platform.machine(), "torch_threads": 1, "versions": versions()}
    Path(options.output).write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
