"""Run by test_ranks: one update on two ranks whose batches hold different numbers of filled steps, gradients saved.

Arguments: number of devices, output file, mixer name. With one device the batch is the join of both ranks' batches.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from batches import random_batch, small_learner
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
        parts = [random_batch(seed=1, lengths=[9, 2, 5, 7]), random_batch(seed=2, lengths=[1, 2, 1, 9])]
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
    return TrajectoryBatch(**{n: torch.cat([getattr(a, n), getattr(b, n)]) for n in names})


def main(devices: int, path: str, mixer: str) -> None:
    torch.set_num_threads(1)
    module = TeamModule(
        learner=small_learner(mixer),
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
