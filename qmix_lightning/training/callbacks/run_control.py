"""Handle signals, stop a run at its budget, and end an epoch that was saved before its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from qmix_lightning.runtime.signals import SignalHandlers
from qmix_lightning.training.datamodule import data_of

__all__ = ["RunControl"]


class RunControl(Callback):
    """Callback that handles signals, stops at the budget, and ends an epoch that was not over at the last save."""

    def __init__(self) -> None:
        self._handlers: SignalHandlers | None = None

    def _install_signal_handlers(self, trainer: Trainer) -> None:
        # Not earlier: Lightning sets its own handlers after on_fit_start.
        def end_children() -> None:
            if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
                for process in launcher.procs:
                    process.kill()

        environment = trainer._accelerator_connector.cluster_environment  # pyright: ignore[reportPrivateUsage]
        requeue = None
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            requeue = environment.requeue_signal
        self._handlers = SignalHandlers(data_of(trainer).stop, end_children)
        self._handlers.install(requeue)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install_signal_handlers(trainer)
        data = data_of(trainer)
        if data.counters.evaluation_pending:
            self._end_epoch(trainer)
        self._stop_at_budget(trainer)

    @staticmethod
    def _end_epoch(trainer: Trainer) -> None:
        """Do what was left of the epoch before: its evaluation, if there are any, and what callbacks do at its end."""
        loop = trainer.fit_loop
        both = loop.epoch_progress.total, loop.epoch_progress.current
        for progress in both:
            progress.completed -= 1  # it is trainer.current_epoch, by which callbacks count evaluations
        if trainer.enable_validation:
            trainer.validating = True
            loop.epoch_loop.val_loop.run()
            trainer.training = True
        # Only now: what is saved in an evaluation that is cut short counts the epoch too.
        for progress in both:
            progress.processed -= 1  # pyright: ignore[reportAttributeAccessIssue]
        loop.on_advance_end()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            data_of(trainer).evaluated()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        data_of(trainer).take_background_round()  # before anything is logged or saved
        if self._handlers is not None and self._handlers.run_deferred() and trainer.is_global_zero:
            # Lightning would load its requeue checkpoint before any other one for ever after; as "last" it is just the
            # newest.
            folder = Path(trainer.default_root_dir)
            for path in sorted(folder.glob("hpc_ckpt_*.ckpt")):
                os.replace(path, folder / "checkpoints" / "last.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer)
        if data.counters.evaluation_pending:  # evaluation is switched off: the epoch still ends
            data.evaluated()
        self._stop_at_budget(trainer)

    def _stop_at_budget(self, trainer: Trainer) -> None:
        if data_of(trainer).finished:
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._handlers is not None:
            self._handlers.restore()
            self._handlers = None
