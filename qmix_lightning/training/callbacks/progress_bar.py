"""Show progress in environment steps: a bar, or a line now and then where there is no terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.datamodule import ReplayDataModule, data_of

__all__ = ["EnvStepsBar"]

_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {rate_noinv_fmt}, {remaining} left{postfix}"
_EVALUATING = _BAR.replace("{remaining} left", "evaluating")
_REFRESH_S = 0.25
_WIDE = 110
"""Columns from which on epsilon and loss find a place beside the bar."""


class EnvStepsBar(ProgressBar):
    """Progress bar whose first word is the return; in a log file, a line every so often.

    A thread looks at the counters, so that it moves while the first episodes are collected too, and costs an update
    nothing.

    Args:
        log: where the last logged values come from.
        line_every_s: seconds between two lines.
    """

    def __init__(self, log: MetricsLog, line_every_s: float = 30.0) -> None:
        super().__init__()
        self.log_values = log
        self.line_every_s = line_every_s
        self._enabled = True
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled and trainer.is_global_zero:
            show = self._show_bar if sys.stderr.isatty() else self._print_lines
            self._ended.clear()
            self._thread = threading.Thread(target=show, args=(data_of(trainer),), name="progress", daemon=True)
            self._thread.start()

    def _show_bar(self, data: ReplayDataModule) -> None:
        def done() -> int:
            return min(data.counters.env_steps, data.total_env_steps)

        options: dict[str, Any] = {"unit": "", "unit_scale": True, "dynamic_ncols": True, "bar_format": _BAR}
        with tqdm(total=data.total_env_steps, initial=done(), desc=self._result(), **options) as bar:
            ended = False
            while not ended:
                ended = self._ended.wait(_REFRESH_S)
                bar.bar_format = _EVALUATING if data.counters.evaluation_pending else _BAR
                bar.set_description_str(self._result(), refresh=False)
                bar.set_postfix_str(self._details(data) if _columns() >= _WIDE else "", refresh=False)
                bar.update(done() - bar.n)
                bar.refresh()

    def _print_lines(self, data: ReplayDataModule) -> None:
        then, before = time.monotonic(), data.counters.env_steps
        while not self._ended.wait(self.line_every_s):
            now, steps = time.monotonic(), data.counters.env_steps
            rate = (steps - before) / (now - then)
            then, before = now, steps
            left = tqdm.format_interval(max(0, data.total_env_steps - steps) / rate) if rate > 0 else "?"
            print(
                f"{self._result()}, {steps:,}/{data.total_env_steps:,} env steps, {rate:,.0f}/s, {left} left, "
                f"{self._details(data)}",
                file=sys.stderr,
                flush=True,
            )

    def _result(self) -> str:
        """Return the result so far: of the last evaluation, or before that of the last training episodes."""
        values, prefix, where = self.log_values.last_eval, "eval", ""
        if not values:
            values, prefix, where = self.log_values.last_train, "train", "train "
        if f"{prefix}/return_mean" not in values:
            return "no return yet"
        win = f", win {values[f'{prefix}/win_rate']:.0%}" if f"{prefix}/win_rate" in values else ""
        return f"{where}return {values[f'{prefix}/return_mean']:.4g}{win}"

    def _details(self, data: ReplayDataModule) -> str:
        loss = self.log_values.last_train.get("train/loss")
        shown = f"eps {data.epsilon(data.counters.env_steps):.2f}"
        return shown if loss is None else f"{shown}, loss {loss:.3g}"

    def close(self) -> None:
        """Leave the finished bar and end its line."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 80
