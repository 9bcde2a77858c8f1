"""Measure how fast episodes are collected, beside the raw simulator in the same minutes.

    python -W ignore benchmarks/rollout.py [--cases lbf_8x8_2p_3f] [--envs 1 8 32] [--workers 2] [--output rollout.json]

Joint steps per second: one joint step is one step of one environment, whatever its number of agents. The collector runs
a recurrent agent of 64 units with epsilon 0.1; the raw simulator plays random legal actions through its own interface,
one environment in one process (SMAX: as many as the collector has, stepped and reset by the compiled program). Torch
uses one thread. A case whose package is missing is named and left out.

Raw simulator and collector take turns, a second each, so that what else the machine does meets both; ratio and overhead
are taken turn by turn, and their median is printed.

*Overhead* is what a joint step costs beyond the simulator: wall time of the collector less the simulator's, the latter
divided by the worker processes that step at the same time. It is negative where this package steps a simulator faster
than the simulator's own interface does. *CPU* is the processor time of a joint step in all processes together, which
says more than wall time on a machine that is busy with other things.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from qmix_lightning.components import build_policy, env_maker
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.training.summary import versions
from qmix_lightning.vector.factory import Backend

AGENT = yaml.safe_load((Path(__file__).parent.parent / "conf" / "agent" / "recurrent.yaml").read_text())
CASES = {
    "lbf_8x8_2p_3f": {"name": "lbf", "task": "8x8-2p-3f"},
    "simple_spread": {"name": "mpe", "scenario": "simple_spread", "kwargs": {"max_cycles": 25}},
    "smax_3m": {"name": "smax", "scenario": "3m"},
}


def raw_foraging() -> Callable[[], int]:
    """Return a function that steps LBF through Gymnasium."""
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
    """Return a function that steps simple_spread through PettingZoo."""
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
    """Return a function that steps a batched environment with random legal actions, and does nothing else."""
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
    """Return median and spread of steps per second over several turns."""
    warm_up(step, min(2.0, seconds))
    rates = [turn(step, seconds) for _ in range(repeats)]
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def warm_up(step: Callable[[], int], seconds: float) -> None:
    """Step for a while, so that programs are compiled and caches filled."""
    turn(step, seconds)


def turn(step: Callable[[], int], seconds: float) -> float:
    """Step for so many seconds; return steps per second."""
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        done += step()
    return done / (time.perf_counter() - begun)


def cpu_seconds(pids: list[int]) -> float:
    """Return the processor time of this process and of those named."""
    others = sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)
    return time.process_time() + others * 1e-9


def compare(
    raw: Callable[[], int], section: dict[str, Any], num_envs: int, backend: Backend, seconds: float, repeats: int
) -> dict[str, float]:
    """Measure one row of the table: raw simulator and collector in turns."""
    env = env_maker(section, backend)(num_envs)
    workers: list[int] = getattr(env, "worker_pids", [])
    torch.manual_seed(0)
    collector = Collector(env, build_policy(AGENT, env.spec), seed=0, rank=0)
    try:

        def collect() -> int:
            return collector.collect(0.1, max_steps=32 * num_envs).env_steps

        warm_up(raw, seconds)
        warm_up(collect, seconds)
        raws, rates, cpus = [], [], []
        for _ in range(repeats):
            raws.append(turn(raw, seconds))
            before = cpu_seconds(workers)
            rates.append(turn(collect, seconds))
            cpus.append(1e6 * (cpu_seconds(workers) - before) / (rates[-1] * seconds))
    finally:
        env.close()
    ratios = [rate / base for rate, base in zip(rates, raws, strict=True)]
    at_once = max(1, len(workers))
    overheads = [1e6 / rate - 1e6 / base / at_once for rate, base in zip(rates, raws, strict=True)]
    return {
        "raw": statistics.median(raws),
        "median": statistics.median(rates),
        "min": min(rates),
        "max": max(rates),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "overhead_us": statistics.median(overheads),
        "cpu_us": statistics.median(cpus),
    }


def line(row: dict[str, Any]) -> str:
    """Return a row of the table as text."""
    backend = f"process/{row['workers']}" if row["workers"] else "sync"
    speeds = f"{row['raw']:>10,.0f}{row['median']:>13,.0f}{row['min']:>9,.0f}{row['max']:>9,.0f}"
    ratios = f"{row['ratio']:>8.2f}{row['ratio_min']:>7.2f}-{row['ratio_max']:.2f}"
    costs = f"{row['overhead_us']:>13.1f}{row['cpu_us']:>8.1f}"
    return f"{row['case']:<15}{backend:<11}{row['envs']:>5}{speeds}{ratios}{costs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each")
    parser.add_argument("--output", default="rollout.json")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--workers", type=int, nargs="+", default=[2], help="of the process backend")
    parser.add_argument("--backends", nargs="+", default=["sync", "process"], choices=["sync", "process"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    single: dict[str, Callable[[], Callable[[], int]]] = {"lbf_8x8_2p_3f": raw_foraging, "simple_spread": raw_spread}
    head = f"{'envs':>5}{'raw/s':>10}{'collector/s':>13}{'min':>9}{'max':>9}{'of raw':>8}{'spread':>12}"
    print(f"{'case':<15}{'backend':<11}{head}{'overhead us':>13}{'CPU us':>8}")
    for case in options.cases:
        section = CASES[case]
        backends = [Backend("sync")] if "sync" in options.backends else []
        if case in single and "process" in options.backends:
            backends += [Backend("process", num_workers=workers) for workers in options.workers]
        try:
            for num_envs in options.envs:
                raw = single[case]() if case in single else raw_vector(section, num_envs)
                for backend in backends:
                    if backend.backend == "process" and backend.num_workers > num_envs:
                        continue
                    row = compare(raw, section, num_envs, backend, options.seconds, options.repeats)
                    workers = backend.num_workers if backend.backend == "process" else 0
                    results.append(
                        {"case": case, "backend": backend.backend, "workers": workers, "envs": num_envs, **row}
                    )
                    print(line(results[-1]), flush=True)
        except (ConfigurationError, ModuleNotFoundError) as error:
            print(f"{case}: left out ({error})")
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
        "seconds": options.seconds,
        "repeats": options.repeats,
    }
    Path(options.output).write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
