"""Write the checkpoints of a run: ``last.ckpt`` and ``best.ckpt``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers.logger import Logger

from qmix_lightning.checkpoint.files import write_checkpoint
from qmix_lightning.checkpoint.segments import SegmentStore
from qmix_lightning.errors import CheckpointError, EnvironmentFault, RunDiverged, RunInterrupted
from qmix_lightning.runtime.distributed import all_gather_objects
from qmix_lightning.runtime.kill_points import reached
from qmix_lightning.runtime.process_memory import MemoryPeak, process_peaks
from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.csv_logger import RunCSVLogger
from qmix_lightning.training.datamodule import data_of
from qmix_lightning.training.module import TeamModule
from qmix_lightning.training.trackers.base import Tracker, catch_up

__all__ = ["RunCheckpoint"]


class RunCheckpoint(Checkpoint):
    """Callback that writes ``last.ckpt``, the whole run, and ``best.ckpt``, the networks of the best evaluation.

    Args:
        run_dir: where the run writes; checkpoints go to its ``checkpoints`` folder.
        interval: environment steps between checkpoints.
        source: the ``checkpoints`` folder of the run that this one goes on from, whose segments have been verified.
        log: whose evaluation decides about ``best``.
    """

    def __init__(self, run_dir: Path, interval: int, source: Path | None, log: MetricsLog) -> None:
        self.run_dir = run_dir
        self.interval = interval
        self.source = source
        self._metrics_log = log  # not "log": Lightning gives every callback a method of that name
        # Not by a hook of this callback, the last one: what others save at an evaluation holds whether it was the best.
        log.on_evaluation = self._keep_if_best
        self.best: list[float] = []
        self.best_eval: dict[str, float] = {}
        """The best evaluation, by the names of ``summary.json``, and the environment steps at it."""
        self.eval_wall_s: dict[int, float] = {}
        """Environment steps of each evaluation -> seconds of training when it had ended."""
        self.wall_before = 0.0
        self.saved = 0
        self.memory = MemoryPeak()
        self._last_update: int | None = None
        self._start = time.monotonic()
        self._saved_at = 0
        self._loggers: list[Logger] = []
        self._loggers_state: dict[str, Any] = {}

    @property
    def folder(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def wall_s(self) -> float:
        """Return the seconds of training, those before a resume included."""
        return self.wall_before + time.monotonic() - self._start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.run_dir = Path(trainer.strategy.broadcast(str(self.run_dir)))
        self._loggers = trainer.loggers
        data_of(trainer).store = SegmentStore(
            self.folder, trainer.global_rank, self.source, verified=self.source is not None
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        counters = data_of(trainer).counters
        self._saved_at = counters.env_steps
        if self.source is not None:
            self._last_update = counters.updates
        if self.source is not None and trainer.is_global_zero:
            other = self.source.parent / "metrics.csv"
            for logger in trainer.loggers:
                if isinstance(logger, RunCSVLogger):
                    same = other.resolve() == logger.path.resolve()
                    logger.load_state_dict(self._loggers_state, counters.updates, None if same else other)
                    catch_up(trainer, logger.rows())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if data_of(trainer).counters.env_steps - self._saved_at >= self.interval:
            self.save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            cast(TeamModule, pl_module).check_finite()  # nothing is played by networks that have diverged

    def _keep_if_best(self, trainer: Trainer, module: TeamModule) -> None:
        """Write ``best.ckpt`` if no evaluation was better; every rank calls it."""
        results, env_steps = self._metrics_log.last_eval, data_of(trainer).counters.env_steps
        self.eval_wall_s[env_steps] = round(self.wall_s, 3)
        score = [results.get("eval/win_rate", 0.0), results.get("eval/return_mean", math.nan)]
        if math.isnan(score[1]) or (self.best and score < self.best):
            return
        module.check_finite()
        self.best = score
        self.best_eval = {"env_steps": env_steps, **{n.removeprefix("eval/"): v for n, v in results.items()}}
        reached("best.begin")
        weights = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            payload = {
                "state_dict": weights,
                "global_step": trainer.global_step,
                "env_steps": env_steps,
                "eval": results,
                **module.recorded(),
            }
            write_checkpoint(payload, self.folder / "best.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # An environment that failed for good in the middle of an evaluation, or while a resumed run played its episodes
        # in flight again, is known to one rank only, which must not wait for the others.
        data = data_of(trainer)
        together = data.collector is not None and (trainer.world_size == 1 or not data.counters.evaluation_pending)
        if isinstance(exception, RunInterrupted) or (isinstance(exception, EnvironmentFault) and together):
            try:
                self.save(trainer)
            except RunDiverged as diverged:
                raise self._with_last_checkpoint(diverged) from None
        if isinstance(exception, RunDiverged):
            self._with_last_checkpoint(exception)

    def _with_last_checkpoint(self, diverged: RunDiverged) -> RunDiverged:
        """Add to the message of a run that diverged which checkpoint is left."""
        kept = "no checkpoint was written before"
        if self._last_update is not None:
            kept = f"last.ckpt is of update {self._last_update}, from before"
        diverged.args = (f"{diverged}; {kept}",)
        return diverged

    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``; every rank calls it.

        Raises:
            RunDiverged: a loss, a gradient or a parameter is not finite; nothing was written.
        """
        cast(TeamModule, trainer.lightning_module).check_finite()
        self.memory.add(all_gather_objects(process_peaks()))
        for logger in self._loggers:
            logger.save()  # what TensorBoard holds back would be lost with a process that is killed
        reached("checkpoint.begin")
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)
        data = data_of(trainer)
        self._saved_at, self._last_update = data.counters.env_steps, data.counters.updates
        self.saved += 1
        if data.store is not None:
            data.store.collect_garbage()

    def state_dict(self) -> dict[str, Any]:
        # Lightning asks for this when it saves, on every rank; only rank 0 has rows and tracked runs.
        rows = [logger.state_dict() for logger in self._loggers if isinstance(logger, RunCSVLogger)]
        trackers = [logger for logger in self._loggers if isinstance(logger, Tracker)]
        return {
            "best": self.best,
            "best_eval": self.best_eval,
            "wall_s": self.wall_s,
            "eval_wall_s": list(self.eval_wall_s.items()),
            "loggers": rows[0] if rows else {},
            "trackers": {tracker.name: tracker.tracker_id for tracker in trackers if tracker.tracker_id},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = [float(value) for value in state_dict["best"]]
        best_eval = state_dict.get("best_eval", {})  # 0.1.0 kept none
        self.best_eval = {str(k): int(v) if k == "env_steps" else float(v) for k, v in best_eval.items()}
        self.wall_before = float(state_dict["wall_s"])
        if len(self.best) not in (0, 2) or not all(map(math.isfinite, (*self.best, self.wall_before))):
            raise CheckpointError("the checkpoint's best evaluation and time are not those of a run")
        self.eval_wall_s = dict(state_dict.get("eval_wall_s", []))  # 0.1.0 kept none
        self._loggers_state = state_dict["loggers"]
