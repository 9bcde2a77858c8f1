"""Report evaluations to an optimising sweep, and end the run where its pruner says so."""

from __future__ import annotations

import warnings
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.datamodule import data_of

__all__ = ["Pruning"]


class Pruning(Callback):
    """Callback that gives each evaluation to a trial of Optuna, and stops the run that its pruner gives up.

    Args:
        trial: with ``report``, ``should_prune`` and ``set_user_attr``, as Optuna's have.
        log: whose last evaluation is given.
        metric: of the evaluation.
    """

    def __init__(self, trial: Any, log: MetricsLog, metric: str) -> None:
        self.trial = trial
        self.pruned = False
        self._metrics_log = log
        self._metric = metric

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = self._metrics_log.last_eval.get(f"eval/{self._metric}")
        if trainer.sanity_checking or value is None:
            return
        data = data_of(trainer)
        prune = False
        if trainer.is_global_zero:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a resumed run repeats what it has reported already
                self.trial.report(value, data.counters.env_steps)
            prune = bool(self.trial.should_prune())
        if trainer.strategy.broadcast(prune) and data.counters.env_steps < data.total_env_steps:
            self.pruned = trainer.should_stop = True
