"""Find SMAC and SMACv2 where they are installed, check their settings, and explain what is missing in one line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from qmix_lightning.errors import ConfigurationError, MissingDependencyError

__all__ = ["RESERVED", "explain", "game_settings", "import_package", "parse_flags", "set_timeout"]

RESERVED = {
    "map_name": "use env.map_name",
    "continuing_episode": "it is always on, to tell the step limit from an end; use env.timeout_is_terminal",
}
"""Settings of ``StarCraft2Env`` that are not the user's -> what to use instead."""

_INSTALL = (
    "pip install --no-deps git+https://github.com/oxwhirl/{package}.git pysc2==4.0.0 && "
    "pip install 'pys2clientprotocol>=1.0.2' absl-py portpicker websocket-client (see docs/smac.md)"
)
_DIFFICULTIES = tuple("123456789A")


def import_package(package: str, module: str) -> ModuleType:
    """Import ``module`` of SMAC or SMACv2; each way that this can fail has its own line.

    Args:
        package: ``smac`` or ``smacv2``.
        module: what to import, e.g. ``smac.env``.
    """
    install = _INSTALL.format(package=package)
    other = "smacv2" if package == "smac" else "smac"
    if f"{other}.env" in sys.modules:
        raise ConfigurationError(
            f"smac and smacv2 cannot share a process, both define the same maps, and {other} is loaded already: "
            f"run {package} in a process of its own"
        )
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise MissingDependencyError(f"environment '{package}' needs a package that is on no index: {install}")
        if PathFinder.find_spec(f"{package}.env", spec.submodule_search_locations or []) is None:
            raise MissingDependencyError(_unrelated(package, install))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith(package):
            raise MissingDependencyError(_unrelated(package, install)) from error
        raise MissingDependencyError(f"environment '{package}' needs the package '{error.name}': {install}") from error


def _unrelated(package: str, install: str) -> str:
    which = "is SMAC3, an optimiser, not the StarCraft environment" if package == "smac" else "has no 'env'"
    return f"the installed package '{package}' {which}: pip uninstall {package}; {install}"


def game_settings(kwargs: Mapping[str, Any] | None, reserved: Mapping[str, str]) -> dict[str, Any]:
    """Return ``env.kwargs`` for ``StarCraft2Env``, with what YAML and the command line get wrong corrected.

    Args:
        kwargs: from the configuration.
        reserved: settings that are not the user's -> what to use instead.
    """
    settings = dict(kwargs or {})
    for name, instead in reserved.items():
        if name in settings:
            raise ConfigurationError(f"env.kwargs.{name} is not yours to set: {instead}")
    difficulty = settings.get("difficulty")
    if difficulty is not None:
        settings["difficulty"] = str(difficulty)  # 7 is a number to YAML
        if settings["difficulty"] not in _DIFFICULTIES:
            raise ConfigurationError(f"env.kwargs.difficulty must be one of {', '.join(_DIFFICULTIES)}")
    if isinstance(settings.get("game_version"), float):  # 4.10 is a number to YAML, and equal to 4.1
        raise ConfigurationError(
            f"env.kwargs.game_version={settings['game_version']} is ambiguous: write all three parts, e.g. 4.10.0"
        )
    return settings


def set_timeout(seconds: int) -> None:
    """Set how long pysc2 waits for a game.

    It waits for 360 s unless its flag says otherwise; a game that hangs would stop a run for so long.
    """
    flags = parse_flags()
    if flags is not None and "sc2_timeout" in flags:
        flags.sc2_timeout = seconds


def parse_flags() -> Any:
    """Return absl's flags, which must be parsed before pysc2 reads them."""
    try:
        flags: Any = importlib.import_module("absl.flags").FLAGS
    except ModuleNotFoundError:
        return None
    if not flags.is_parsed():
        flags(["qmix-lightning"])
    return flags


def explain(error: Exception, name: str, package: str) -> str | None:
    """Return one helpful line for what cannot be put right by trying again."""
    text, kind = " ".join(str(error).split()), type(error).__name__
    if kind == "DuplicateMapError":
        return f"{name}: smac and smacv2 cannot share a process, both define the same maps ({text})"
    if "Unknown game version" in text:
        return f"{name}: {text} Set env.kwargs.game_version to one of those, or leave it out for the newest"
    if kind == "NoMapError" or ("Map " in text and "not found in" in text) or ".SC2Map" in text:
        return (
            f"{name}: {text.rstrip('.')}. Copy the folder SMAC_Maps of the {package} repository into the game's Maps "
            "folder (see docs/smac.md)"
        )
    missing_game = ("Expected to find StarCraft II", "No SC2 binary", "No SC2 Versions", "older than", "Trying to run")
    if isinstance(error, FileNotFoundError) or any(part in text for part in missing_game):
        return f"{name}: StarCraft II is not there ({text}): install it and let SC2PATH name its folder (docs/smac.md)"
    return None
