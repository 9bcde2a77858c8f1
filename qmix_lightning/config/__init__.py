"""Validate configurations: schemas, old names, plugins' folders, and what a resumed run may change."""

from qmix_lightning.config.policy_config import EvalConfig, validate_eval
from qmix_lightning.config.resume import check_resumable, imported
from qmix_lightning.config.run_config import ExplorationConfig, ReplayConfig, RolloutConfig, RunConfig, validate
from qmix_lightning.config.schema import check_settings, settings_of
from qmix_lightning.config.tree import flatten

__all__ = [
    "EvalConfig",
    "ExplorationConfig",
    "ReplayConfig",
    "RolloutConfig",
    "RunConfig",
    "check_resumable",
    "check_settings",
    "flatten",
    "imported",
    "settings_of",
    "validate",
    "validate_eval",
]
