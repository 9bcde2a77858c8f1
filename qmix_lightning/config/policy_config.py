"""Define what the commands about a trained policy can be configured with, and check it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qmix_lightning.config.run_config import check_reference
from qmix_lightning.config.schema import from_mapping
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["PROGRAM_KINDS", "ExportConfig", "ProgramKind", "validate_export"]

ProgramKind = Literal["onnx", "torch_export"]
PROGRAM_KINDS = ("onnx", "torch_export")


@dataclass(frozen=True)
class ExportConfig:
    """Configuration of ``qmix-export``."""

    policy: str | None
    ckpt_path: str | None
    run_dir: str | None
    output: str
    learner: bool
    programs: list[str] | str
    verify_steps: int
    card: bool
    task: str
    command: str
    commit: str
    episodes: int
    num_envs: int
    seed: int | None
    env: dict[str, Any]

    @property
    def reference(self) -> str:
        """What names the policy."""
        return str(self.policy or self.ckpt_path)

    @property
    def program_kinds(self) -> list[str]:
        """The kinds of program that are asked for."""
        return [self.programs] if isinstance(self.programs, str) else list(self.programs)


def validate_export(given: Mapping[str, Any]) -> ExportConfig:
    """Check the configuration of ``qmix-export``.

    Raises:
        ConfigurationError: an unknown key, a wrong type, or a number that is too small.
    """
    config: ExportConfig = from_mapping(ExportConfig, given, "")
    check_reference(config.policy, config.ckpt_path)
    for name, bound in {"episodes": 1, "num_envs": 1, "verify_steps": 0, "seed": 0}.items():
        if (value := getattr(config, name)) is not None and value < bound:
            raise ConfigurationError(f"{name} must be at least {bound}, not {value}")
    for kind in config.program_kinds:
        if kind not in PROGRAM_KINDS:
            raise ConfigurationError(f"programs: there is no kind '{kind}'{did_you_mean(str(kind), PROGRAM_KINDS)}")
    return config
