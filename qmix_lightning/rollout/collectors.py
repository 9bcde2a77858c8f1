"""Create a rank's collector, here, in a process of its own or in Ray actors; let it go on from a checkpoint."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from qmix_lightning.agents.policy import Policy
from qmix_lightning.environment import VectorEnv
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.rollout.process_collector import CollectorProcess, RemoteCollector
from qmix_lightning.rollout.ray_cluster import RayCluster
from qmix_lightning.rollout.ray_collector import RayCollector

__all__ = ["AnyCollector", "TrainingEnvs", "go_on_from", "make_collector"]

TrainingEnvs = VectorEnv | CollectorProcess | RayCluster
"""The training environments of a rank, or where they are."""

AnyCollector = Collector | RemoteCollector | RayCollector


def make_collector(
    env: TrainingEnvs,
    policy: Policy,
    *,
    seed: int,
    rank: int,
    round_episodes: int | None,
    policy_device: torch.device | None,
) -> AnyCollector:
    """Create a collector.

    Args:
        env: the environments, or the process or the cluster that has them.
        policy: what acts; copied.
        seed: the run's seed.
        rank: this process's rank.
        round_episodes: as for :class:`Collector`.
        policy_device: where it acts, in this process; ``None``: where the environments' tensors are.
    """
    if isinstance(env, CollectorProcess):
        return RemoteCollector(env, policy, seed=seed, rank=rank, round_episodes=round_episodes)
    if isinstance(env, RayCluster):
        return RayCollector(env, policy, seed=seed, rank=rank, round_episodes=round_episodes)
    return Collector(env, policy, seed=seed, rank=rank, round_episodes=round_episodes, policy_device=policy_device)


def go_on_from(
    state: dict[str, Any], acting: dict[str, Tensor] | None, collector: AnyCollector, on_resume: str
) -> None:
    """Let a new collector go on where another one was.

    Args:
        state: what that one's ``state_dict`` gave.
        acting: the weights that it acted with, if they are not the present policy's.
        collector: the new one.
        on_resume: ``replay`` plays the episodes in flight again, ``restart`` drops them.
    """
    if on_resume == "restart":
        dropped = int((~state["ended"]).sum())
        if dropped:
            print(f"rollout.on_resume=restart: {dropped} episodes in flight were dropped", file=sys.stderr)
        collector.restart(state)
    else:
        collector.load_state_dict(state)
    if acting is not None:
        collector.restore(acting)
