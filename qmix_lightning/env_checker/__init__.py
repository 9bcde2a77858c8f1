"""Check environments: play random legal episodes, and report which checks fail."""

import warnings
from typing import Any

from qmix_lightning.env_checker.checker import check_environment, check_factory
from qmix_lightning.env_checker.report import CHECKS, CheckResult, failures, report

__all__ = ["CHECKS", "CheckResult", "check_environment", "check_factory", "failures", "report"]

_RENAMED = {"PROMISES": "CHECKS", "Finding": "CheckResult"}


def __getattr__(name: str) -> Any:
    """Return what a name of 0.1.0 stands for; these names are removed in 0.3.0."""
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.{name} is called {_RENAMED[name]} now", FutureWarning, stacklevel=2)
    return globals()[_RENAMED[name]]
