"""Tell a run which trial of an optimising sweep it is, and make the pruner that it asks."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from typing import Any

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.near_modules import import_extra
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["PRUNERS", "TRIAL", "load_trial", "make_pruner"]

TRIAL = "QMIX_LIGHTNING_TRIAL"
"""Variable with JSON of ``storage``, ``study``, ``trial`` and ``pruner``; the sweeper sets it for each of its jobs."""

PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
"""Name -> class of Optuna."""


def make_pruner(description: Mapping[str, Any]) -> Any:
    """Return a pruner of Optuna.

    Args:
        description: its ``name`` and its ``settings``.

    Raises:
        ConfigurationError: there is none of this name, or it has no such setting.
    """
    import optuna

    name = description["name"]
    if name not in PRUNERS:
        raise ConfigurationError(f"unknown hydra.sweeper.pruner '{name}'{did_you_mean(name, PRUNERS)}")
    try:
        return getattr(optuna.pruners, PRUNERS[name])(**description["settings"])
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"hydra.sweeper.pruner_settings: {error}") from error


def load_trial(description: str) -> Any:
    """Return the trial that a sweeper has begun for this run.

    Args:
        description: what :data:`TRIAL` holds.

    Raises:
        MissingDependencyError: Optuna is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna 2 imports what SQLAlchemy 2 has not
        optuna = import_extra("optuna", "pruning needs Optuna", "sweep")
    found: Mapping[str, Any] = json.loads(description)
    optuna.logging.set_verbosity(logging.WARNING)
    pruner = make_pruner(found["pruner"])
    study = optuna.load_study(study_name=found["study"], storage=found["storage"], pruner=pruner)
    return optuna.trial.Trial(study, found["trial"])
