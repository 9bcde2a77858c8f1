"""Accept old names of settings for one release, and print the new name once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["GONE", "KEYS", "TARGETS", "VALUES", "rename_override", "rename_settings"]

KEYS = {"rollout.pipelined": "rollout.asynchronous"}
"""Old key -> new key, both within one section."""

_SHIPPED = {"rollout.asynchronous": "auto"}
"""New key -> its default: with another value somebody has set it under its new name."""

VALUES = {"rollout.collector": {"here": "inline"}}
"""Key -> old value -> new value."""

GONE = ("rollout.cuda_graph", "rollout.capture")
"""Keys of settings that have no effect any more: they are dropped."""

TARGETS = {"qmix_lightning.q_table.QTableReport": "qmix_lightning.training.callbacks.q_table.QTableReport"}
"""Old ``_target_`` of a callback or a logger -> new one."""

_UNTIL = "0.3.0"
_warned: set[str] = set()


def _warn_once(old: str, new: str | None, silent: bool = False) -> None:
    """Print once for each name, on the first rank, that ``old`` is called ``new`` now, or does nothing any more."""
    first = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    if first and not silent and old not in _warned:
        _warned.add(old)
        what = f"is called {new} now; the old name works" if new else "has no effect any more; it may be typed"
        print(f"{old} {what} until version {_UNTIL}", file=sys.stderr)


def rename_override(override: str) -> str:
    """Return what was typed, ``rollout.pipelined=true``, under its key of today, so that Hydra takes it."""
    match = re.match(r"([+~]*)([\w.]+)(.*)", override, re.DOTALL)
    if match is None or match[2] not in {*KEYS, *KEYS.values(), *GONE}:
        return override
    prefix, key, value = match.groups()
    if key in KEYS:
        _warn_once(key, KEYS[key])
    # Added if need be: a file of the user's own, with the old key, may have taken the place of the shipped one.
    return f"{prefix if prefix.startswith('~') else '++'}{KEYS.get(key, key)}{value}"


def rename_settings(tree: Mapping[str, Any], typed: Collection[str] = (), *, silent: bool = False) -> dict[str, Any]:
    """Return a configuration, composed from YAML files or read from a checkpoint, with the names of today.

    Args:
        tree: nested containers; not changed.
        typed: keys that were typed: they win over a file's old name for the same setting.
        silent: print nothing, because nobody typed it.
    """
    renamed = _rename_targets(tree, silent)
    for gone in GONE:
        section, key = _place(renamed, gone)
        if key in section:
            del section[key]
            _warn_once(gone, None, silent)
    for old, new in KEYS.items():
        section, key = _place(renamed, old)
        if key in section:
            value, name = section.pop(key), new.partition(".")[2]
            if new not in typed and section.get(name, _SHIPPED[new]) == _SHIPPED[new]:
                section[name] = value
            _warn_once(old, new, silent)
    for name, values in VALUES.items():
        section, key = _place(renamed, name)
        value = section.get(key)
        if isinstance(value, str) and value in values:
            section[key] = values[value]
            _warn_once(f"{name}={value}", f"{name}={values[value]}", silent)
    return renamed


def _place(tree: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """Return the section of a dotted key, an empty one if there is none, and the name of the key in it."""
    name, _, key = dotted.partition(".")
    section = tree.get(name)
    return section if isinstance(section, dict) else {}, key


def _rename_targets(tree: Any, silent: bool) -> Any:
    """Return nested containers with every old ``_target_`` in them renamed."""
    if isinstance(tree, list):
        return [_rename_targets(value, silent) for value in tree]
    if not isinstance(tree, Mapping):
        return tree
    renamed = {key: _rename_targets(value, silent) for key, value in tree.items()}
    target = renamed.get("_target_")
    if isinstance(target, str) and target in TARGETS:
        renamed["_target_"] = TARGETS[target]
        _warn_once(target, TARGETS[target], silent)
    return renamed
