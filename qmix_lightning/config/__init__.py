"""Validate configurations: schemas, old names, plugins' folders, and what a resumed run may change."""

from qmix_lightning.config.run_config import (
    EvalConfig,
    ExplorationConfig,
    ReplayConfig,
    RolloutConfig,
    RunConfig,
    validate,
    validate_eval,
)

__all__ = ["EvalConfig", "ExplorationConfig", "ReplayConfig", "RolloutConfig", "RunConfig", "validate", "validate_eval"]
