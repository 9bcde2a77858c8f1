"""Decide which settings a resumed run may change, and fill in defaults for settings that its checkpoint lacks.

Which checkpoint is resumed and how its configuration is merged with what was typed is decided in
:mod:`qmix_lightning.checkpoint.resume`.
"""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Mapping
from importlib import resources
from typing import Any

from qmix_lightning.config.schema import typed
from qmix_lightning.config.tree import flatten
from qmix_lightning.config.trust import is_name, texts
from qmix_lightning.errors import ConfigurationError

__all__ = ["MAY_CHANGE", "check_resumable", "fill_missing_defaults", "imported", "missing_settings", "shipped_defaults"]


MAY_CHANGE = (
    "preset",  # a name; its values are compared each by itself
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
    """Return the settings of an ``env`` section that a checkpoint must not decide: what is imported, and paths.

    Keys are dotted, as they are typed after ``env.``.
    """
    harmless = _NAMES_ONLY.get(env["name"], ())
    found = {}
    for key, value in flatten(env).items():
        names_a_module = key in ("id", "module") and value and key not in harmless
        if names_a_module or not all(map(is_name, texts(value))):
            found[key] = str(value)
    return found


def check_resumable(saved: Mapping[str, Any], new: Mapping[str, Any], path: Any) -> None:
    """Refuse to resume with a configuration that would have made what the run did before different.

    Raises:
        ConfigurationError: names the first keys that differ, with both values.
    """
    before, now = flatten(saved), flatten(new)
    allowed = tuple(f"{name}." for name in MAY_CHANGE)
    keys = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in MAY_CHANGE and not key.startswith(allowed)
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


_GROUPS = ("env", "mixer", "agent", "algorithm", "replay", "rollout", "exploration", "optimizer")


def fill_missing_defaults(saved: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Return a checkpoint's configuration with values for settings that it lacks; one line on stderr says which.

    Args:
        saved: as it is stored; not changed.
        path: of the checkpoint, for the line.
    """
    if not isinstance(saved, Mapping) or not (missing := missing_settings(saved)):
        return typing.cast("dict[str, Any]", saved)
    told = {key: value for key, value in flatten(missing).items() if key != "preset"}  # a name, it decides nothing
    shown = ", ".join(f"{key}={'null' if value is None else value}" for key, value in told.items())
    if shown:
        what = "was written before these settings existed and goes on with what held before"
        print(f"{path} {what}: {shown}", file=sys.stderr)
    whole = {name: dict(value) if isinstance(value, Mapping) else value for name, value in saved.items()}
    for name, value in missing.items():
        whole[name] = {**value, **whole.get(name, {})} if isinstance(value, dict) else value
    return whole


def missing_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the settings that ``saved`` lacks, nested as it is: those of version 0.1.0, never today's.

    A newer setting has the value that leaves things as they were.
    """
    frozen = _frozen_settings()
    missing: dict[str, Any] = {key: value for key, value in frozen["top"].items() if key not in saved}
    for group in _GROUPS:
        section = saved.get(group)
        if not isinstance(section, Mapping):
            continue
        known = frozen[group].get(_choice(group, section), {})
        if found := {key: value for key, value in known.items() if key not in section}:
            missing[group] = found
    return missing


def shipped_defaults(group: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the shipped file that a section was made from; empty if it is a plugin's.

    Where the file refers to a preset, the value is PyMARL's: enough to know what kind of setting it is.
    """
    tree = _read(f"{group}/{_choice(group, section)}")
    preset = _read("preset/pymarl")["preset"]
    defaults = tree.get(group, tree)  # an algorithm's file sets other groups too
    return {key: preset.get(_preset_key(value), value) for key, value in defaults.items()}


def _preset_key(value: Any) -> str | None:
    match = re.fullmatch(r"\$\{preset\.(\w+)\}", value) if isinstance(value, str) else None
    return match and match[1]


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


def _choice(group: str, section: Mapping[str, Any]) -> str:
    """Return the name of the component that a section is about, as far as its content says."""
    by_content = {"replay": section.get("kind"), "rollout": section.get("backend"), "exploration": "epsilon_greedy"}
    return str(by_content.get(group, section.get("name")))


def _frozen_settings() -> dict[str, Any]:
    from omegaconf import OmegaConf

    text = resources.files("qmix_lightning.config").joinpath("frozen_0_1_0.yaml").read_text()
    tree = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(tree, dict)
    return {str(group): value for group, value in tree.items()}
