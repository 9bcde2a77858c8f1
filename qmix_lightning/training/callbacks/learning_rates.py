"""Log the learning rate of every parameter group."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from qmix_lightning.training.callbacks.metrics_log import log_row
from qmix_lightning.training.datamodule import data_of

__all__ = ["LearningRates"]


class LearningRates(Callback):
    """Callback that logs ``lr/<group>`` with every row of training; ``train/lr`` is the first group's.

    Learning rates here follow environment steps and are set by no scheduler of torch, so that Lightning's
    ``LearningRateMonitor`` does not know them.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every and data_of(trainer).counters.updates % every == 0:
            log_row(trainer, {f"lr/{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups})
