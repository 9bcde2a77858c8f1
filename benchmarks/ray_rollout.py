"""Measure rounds of two local Ray actors beside those of what collects on one machine without Ray, in turns.

    python -W ignore benchmarks/ray_rollout.py [--cases lbf_8x8_2p_3f smax_3m] [--envs 8 32] [--rounds 128 1024]

Joint steps per second of whole rounds of so many joint steps, the policy published before each, as a training run with
``rollout.asynchronous`` does. Beside them, LBF: ``rollout=process rollout.num_workers=2``; SMAX:
``rollout.collector=process``. Both are started before the first turn and take turns of a second; the ratio is taken
turn by turn, and printed is its median with the smallest and the largest. Recurrent agent of 64 units, epsilon 0.1, one
torch thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rollout import AGENT, CASES, turn, warm_up

from qmix_lightning.components import build_policy, env_maker
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.rollout.process_collector import CollectorProcess, RemoteCollector
from qmix_lightning.rollout.ray_cluster import RayCluster
from qmix_lightning.rollout.ray_collector import RayCollector
from qmix_lightning.vector.factory import Backend
from qmix_lightning.worker.fault_tolerance import FaultLimit

_START_S = 600.0


def never() -> bool:
    """Say that nothing was interrupted."""
    return False


def without_ray(case: str, num_envs: int) -> Any:
    """Return the collector that Ray's is compared with."""
    if case == "smax_3m":
        process = CollectorProcess(partial(env_maker(CASES[case]), num_envs), name=case, start_s=_START_S)
        return RemoteCollector(process, build_policy(AGENT, process.spec), seed=0, rank=0)
    env = env_maker(CASES[case], Backend("process", num_workers=2))(num_envs)
    return Collector(env, build_policy(AGENT, env.spec), seed=0, rank=0)


def with_ray(case: str, num_envs: int) -> RayCollector:
    """Return a collector in two local actors."""
    cluster = RayCluster(
        env_maker(CASES[case]),
        name=case,
        num_envs=num_envs,
        num_collectors=2,
        address=None,
        num_cpus=1,
        start_s=_START_S,
        limit=FaultLimit(),
    )
    return RayCollector(cluster, build_policy(AGENT, cluster.spec), seed=0, rank=0)


def rounds(collector: Any, policy: Any, steps: int) -> Callable[[], int]:
    """Return a function that publishes the policy and collects a round."""

    def play() -> int:
        collector.publish(policy)
        if isinstance(collector, RemoteCollector):
            collected, fault = collector.submit_round(0.1, steps=steps, episodes=None, interrupted=never)()
        else:
            collected, fault = collector.collect_round(0.1, steps=steps, episodes=None, interrupted=never)
        assert fault is None
        return collected.env_steps

    return play


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=["lbf_8x8_2p_3f", "smax_3m"], choices=["lbf_8x8_2p_3f", "smax_3m"]
    )
    parser.add_argument("--envs", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, nargs="+", default=[128, 1024], help="joint steps of a round")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'case':<15}{'envs':>5}{'round':>7}{'without Ray':>13}{'two actors':>12}{'ratio':>7}{'spread':>12}{'load':>6}"
    )
    for case in options.cases:
        for num_envs in options.envs:
            plain = without_ray(case, num_envs)
            ray = with_ray(case, num_envs)
            policy = build_policy(AGENT, ray.cluster.spec)
            for steps in options.rounds:
                ways = [rounds(collector, policy, steps) for collector in (plain, ray)]
                for way in ways:
                    warm_up(way, options.seconds)
                pairs = [[turn(way, options.seconds) for way in ways] for _ in range(options.repeats)]
                before, now = (statistics.median(column) for column in zip(*pairs, strict=True))
                ratios = [b / a for a, b in pairs]
                spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
                rates = f"{before:>13,.0f}{now:>12,.0f}{statistics.median(ratios):>7.2f}"
                print(f"{case:<15}{num_envs:>5}{steps:>7}{rates}{spread:>12}{os.getloadavg()[0]:>6.1f}", flush=True)
            plain.close()
            ray.close()


if __name__ == "__main__":
    main()
