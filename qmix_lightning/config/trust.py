"""Take from a file's configuration only what a file may decide: numbers, and names.

A checkpoint, or a run folder's ``config.yaml``, may come from anybody. Nothing in it is an address to import, an
interpolation to resolve, or a path to write to: those are typed, or shipped with this package. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qmix_lightning.config.env_address import is_address, is_trusted
from qmix_lightning.config.shipped import plain_settings, shipped_files
from qmix_lightning.config.tree import flatten
from qmix_lightning.errors import CheckpointError
from qmix_lightning.runtime.text import printable

__all__ = [
    "REPORTING_GROUPS",
    "is_name",
    "kept_callback",
    "may_be_in_a_file",
    "recorded_config",
    "shipped_section",
    "texts",
    "trusted_config",
]

REPORTING_GROUPS = ("logger", "callbacks")
"""Groups whose settings say what is imported and where it writes: a file holds the names of their entries only."""

_PATHS = ("run_dir", "ckpt_path", "init_from", "replay.memmap_dir", "rollout.python", "ray.address")
"""Settings that are paths or addresses: those of a file have no effect."""

_LISTS = ("rollout.python_env",)
"""Lists that only what is typed decides: those of a file are taken for empty."""

_NEVER = ("trainer.model_registry",)
"""Settings of open-ended sections that name something outside of the run."""

_NAME = re.compile(r"[A-Za-z0-9_+-][\w+., -]{0,119}|\d+(:\d\d){1,3}", re.ASCII)
_METRIC = re.compile(r"(train|eval|lr)/\w{1,80}|max|min", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]|\.\.", re.ASCII)
_MOST_SETTINGS = 10_000


def is_name(text: str) -> bool:
    """Return whether a text can be nothing but a name or a duration: no address, path, URI or interpolation."""
    return not text or (_NAME.fullmatch(text) is not None and _ADDRESS.search(text) is None)


def texts(value: object) -> Iterator[str]:
    """Yield every text of nested containers, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)


def trusted_config(saved: object, path: Path | str) -> dict[str, Any]:
    """Return a file's configuration without what a file must not decide.

    Paths become null, loggers the names of their entries, callbacks those and what of their settings counts. Texts of
    ``env`` that are no names stay: :func:`qmix_lightning.config.resume.imported` says which of them must be typed
    again.

    Args:
        saved: as it was read; not changed.
        path: of the file, for messages.

    Raises:
        CheckpointError: it is no configuration, or holds an interpolation, an address or a path elsewhere.
    """
    if not isinstance(saved, Mapping) or not all(isinstance(key, str) for key in saved):
        raise CheckpointError(f"{path} holds no configuration")
    config: dict[str, Any] = {
        key: list(value) if key in REPORTING_GROUPS and isinstance(value, Mapping) else value
        for key, value in saved.items()
    }
    try:
        config = _plain(config, path)
    except RecursionError:
        raise CheckpointError(f"{path} cannot be read: its configuration holds itself") from None
    for group in REPORTING_GROUPS:
        changed = saved[group] if isinstance(saved.get(group), Mapping) else {}
        names = [name for name in config.get(group) or () if isinstance(name, str)]
        config[group] = {name: _changed(changed[name], values=group == "callbacks") for name in names}
    _forget_paths(config)
    _refuse_more_than_names(config, path)
    if not isinstance(config.get("env"), dict) or not isinstance(config["env"].get("name"), str):
        raise CheckpointError(f"{path} names no environment")
    return config


def _forget_paths(config: dict[str, Any]) -> None:
    for key in (*_PATHS, *_LISTS):
        section, _, name = key.rpartition(".")
        holder = config.get(section) if section else config
        if isinstance(holder, dict) and name in holder:
            holder[name] = [] if key in _LISTS else None


def _refuse_more_than_names(config: dict[str, Any], path: Path | str) -> None:
    """Refuse interpolations, and texts that are no names outside of ``env``.

    Raises:
        CheckpointError: names the first.
    """
    flat = flatten(config)
    if len(flat) > _MOST_SETTINGS:
        raise CheckpointError(f"{path} holds {len(flat):,} settings: more than any run has")
    for key, value in flat.items():
        held = list(texts(value))
        if any("${" in text for text in (key, *held)):
            raise CheckpointError(f"{path} holds an interpolation under '{printable(key)}', which a file must not")
        wrong = [text for text in held if key in _NEVER or not is_name(text)]
        if wrong and not key.startswith(("env.", "callbacks.")):
            raise CheckpointError(
                f"{path} holds '{printable(wrong[0])}' under '{printable(key)}': a file decides numbers and names only"
            )


