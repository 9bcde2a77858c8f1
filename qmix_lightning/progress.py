"""The progress bar, in environment steps; silent where there is no terminal."""

from __future__ import annotations

import sys
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from qmix_lightning.callbacks import MetricsLog, _data

__all__ = ["EnvStepsBar"]


class EnvStepsBar(ProgressBar):
    """Steps done of the budget, steps/s, time left, epsilon, loss and the last evaluation.

    Args:
        log: where the last logged values come from.
    """

    def __init__(self, log: MetricsLog) -> None:
        super().__init__()
        self.log_values = log
        self._bar: tqdm | None = None
        self._enabled = True
        self._epsilon = 1.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (self._enabled and trainer.is_global_zero and sys.stderr.isatty()):
            return
        data = _data(trainer)
        self._bar = tqdm(
            total=data.total_env_steps,
            initial=min(data.counters.env_steps, data.total_env_steps),
            unit="step",
            unit_scale=True,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} env steps, {rate_fmt}, "
            "{remaining} left{postfix}",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        done = min(_data(trainer).counters.env_steps, self._bar.total)
        self._epsilon = batch.epsilon
        if self._bar.update(done - self._bar.n):
            self._show()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None and not trainer.sanity_checking:
            self._show()
            self._bar.refresh()

    def _show(self) -> None:
        assert self._bar is not None
        train, evaluation = self.log_values.last_train, self.log_values.last_eval
        shown = [f"eps {self._epsilon:.2f}"]
        if "train/loss" in train:
            shown.append(f"loss {train['train/loss']:.3g}")
        if "eval/win_rate" in evaluation:
            shown.append(f"eval win {evaluation['eval/win_rate']:.0%}")
        if "eval/return_mean" in evaluation:
            shown.append(f"eval return {evaluation['eval/return_mean']:.4g}")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def close(self) -> None:
        """Leave the finished bar and end its line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()
