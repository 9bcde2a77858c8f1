"""What a resumed run may be configured with: nothing that would have made another past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.schema import typed

__all__ = ["check_resumable", "flatten", "imported"]

_MAY_CHANGE = (
    "total_env_steps",
    "eval_interval",
    "eval_episodes",
    "checkpoint_interval",
    "run_dir",
    "ckpt_path",
    "logger",
    "callbacks",
    "replay.storage",
    "replay.memmap_dir",
    "replay.device",
    "rollout.num_eval_envs",
    "rollout.collector",
    "rollout.on_resume",
    "rollout.backend",
    "rollout.num_workers",
    "rollout.step_timeout_s",
    "rollout.max_faults",
    "rollout.fault_window_s",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.limit_val_batches",
    "trainer.max_time",
    "trainer.profiler",
)
"""What cannot change the past. The kind of device and the number of ranks are compared apart, as they turn out."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


_NAMES_ONLY = {"jaxmarl": ("id",), "gymnasium": ("id",)}
"""Environments whose ``id`` is looked up among the simulator's own names: it imports nothing."""


def imported(env: Mapping[str, Any]) -> dict[str, str]:
    """The settings of an ``env`` section that say what is imported, which a checkpoint must not decide."""
    harmless = _NAMES_ONLY.get(env["name"], ())
    return {key: str(env[key]) for key in ("id", "module") if env.get(key) and key not in harmless}


def check_resumable(saved: Mapping[str, Any], new: Mapping[str, Any], path: Any) -> None:
    """Refuse to go on with a configuration that would have made another past.

    Raises:
        ConfigurationError: names the first keys that differ, with both values.
    """
    before, now = flatten(saved), flatten(new)
    allowed = tuple(f"{name}." for name in _MAY_CHANGE)
    keys = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _MAY_CHANGE and not key.startswith(allowed)
    ]
    # Of a component that is another one, its name says it all.
    others = {key.removesuffix("name") for key in keys if key.count(".") == 1 and key.endswith(".name")}
    different = [
        f"{key}={typed(now.get(key))} (the checkpoint has {typed(before.get(key))})"
        for key in keys
        if not key.startswith(tuple(others)) or key.endswith(".name")
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise ConfigurationError(
            f"{path} belongs to another run: {'; '.join(different[:3])}{more}. Resume with the run's own settings, "
            "or start anew without ckpt_path"
        )