def _plain(value: Any, path: Path | str, depth: int = 0) -> Any:
    """Return a copy of nested plain containers."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth < 20 and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(inner, path, depth + 1) for key, inner in value.items()}
    if depth < 20 and isinstance(value, list | tuple):
        return [_plain(inner, path, depth + 1) for inner in value]
    raise CheckpointError(f"{path} holds a {type(value).__name__} in its configuration, which no run has there")


def _changed(recorded: Any, *, values: bool) -> dict[str, Any]:
    """Return an entry's settings that were not the shipped ones, as far as the file says and decides: else null.

    Args:
        recorded: what the file has: values by name, or the names alone.
        values: whether numbers and names of metrics are taken.
    """
    if isinstance(recorded, Mapping):
        kept = {str(name): value if values and _is_harmless(value) else None for name, value in recorded.items()}
        # A run folder's config.yaml has whole sections: most of it is as it was shipped.
        return {name: value for name, value in kept.items() if value is not None or "_target_" not in recorded}
    return dict.fromkeys(filter(_is_text, recorded)) if isinstance(recorded, list) else {}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_harmless(value: Any) -> bool:
    """Return whether a setting of a callback is a number, or the name of a metric or of what is better."""
    return isinstance(value, bool | int | float) or (_is_text(value) and _METRIC.fullmatch(value) is not None)


def kept_callback(shipped: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a shipped callback that a file decides: those of the same kind as the shipped ones."""

    def same_kind(name: str, value: Any) -> bool:
        default = shipped.get(name, "")
        if isinstance(value, bool | int | float):
            return default is None or isinstance(default, bool | int | float)
        return _is_harmless(value) and _is_harmless(default)

    return {name: value for name, value in recorded.items() if name in shipped and same_kind(name, value)}


def may_be_in_a_file(override: str) -> bool:
    """Return whether a file, such as a suite, may hold an override of ``qmix-train``.

    Not a flag, a setting of Hydra, a whole section, a path, an interpolation, or code that is neither this package's
    nor trusted.
    """
    key, _, value = override.lstrip("+~").partition("=")
    elsewhere = ("-", "hydra", *_PATHS, *_LISTS, *_NEVER)
    section = "." not in key and value.lstrip().startswith("{")  # may hold any of these
    if section or override.startswith(elsewhere) or key.startswith(elsewhere):
        return False
    if "${" in value or "_target_" in override:
        return False
    addresses = filter(is_address, re.findall(r"[\w.:]+", value))
    return all(address.startswith("qmix_lightning.") or is_trusted(address) for address in addresses)


def recorded_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds of a run's configuration: everything that a file may decide.

    Of loggers and callbacks it is each entry's name, with the names of the settings that differ from those shipped; of
    callbacks, numbers and names of metrics too.
    """
    recorded = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for group in REPORTING_GROUPS:
        recorded[group] = {}
        for name, settings in config[group].items():
            if settings is None:
                continue
            shipped = shipped_section(group, name, config) or {}
            keys = [*settings, *shipped] if isinstance(settings, Mapping) else []
            different = sorted({str(k) for k in keys if settings.get(k) != shipped.get(k)})
            values = {key: settings.get(key) for key in different}
            recorded[group][name] = _changed(values, values=True) if group == "callbacks" else different
    _forget_paths(recorded)
    return recorded


def shipped_section(group: str, name: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of a shipped logger or callback, made for a run's configuration; ``None``: there is none."""
    for file in shipped_files(group).values():
        if isinstance(section := plain_settings(file.read_text()).get(name), dict):
            known = flatten(config)
            return {str(key): _filled(value, known) for key, value in section.items()}
    return None


def _filled(value: Any, known: Mapping[str, Any]) -> Any:
    """Return a shipped setting with its reference to another one, ``${run_dir}``, looked up."""
    match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    return known[match[1]] if match else value
