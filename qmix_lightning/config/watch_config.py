"""Define what ``qmix-watch`` can be configured with, and check it; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qmix_lightning.config.run_config import check_reference
from qmix_lightning.config.schema import from_mapping, typed
from qmix_lightning.errors import ConfigurationError

__all__ = ["WatchConfig", "validate_watch"]


@dataclass(frozen=True)
class WatchConfig:
    """Configuration of ``qmix-watch``; ``conf/watch.yaml`` says what each key means."""

    policy: str | None
    ckpt_path: str | None
    run_dir: str | None
    beside: str | None
    env: dict[str, Any]
    episodes: int
    seed: int | None
    epsilon: float
    render: Literal["video", "human", "none"]
    page: bool
    output: str | None
    fps: int | None
    max_steps: int

    @property
    def reference(self) -> str:
        """What names the policy."""
        return str(self.policy or self.ckpt_path)


def validate_watch(given: Mapping[str, Any]) -> WatchConfig:
    """Check a composed configuration.

    Raises:
        ConfigurationError: an unknown key, a wrong type, a number out of range, no policy or two.
    """
    config: WatchConfig = from_mapping(WatchConfig, given, "")
    check_reference(config.policy, config.ckpt_path)
    at_least = {"episodes": (config.episodes, 1), "seed": (config.seed or 0, 0), "max_steps": (config.max_steps, 1)}
    if config.fps is not None:
        at_least["fps"] = (config.fps, 1)
    for name, (value, least) in at_least.items():
        if value < least:
            raise ConfigurationError(f"{name} must be at least {least}, not {value}")
    if not 0.0 <= config.epsilon <= 1.0:
        raise ConfigurationError(f"epsilon must be between 0 and 1, not {config.epsilon}")
    if config.beside and not config.page:
        raise ConfigurationError("beside is shown on the page: add page=true")
    if not isinstance(config.env.get("kwargs", {}), Mapping):
        raise ConfigurationError(f"env.kwargs must be a mapping {{key: value}}, not {typed(config.env['kwargs'])}")
    return config
