"""Configurations that were written before a setting existed: what they lack counts as its default."""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping
from importlib import resources
from typing import Any

from qmix_lightning.config import flatten

__all__ = ["complete_config", "missing_settings"]

_GROUPS = ("mixer", "agent", "algorithm", "replay", "rollout", "exploration", "optimizer")
_NEVER = ("run_dir", "ckpt_path")


def complete_config(saved: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """The configuration of a checkpoint with the settings that it lacks; one line on stderr says which.

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
    """Defaults of what ``saved`` lacks, nested as it is."""
    top = {key: value for key, value in _read("train").items() if not isinstance(value, dict | list)}
    missing: dict[str, Any] = {
        key: value for key, value in top.items() if key not in saved and key not in _NEVER and not _refers(value)
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
    """The file of a group that a section was made from, as far as its content tells."""
    by_content = {"replay": section.get("kind"), "rollout": section.get("backend"), "exploration": "epsilon_greedy"}
    return str(by_content.get(group, section.get("name")))


def _read(name: str) -> dict[str, Any]:
    """One of the package's own files; empty if there is none of this name: it is a plugin's."""
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
    """Whether a default is made from other settings."""
    return isinstance(value, str) and "${" in value
