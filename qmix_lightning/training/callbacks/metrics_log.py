"""Pass the metrics of training and evaluation to every logger."""

from __future__ import annotations

import math
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer

from qmix_lightning.training.datamodule import data_of
from qmix_lightning.training.module import TeamModule, diverged

__all__ = ["MetricsLog"]


class MetricsLog(Callback):
    """Callback that sends rows to every logger: training every ``log_every_n_steps`` updates, and evaluations.

    Rows are over environment steps.
    """

    def __init__(self) -> None:
        self.last_train: dict[str, float] = {}
        self.last_eval: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        counters = data_of(trainer).counters
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every == 0 or counters.updates % every:
            return
        metrics = cast(TeamModule, pl_module).train_metrics()
        if not math.isfinite(metrics["loss"]):
            raise diverged("loss", counters.updates)
        played = {("win_rate" if n == "won" else f"{n}_mean"): v for n, v in data_of(trainer).pop_window().items()}
        self.last_train = {f"train/{n}": v for n, v in {**metrics, **played, "epsilon": batch.epsilon}.items()}
        self._log(trainer, self.last_train)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.last_eval = dict(cast(TeamModule, pl_module).eval_results)
            self._log(trainer, self.last_eval)

    @staticmethod
    def _log(trainer: Trainer, metrics: dict[str, float]) -> None:
        counters = data_of(trainer).counters
        row = {
            "updates": counters.updates,
            "env_steps": counters.env_steps,
            "episodes": counters.episodes,
            **{name: value for name, value in metrics.items() if not math.isnan(value)},
        }
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(row, step=counters.env_steps)

    def state_dict(self) -> dict[str, Any]:
        return {"last_eval": self.last_eval}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_eval = {str(name): float(value) for name, value in state_dict["last_eval"].items()}
