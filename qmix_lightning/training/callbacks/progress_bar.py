"""Show progress in environment steps: a bar, or a line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.datamodule import data_of

__all__ = ["EnvStepsBar"]


class EnvStepsBar(ProgressBar):
    """Progress bar of steps done of the budget, steps/s, time left, epsilon, loss and the last evaluation.

    In a log file a bar would be noise: there it is a line after an evaluation.

    Args:
        log: where the last logged values come from.
        line_every_s: seconds between two lines at least.
    """

    def __init__(self, log: MetricsLog, line_every_s: float = 30.0) -> None:
        super().__init__()
        self.log_values = log
        self.line_every_s = line_every_s
        self._last_line = (0.0, 0)  # time, environment steps
        self._bar: tqdm | None = None
        self._enabled = True
        self._epsilon = 1.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_line = (time.monotonic(), data_of(trainer).counters.env_steps)
        if not (self._enabled and trainer.is_global_zero and sys.stderr.isatty()):
            return
        data = data_of(trainer)
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
        self._epsilon = batch.epsilon
        if self._bar is None:
            return
        done = min(data_of(trainer).counters.env_steps, self._bar.total)
        if self._bar.update(done - self._bar.n):
            self._bar.set_postfix_str(self._values(), refresh=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(self._values(), refresh=False)
            self._bar.refresh()
        elif self._enabled and trainer.is_global_zero and not sys.stderr.isatty():
            self._print_line(trainer)

    def _print_line(self, trainer: Trainer) -> None:
        data, (then, before) = data_of(trainer), self._last_line
        passed = time.monotonic() - then
        if passed < self.line_every_s:
            return
        steps = data.counters.env_steps
        self._last_line = (then + passed, steps)
        rate = (steps - before) / max(passed, 1e-9)
        print(
            f"{steps:,}/{data.total_env_steps:,} env steps, {rate:,.0f}/s, {self._values()}",
            file=sys.stderr,
            flush=True,
        )

    def _values(self) -> str:
        train, evaluation = self.log_values.last_train, self.log_values.last_eval
        shown = [f"eps {self._epsilon:.2f}"]
        if "train/loss" in train:
            shown.append(f"loss {train['train/loss']:.3g}")
        if "eval/win_rate" in evaluation:
            shown.append(f"eval win {evaluation['eval/win_rate']:.0%}")
        if "eval/return_mean" in evaluation:
            shown.append(f"eval return {evaluation['eval/return_mean']:.4g}")
        return ", ".join(shown)

    def close(self) -> None:
        """Leave the finished bar and end its line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()
