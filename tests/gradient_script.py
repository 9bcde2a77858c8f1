"""Run by test_ranks: one update on two ranks whose batches hold different numbers of filled steps, gradients saved.

Arguments: number of devices, output file, name of a mixer or of an algorithm with a learner of its
own. With one device the batch is the join of both ranks' batches.
"""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from batches import random_batch, small_learner
from joint_learners import LEARNERS as JOINT
from joint_learners import make as make_joint
from on_policy_learners import make_coma, make_pqn, with_round
from pytorch_lightning import Callback, LightningDataModule, Trainer

from qmix_lightning.distributed import rank
from qmix_lightning.module import TeamModule
from qmix_lightning.optimizers import LearningRate, rmsprop
from qmix_lightning.types import TrainBatch, TrajectoryBatch


class Fixed(LightningDataModule):
    def __init__(self, devices: int) -> None:
        super().__init__()
        self.devices = devices
        self.counters = SimpleNamespace(env_steps=0)

    def train_dataloader(self) -> list[str]:
        return ["ticket"]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> TrainBatch:
        lengths = {1: [9, 2, 5, 7], 2: [1, 2, 1, 9]}
        parts = [with_round(random_batch(seed, lengths[seed]), seed) for seed in lengths]
        part = parts[rank()] if self.devices == 2 else join(*parts)
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


def main(devices: int, path: str, name: str) -> None:
    torch.set_num_threads(1)
    others = {"coma": make_coma, "pqn": make_pqn} | {algorithm: partial(make_joint, algorithm) for algorithm in JOINT}
    module = TeamModule(
        learner=others[name](dtype=torch.float32) if name in others else small_learner(name),
        optimizer=rmsprop(
            rate=LearningRate(1e-3, "constant", 1, 0.0), alpha=0.99, eps=1e-5, weight_decay=0, max_grad_norm=10
        ),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[SaveGradients(path)],
    )
    trainer.fit(module, datamodule=Fixed(devices))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
