"""Decide which settings a resumed run may change, and fill in defaults for settings that its checkpoint lacks.

Which checkpoint is resumed and how its configuration is merged with what was typed is decided in
:mod:`qmix_lightning.checkpoint.resume`.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping
from importlib import resources
from typing import Any

from qmix_lightning.config.schema import typed
from qmix_lightning.config.tree import flatten
from qmix_lightning.errors import ConfigurationError

__all__ = ["check_resumable", "fill_missing_defaults", "imported", "missing_settings"]


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
"""Settings that a resumed run may change, since what it did before does not depend on them.

The kind of device and the number of ranks are compared apart, as they turn out.
"""


_NAMES_ONLY = {"jaxmarl": ("id",), "gymnasium": ("id",)}
"""Environments whose ``id`` is looked up among the simulator's own names: it imports nothing."""


def imported(env: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of an ``env`` section that say what is imported, which a checkpoint must not decide."""
    harmless = _NAMES_ONLY.get(env["name"], ())
    return {key: str(env[key]) for key in ("id", "module") if env.get(key) and key not in harmless}


def check_resumable(saved: Mapping[str, Any], new: Mapping[str, Any], path: Any) -> None:
    """Refuse to resume with a configuration that would have made what the run did before different.

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


_GROUPS = ("mixer", "agent", "algorithm", "replay", "rollout", "exploration", "optimizer")


_RESERVED_KEYS = ("run_dir", "ckpt_path")


def fill_missing_defaults(saved: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Return a checkpoint's configuration with defaults for settings that it lacks; one line on stderr says which.

    Args:
        saved: as it is stored; not changed.
        path: of the checkpoint, for the line.
    """
    if not isinstance(saved, Mapping) or not (missing := missing_settings(saved)):
        return typing.cast("dict[str, Any]", saved)
    shown = ", ".join(f"{key}={'null' if value is None else value}" for key, value in flatten(missing).items())
    print(f"{path} was written before these settings existed and goes on with their defaults: {shown}", file=sys.stderr)
    whole = {name: dict(value) if isinstance(value, Mapping) else value for name, value in saved.items()}
    for name, value in missing.items():
        whole[name] = {**value, **whole.get(name, {})} if isinstance(value, dict) else value
    return whole


def missing_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the settings that ``saved`` lacks, nested as it is."""
    top = {key: value for key, value in _read("train").items() if not isinstance(value, dict | list)}
    missing: dict[str, Any] = {
        key: value
        for key, value in top.items()
        if key not in saved and key not in _RESERVED_KEYS and not _refers(value)
    }
    for group in _GROUPS:
        section = saved.get(group)
        if not isinstance(section, Mapping):
            continue
        defaults = _read(f"{group}/{_choice(group, section)}")
        defaults = defaults.get(group, defaults)  # an algorithm's file sets other groups too
        found = {key: value for key, value in defaults.items() if key not in section and not _refers(value)}
        if found:
            missing[group] = found
    return missing


def _choice(group: str, section: Mapping[str, Any]) -> str:
    """Return the name of the group's file that a section was made from, as far as its content says."""
    by_content = {"replay": section.get("kind"), "rollout": section.get("backend"), "exploration": "epsilon_greedy"}
    return str(by_content.get(group, section.get("name")))


def _read(name: str) -> dict[str, Any]:
    """Read one of the package's own files; empty if there is none of this name: it is a plugin's."""
    from omegaconf import OmegaConf

    if "/" in name.partition("/")[2] or ".." in name:  # the name comes from a file
        return {}
    file = resources.files("qmix_lightning.conf").joinpath(f"{name}.yaml")
    if not file.is_file():
        return {}
    tree = OmegaConf.to_container(OmegaConf.create(file.read_text()), resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items() if key not in ("defaults", "hydra")}


def _refers(value: Any) -> bool:
    """Return whether a default is made from other settings."""
    return isinstance(value, str) and "${" in value
