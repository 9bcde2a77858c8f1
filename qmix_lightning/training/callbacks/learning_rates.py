"""Log the learning rate of every parameter group."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from qmix_lightning.training.callbacks.metrics_log import log_row, row_is_due

__all__ = ["LearningRates"]


class LearningRates(Callback):
    """Callback that logs ``lr/<group>`` with every row of training; ``train/lr`` is the first group's.

    Learning rates here follow environment steps and are set by no scheduler of torch, so that Lightning's
    ``LearningRateMonitor`` does not know them.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if row_is_due(trainer):
            log_row(trainer, {f"lr/{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups})
