"""Answer settings of Lightning's Trainer that compete with this package's own, with what to set instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmix_lightning.config.schema import typed
from qmix_lightning.errors import ConfigurationError

__all__ = ["check_competing"]

_BUDGET = "the budget is total_env_steps=..., in environment steps"
_EVALUATIONS = "evaluations come every eval_interval=... environment steps"

_COMPETING: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_epochs": ((None, -1), _BUDGET),
    "min_epochs": ((None, 0), _BUDGET),
    "min_steps": ((None, 0), _BUDGET),
    "limit_train_batches": ((None, 1.0), _BUDGET),
    "overfit_batches": ((0, 0.0), "batches are drawn from the replay, whose size is replay.capacity=..."),
    "fast_dev_run": ((None, False, 0), "total_env_steps=200 makes a short run"),
    "val_check_interval": ((None, 1.0), _EVALUATIONS),
    "check_val_every_n_epoch": ((1,), _EVALUATIONS),
    "limit_val_batches": ((None, 0, 0.0, 1.0), "an evaluation has eval_episodes=... episodes; 0 switches it off"),
    "reload_dataloaders_every_n_epochs": ((0,), "data are collected while the run goes on: rollout.update_every=..."),
}
"""Argument of the Trainer -> values that change nothing here, and what to set instead of others."""


def check_competing(trainer: Mapping[str, Any]) -> None:
    """Refuse arguments of the Trainer that this package has settings of its own for.

    Args:
        trainer: the section of the configuration.

    Raises:
        ConfigurationError: names the first, and the setting to use.
    """
    for name, (harmless, instead) in _COMPETING.items():
        value = trainer.get(name, harmless[0])
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless):
            raise ConfigurationError(f"trainer.{name}={typed(value)} has no place here: {instead}")
