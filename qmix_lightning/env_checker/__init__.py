"""The conformance kit for environments."""

from qmix_lightning.env_checker.checker import check_environment, check_factory
from qmix_lightning.env_checker.report import CHECKS, CheckResult, failures, report

__all__ = ["CHECKS", "CheckResult", "check_environment", "check_factory", "failures", "report"]
