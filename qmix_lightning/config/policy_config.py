"""Define what the commands about a trained policy can be configured with, and check it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from qmix_lightning.config.run_config import (
    InterpreterConfig,
    NotNegative,
    Positive,
    Share,
    check_interpreter,
    check_kwargs,
)
from qmix_lightning.config.schema import from_mapping
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = [
    "OF_A_RUN",
    "EvalConfig",
    "ExportConfig",
    "WatchConfig",
    "validate_eval",
    "validate_export",
    "validate_watch",
]

OF_A_RUN = ("last", "best")
"""References that need a run's folder."""

_PROGRAM_KINDS = ("onnx", "torch_export")
_Config = TypeVar("_Config", bound="PolicyReference")


@dataclass(frozen=True)
class PolicyReference:
    """The keys that all of these commands share: which policy they are about."""

    policy: str | None
    ckpt_path: str | None
    run_dir: str | None

    @property
    def reference(self) -> str:
        """What names the policy."""
        return str(self.policy or self.ckpt_path)


@dataclass(frozen=True)
class EvalConfig(PolicyReference):
    """Configuration of ``qmix-eval``."""

    episodes: Positive | None
    num_envs: Positive | None
    seed: NotNegative | None
    epsilon: Share
    env: dict[str, Any]
    rollout: InterpreterConfig
    output: str | None


@dataclass(frozen=True)
class ExportConfig(PolicyReference):
    """Configuration of ``qmix-export``."""

    output: str
    learner: bool
    programs: list[str] | str
    verify_steps: NotNegative
    card: bool
    task: str
    command: str
    commit: str
    episodes: Positive
    num_envs: Positive
    seed: NotNegative | None
    env: dict[str, Any]

    @property
    def program_kinds(self) -> list[str]:
        """The kinds of program that are asked for."""
        return [self.programs] if isinstance(self.programs, str) else list(self.programs)


@dataclass(frozen=True)
class WatchConfig(PolicyReference):
    """Configuration of ``qmix-watch``; ``conf/watch.yaml`` says what each key means."""

    beside: str | None
    env: dict[str, Any]
    episodes: Positive
    seed: NotNegative | None
    epsilon: Share
    render: Literal["video", "human", "none"]
    page: bool
    output: str | None
    fps: Positive | None
    max_steps: Positive


def _read(kind: type[_Config], given: Mapping[str, Any]) -> _Config:
    """Return a configuration of this kind; refuse one that names no policy, or two."""
    config = from_mapping(kind, given, "")
    if not config.policy and not config.ckpt_path and config.run_dir:
        raise ConfigurationError(
            f"run_dir={config.run_dir} is of policy=last or policy=best: add one of them, or type the folder alone, "
            f"policy={config.run_dir}"
        )
    if not config.policy and not config.ckpt_path:
        raise ConfigurationError("policy needs a value: policy=..., a run folder, a .ckpt, a policy folder or a name")
    if config.policy and config.ckpt_path:
        raise ConfigurationError(f"policy={config.policy} and ckpt_path={config.ckpt_path} are two: name one")
    of_a_run = {config.reference, getattr(config, "beside", None)} & {*OF_A_RUN}
    if config.run_dir and not of_a_run and not _is_inside(config.reference, config.run_dir):
        raise ConfigurationError(
            f"run_dir={config.run_dir} is of policy=last or policy=best, and the policy is {config.reference}: leave "
            "one of the two out"
        )
    return config


def _is_inside(path: str, folder: str) -> bool:
    return Path(path).absolute().is_relative_to(Path(folder).absolute())


def validate_eval(given: Mapping[str, Any]) -> EvalConfig:
    """Check the configuration of ``qmix-eval`` like that of a run.

    Raises:
        ConfigurationError: an unknown key, a wrong type, a number out of range, no policy or two.
    """
    config = _read(EvalConfig, given)
    check_kwargs(config.env)
    check_interpreter(config.rollout.python, config.rollout.python_env)
    return config


def validate_export(given: Mapping[str, Any]) -> ExportConfig:
    """Check the configuration of ``qmix-export``.

    Raises:
        ConfigurationError: an unknown key, a wrong type, a number out of range, no policy or two.
    """
    config = _read(ExportConfig, given)
    for kind in config.program_kinds:
        if kind not in _PROGRAM_KINDS:
            raise ConfigurationError(f"programs: there is no kind '{kind}'{did_you_mean(str(kind), _PROGRAM_KINDS)}")
    return config


def validate_watch(given: Mapping[str, Any]) -> WatchConfig:
    """Check the configuration of ``qmix-watch``.

    Raises:
        ConfigurationError: an unknown key, a wrong type, a number out of range, no policy or two.
    """
    config = _read(WatchConfig, given)
    check_kwargs(config.env)
    if config.beside and not config.page:
        raise ConfigurationError("beside is shown on the page: add page=true")
    return config
