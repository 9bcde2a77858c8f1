"""Say how a run ended, and by what."""

from __future__ import annotations

from dataclasses import dataclass

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from qmix_lightning.training.callbacks.pruning import Pruning
from qmix_lightning.training.datamodule import ReplayDataModule

__all__ = ["RUNNING", "Ending", "ending_of"]


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        status: ``running``, ``completed``, ``stopped``, ``pruned``, ``interrupted``, ``diverged`` or ``failed``.
        by: ``budget``, ``early_stopping``, ``max_time``, ``max_steps``, ``pruner``, ``callback``, the name of a signal,
            ``divergence`` or ``error``; ``None`` while it runs.
        why: the same for people, in a few words.
    """

    status: str
    by: str | None = None
    why: str = ""


RUNNING = Ending("running")


def ending_of(trainer: Trainer, data: ReplayDataModule) -> Ending:
    """Return how a run ended whose ``fit`` returned."""
    if data.finished:
        return Ending("completed", "budget", f"the budget of {data.total_env_steps:,} environment steps")
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    for callback in callbacks:
        if isinstance(callback, Pruning) and callback.pruned:
            return Ending("pruned", "pruner", "the sweep's pruner")
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            return Ending("stopped", "early_stopping", _why(callback))
    for timer in (callback for callback in callbacks if isinstance(callback, Timer)):
        left = timer.time_remaining()
        if left is not None and left <= 0:
            return Ending("stopped", "max_time", "the time limit, trainer.max_time")
    if 0 <= trainer.max_steps <= trainer.global_step:
        return Ending("stopped", "max_steps", f"trainer.max_steps={trainer.max_steps}")
    return Ending("stopped", "callback", "a callback that asked for it")


def _why(callback: EarlyStopping) -> str:
    """Return for what reason a run was stopped early."""
    name = f"early stopping: {callback.monitor}"
    return {
        EarlyStoppingReason.STOPPING_THRESHOLD: f"{name} reached {callback.stopping_threshold}",
        EarlyStoppingReason.DIVERGENCE_THRESHOLD: f"{name} was beyond {callback.divergence_threshold}",
        EarlyStoppingReason.NON_FINITE_METRIC: f"{name} was not finite",
    }.get(
        callback.stopping_reason,
        f"{name} was no better than {float(callback.best_score):.4g} in {callback.wait_count} evaluations",
    )
