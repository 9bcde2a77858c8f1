"""Check environments: play random legal episodes, and report which checks fail."""

from qmix_lightning.env_checker.checker import check_environment, check_factory
from qmix_lightning.env_checker.report import CHECKS, CheckResult, failures, report
from qmix_lightning.runtime.moved import look_up_renamed

__all__ = ["CHECKS", "CheckResult", "check_environment", "check_factory", "failures", "report"]

__getattr__ = look_up_renamed(
    __name__, {"PROMISES": "qmix_lightning.env_checker:CHECKS", "Finding": "qmix_lightning.env_checker:CheckResult"}
)
