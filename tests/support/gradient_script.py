"""Run by tests of ranks: one update on ranks whose batches hold different numbers of filled steps, gradients saved.

Arguments: ranks (``1``, ``2``, or ``2x2`` for two nodes of two), output folder, and names of algorithms, whose updates
are made one after the other. Four batches are dealt to the ranks; one alone has their join.
"""

from __future__ import annotations

import sys
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer

from qmix_lightning.algorithms.base import Learner
from qmix_lightning.algorithms.ppo import PPO
from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.optimizers import LearningRate, rmsprop
from qmix_lightning.runtime.distributed import rank, world_size
from qmix_lightning.training.module import TeamModule
from qmix_lightning.types import TrainBatch, TrajectoryBatch
from support.batches import random_batch, value_settings
from support.joint_learners import LEARNERS as JOINT
from support.joint_learners import make as make_joint
from support.on_policy_learners import changed_since, make_coma, make_ppo, make_pqn, with_round
from support.small_mixers import small_mixer
from support.small_policies import OBS, A, N, S, build_policy


class Fixed(LightningDataModule):
    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        self.counters = SimpleNamespace(env_steps=0)

    def train_dataloader(self) -> list[str]:
        return ["ticket"]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> TrainBatch:
        lengths = {1: [9, 2, 5, 7], 2: [1, 2, 1, 9], 3: [3, 3, 9, 1], 4: [6, 1, 1, 2]}
        parts = [with_round(random_batch(seed, lengths[seed]), seed) for seed in lengths]
        share = len(parts) // world_size()
        part = reduce(join, parts[rank() * share : (rank() + 1) * share])
        if isinstance(self.learner, PPO):
            part.extras |= self.learner.prepare_round(part)
            changed_since(self.learner)
        return TrainBatch(trajectories=part, env_steps=0, episodes=0, epsilon=0.0)

    def transfer_batch_to_device(self, batch: TrainBatch, device: torch.device, dataloader_idx: int) -> TrainBatch:
        return batch.to(device)


class SaveGradients(Callback):
    def __init__(self, path: str) -> None:
        self.path = path

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            grads = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.requires_grad}
            torch.save(grads, self.path)


def join(a: TrajectoryBatch, b: TrajectoryBatch) -> TrajectoryBatch:
    names = ("obs", "state", "avail_actions", "agent_mask", "actions", "reward", "terminated", "truncated", "filled")
    extras = {n: torch.cat([a.extras[n], b.extras[n]]) for n in a.extras}
    return TrajectoryBatch(**{n: torch.cat([getattr(a, n), getattr(b, n)]) for n in names}, extras=extras)


def make_learner(name: str) -> Learner:
    """The algorithm's learner; that of an algorithm which is a mixer and no more is named by the mixer."""
    if name in JOINT:
        return make_joint(name, dtype=torch.float32)
    if name.startswith("pqn_"):
        return make_pqn(name.removeprefix("pqn_"), dtype=torch.float32)
    if name in ("ippo", "mappo"):
        return make_ppo(name, dtype=torch.float32)
    if name == "coma":
        return make_coma(dtype=torch.float32)
    return value_learner("none" if name == "iql" else name)


def value_learner(mixer: str) -> QLearning:
    """One network for all agents, and targets that differ from it."""
    torch.manual_seed(0)
    policy = build_policy(groups=[0] * N)
    torch.manual_seed(1)
    learner = QLearning(
        policy=policy,
        mixer=small_mixer(mixer, n=N, a=A, obs=OBS, state=S),
        settings=value_settings(target_update_every=100, target_update_unit="updates"),
    )
    with torch.no_grad():
        for p in [*learner.target_policy.parameters(), *learner.target_mixer.parameters()]:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    return learner


def save_gradients(ranks: str, path: Path, name: str) -> None:
    nodes, _, devices = ranks.rpartition("x")
    module = TeamModule(
        learner=make_learner(name),
        optimizer=rmsprop(
            rate=LearningRate(1e-3, "constant", 1, 0.0), alpha=0.99, eps=1e-5, weight_decay=0, max_grad_norm=10
        ),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=int(devices),
        num_nodes=int(nodes or 1),
        strategy="auto" if ranks == "1" else "ddp",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[SaveGradients(str(path))],
    )
    trainer.fit(module, datamodule=Fixed(module.learner))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for algorithm in sys.argv[3:]:
        save_gradients(sys.argv[1], Path(sys.argv[2]) / f"{algorithm}.pt", algorithm)
