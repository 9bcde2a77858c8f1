"""Pass the metrics of training and evaluation to every logger, and to callbacks that watch them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean
from qmix_lightning.training.csv_logger import RunCSVLogger
from qmix_lightning.training.datamodule import data_of
from qmix_lightning.training.intervals import mean_name
from qmix_lightning.training.module import TeamModule, diverged
from qmix_lightning.training.row_position import PlacesRows

__all__ = ["MetricsLog", "log_row", "row_is_due"]


def row_is_due(trainer: Trainer) -> bool:
    """Return whether the last update is one that is logged: each ``trainer.log_every_n_steps``-th."""
    every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    return every != 0 and data_of(trainer).counters.updates % every == 0


def _position(trainer: Trainer) -> dict[str, float]:
    """Return where a run stands: what every row begins with."""
    counters = data_of(trainer).counters
    return {"updates": counters.updates, "env_steps": counters.env_steps, "episodes": counters.episodes}


def log_row(trainer: Trainer, metrics: dict[str, float], times: dict[str, float] | None = None) -> None:
    """Send a row over environment steps to every logger, on the first rank.

    Args:
        trainer: whose loggers they are.
        metrics: values; NaN is left out.
        times: more of them that differ from run to run; not for ``metrics.csv``, which a resumed run repeats exactly.
    """
    row = _position(trainer) | {name: value for name, value in metrics.items() if not math.isnan(value)}
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            exact = isinstance(logger, RunCSVLogger)
            logger.log_metrics(row if exact else row | (times or {}), step=data_of(trainer).counters.env_steps)


class MetricsLog(Callback):
    """Callback that logs training every ``log_every_n_steps`` updates, and evaluations.

    Both are in ``trainer.callback_metrics`` too, from the first update on, so that callbacks can watch them.
    """

    def __init__(self) -> None:
        self.last_train: dict[str, float] = {}
        self.last_eval: dict[str, float] = {}
        self.seconds = {"act": 0.0, "env": 0.0, "update": 0.0, "evaluate": 0.0}
        """Seconds of this rank so far: acting, environments, updates, evaluations."""
        self.on_evaluation: Callable[[Trainer, TeamModule], None] | None = None
        """Called with every evaluation, before any callback that may save the run."""
        self._logged_seconds = dict(self.seconds)
        self._begun = 0.0
        self._collected = (0.0, 0.0)
        self._monitors_checked = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, PlacesRows):
                logger.position = partial(_position, trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._publish(trainer, self.last_train | self.last_eval)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds["update"] += time.perf_counter() - self._begun
        data, module = data_of(trainer), cast(TeamModule, pl_module)
        due = row_is_due(trainer)
        if not (due or not self.last_train):
            return
        metrics = module.train_metrics()
        if not math.isfinite(metrics["loss"]):
            raise diverged("loss", data.counters.updates)
        means = data.counters.pop_window() if due else data.counters.window_means()
        played = {mean_name(name): value for name, value in means.items()}
        row = {f"train/{n}": v for n, v in {**metrics, **played, "epsilon": batch.epsilon}.items()}
        self.last_train |= row  # no episode may have ended since the row before: its return stays the last one
        self._publish(trainer, row)
        if due:
            log_row(trainer, row, self._pop_times(trainer))
        if not _may_log_more(trainer):
            self._check_monitors_once(trainer, module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seconds["evaluate"] += time.perf_counter() - self._begun
            self.last_eval = dict(cast(TeamModule, pl_module).eval_results)
            self._publish(trainer, self.last_eval)
            log_row(trainer, self.last_eval, self._pop_times(trainer))
            self._check_monitors_once(trainer, cast(TeamModule, pl_module))
            if self.on_evaluation is not None:
                self.on_evaluation(trainer, cast(TeamModule, pl_module))

    def _check_monitors_once(self, trainer: Trainer, module: TeamModule) -> None:
        """Refuse, once there was an update, callbacks that watch a metric which does not exist."""
        if self.last_train and not self._monitors_checked:
            self._monitors_checked = True
            _check_monitors(trainer, {*self.last_train, *module.eval_names})

    @staticmethod
    def _publish(trainer: Trainer, metrics: dict[str, float]) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})

    def _pop_times(self, trainer: Trainer) -> dict[str, float]:
        """Return the seconds since the row before, as metrics."""
        data, (act, env) = data_of(trainer), self._collected
        self._collected = data.act_s, data.env_s
        self.seconds["act"] += data.act_s - act
        self.seconds["env"] += data.env_s - env
        times = {f"time/{name}_s": total - self._logged_seconds[name] for name, total in self.seconds.items()}
        self._logged_seconds = dict(self.seconds)
        return times

    def state_dict(self) -> dict[str, Any]:
        return {"last_train": self.last_train, "last_eval": self.last_eval, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def numbers(key: str) -> dict[str, float]:
            return {str(name): float(value) for name, value in state_dict.get(key, {}).items()}

        self.last_train, self.last_eval = numbers("last_train"), numbers("last_eval")
        known = numbers("seconds")  # 0.1.0 kept none
        self.seconds = {name: known.get(name, 0.0) for name in self.seconds}
        self._logged_seconds = dict(self.seconds)


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # Lightning's connector sets it


def _may_log_more(trainer: Trainer) -> bool:
    """Return whether a callback of the user's may log a metric that is not there before the first evaluation."""
    packages = {type(callback).__module__.partition(".")[0] for callback in _callbacks(trainer)}
    return trainer.enable_validation and not packages <= {"qmix_lightning", "pytorch_lightning"}


def _check_monitors(trainer: Trainer, known: set[str]) -> None:
    """Refuse callbacks that watch a metric which does not exist, before much has been computed.

    Raises:
        ConfigurationError: has the closest name there is.
    """
    known = known | trainer.callback_metrics.keys()
    for callback in _callbacks(trainer):
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in known:
            what = f"callback {type(callback).__name__} watches '{monitor}', which is not logged"
            raise ConfigurationError(f"{what}{did_you_mean(monitor, known)}")
