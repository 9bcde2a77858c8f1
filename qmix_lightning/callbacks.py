"""What happens around updates: ending a run, logging its rows, writing its checkpoints."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, cast

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from qmix_lightning.checkpoint import SegmentStore, write_checkpoint
from qmix_lightning.datamodule import ReplayDataModule
from qmix_lightning.errors import EnvironmentFault, RunError, RunInterrupted
from qmix_lightning.loggers import RunCSVLogger
from qmix_lightning.module import TeamModule
from qmix_lightning.signals import SignalHandlers

__all__ = ["MetricsLog", "RunCheckpoint", "RunControl"]


def _data(trainer: Trainer) -> ReplayDataModule:
    return cast(ReplayDataModule, trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]


class RunControl(Callback):
    """Signals, the budget, and an evaluation that was due when the run was saved."""

    def __init__(self) -> None:
        self._handlers: SignalHandlers | None = None

    def _take_signals(self, trainer: Trainer) -> None:
        # Not earlier: Lightning sets its own handlers after on_fit_start.
        def end_children() -> None:
            if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
                for process in launcher.procs:
                    process.kill()

        environment = trainer._accelerator_connector.cluster_environment
        requeue = None
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            requeue = environment.requeue_signal
        self._handlers = SignalHandlers(_data(trainer).stop, end_children)
        self._handlers.install(requeue)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_signals(trainer)
        data = _data(trainer)
        if data.counters.evaluation_pending and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        self._stop_at_budget(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            _data(trainer).evaluated()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        _data(trainer).take_round_ahead()  # before anything is logged or saved
        if self._handlers is not None and self._handlers.run_deferred() and trainer.is_global_zero:
            # Lightning would load its requeue checkpoint before any other one for ever after; as "last" it is just the
            # newest.
            folder = Path(trainer.default_root_dir)
            for path in sorted(folder.glob("hpc_ckpt_*.ckpt")):
                os.replace(path, folder / "checkpoints" / "last.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = _data(trainer)
        if data.counters.evaluation_pending:  # evaluation is switched off: the epoch still ends
            data.evaluated()
        self._stop_at_budget(trainer)

    def _stop_at_budget(self, trainer: Trainer) -> None:
        if _data(trainer).finished:
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._handlers is not None:
            self._handlers.restore()
            self._handlers = None


class MetricsLog(Callback):
    """Rows for every logger, over environment steps: training every ``log_every_n_steps`` updates, and evaluations."""

    def __init__(self) -> None:
        self.last_train: dict[str, float] = {}
        self.last_eval: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        counters = _data(trainer).counters
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every == 0 or counters.updates % every:
            return
        metrics = cast(TeamModule, pl_module).train_metrics()
        if not math.isfinite(metrics["loss"]):
            raise RunError(
                f"the loss is {metrics['loss']} at update {counters.updates}: lower optimizer.lr or "
                "optimizer.max_grad_norm; the last checkpoint was written before"
            )
        played = {("win_rate" if n == "won" else f"{n}_mean"): v for n, v in _data(trainer).take_window().items()}
        self.last_train = {f"train/{n}": v for n, v in {**metrics, **played, "epsilon": batch.epsilon}.items()}
        self._log(trainer, self.last_train)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.last_eval = dict(cast(TeamModule, pl_module).eval_results)
            self._log(trainer, self.last_eval)

    @staticmethod
    def _log(trainer: Trainer, metrics: dict[str, float]) -> None:
        counters = _data(trainer).counters
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
        self.last_eval = state_dict["last_eval"]


class RunCheckpoint(Checkpoint):
    """``last.ckpt``: the whole run; ``best.ckpt``: the networks of the best evaluation.

    Args:
        run_dir: where the run writes; checkpoints go to its ``checkpoints`` folder.
        interval: environment steps between checkpoints.
        source: the ``checkpoints`` folder of the run that this one goes on from.
        log: whose evaluation decides about ``best``.
    """

    def __init__(self, run_dir: Path, interval: int, source: Path | None, log: MetricsLog) -> None:
        self.run_dir = run_dir
        self.interval = interval
        self.source = source
        self._metrics_log = log  # not "log": Lightning gives every callback a method of that name
        self.best: list[float] = []
        self.wall_before = 0.0
        self.saved = 0
        self._start = time.monotonic()
        self._saved_at = 0
        self._loggers_state: dict[str, Any] = {}

    @property
    def folder(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def wall_s(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.wall_before + time.monotonic() - self._start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.run_dir = Path(trainer.strategy.broadcast(str(self.run_dir)))
        _data(trainer).store = SegmentStore(self.folder, trainer.global_rank, self.source)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        counters = _data(trainer).counters
        self._saved_at = counters.env_steps
        if self.source is not None and trainer.is_global_zero:
            other = self.source.parent / "metrics.csv"
            for logger in trainer.loggers:
                if isinstance(logger, RunCSVLogger):
                    same = other.resolve() == logger.path.resolve()
                    logger.load_state_dict(self._loggers_state, counters.updates, None if same else other)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _data(trainer).counters.env_steps - self._saved_at >= self.interval:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results = self._metrics_log.last_eval
        score = [results.get("eval/win_rate", 0.0), results.get("eval/return_mean", math.nan)]
        if trainer.sanity_checking or math.isnan(score[1]) or (self.best and score < self.best):
            return
        self.best = score
        weights = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            payload = {
                "state_dict": weights,
                "global_step": trainer.global_step,
                "env_steps": _data(trainer).counters.env_steps,
                "eval": results,
                **cast(TeamModule, pl_module).extra_checkpoint,
            }
            write_checkpoint(payload, self.folder / "best.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # An environment that failed for good in the middle of an evaluation is known to one rank only, which must not
        # wait for the others.
        together = trainer.world_size == 1 or not _data(trainer).counters.evaluation_pending
        if isinstance(exception, RunInterrupted) or (isinstance(exception, EnvironmentFault) and together):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``; every rank calls it."""
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)
        self._saved_at = _data(trainer).counters.env_steps
        self.saved += 1
        cast(SegmentStore, _data(trainer).store).collect_garbage()

    def state_dict(self) -> dict[str, Any]:
        loggers = {}
        # Lightning asks for this when it saves, on every rank; only rank 0 has rows.
        for logger in self.csv_loggers:
            loggers = logger.state_dict()
        return {"best": self.best, "wall_s": self.wall_s, "loggers": loggers}

    csv_loggers: tuple[RunCSVLogger, ...] = ()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = list(state_dict["best"])
        self.wall_before = float(state_dict["wall_s"])
        self._loggers_state = state_dict["loggers"]
