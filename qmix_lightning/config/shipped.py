"""Find and read the configuration files of this package and of plugins, one by one: Hydra composes them."""

from __future__ import annotations

import importlib.util
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.registry import published

__all__ = ["plain_settings", "plugin_folders", "shipped_file", "shipped_files"]

_PLUGINS = "qmix_lightning.conf"


def shipped_files(group: str) -> dict[str, Traversable]:
    """Return the files of a configuration group by the names of its choices."""
    files = resources.files("qmix_lightning.conf").joinpath(group).iterdir()
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


def shipped_file(group: str, choice: str) -> Traversable | None:
    """Return this package's file of a choice, if it has one."""
    file = resources.files("qmix_lightning.conf").joinpath(group, f"{choice}.yaml")
    return file if file.is_file() else None


def plugin_folders() -> dict[str, Path]:
    """Return the configuration folder of each plugin, by the name of its entry point.

    An entry point in the group ``qmix_lightning.conf`` names the folder by its package, ``my_team.conf``; its
    sub-folders are the groups (``algorithm``, ``mixer``, ``agent``, ``env``, ``experiment``, ...). Nothing of the
    plugin is imported.

    Raises:
        ConfigurationError: an installed entry point leads to no folder.
    """
    found: dict[str, Path] = {}
    for entry in published(_PLUGINS):
        # The top package alone: finding a sub-package would import those above it.
        top, *rest = entry.value.split(".")
        spec = importlib.util.find_spec(top)
        places = [Path(place, *rest) for place in (spec and spec.submodule_search_locations) or ()]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise ConfigurationError(f"the entry point {entry.name} = '{entry.value}' of {_PLUGINS} leads to no folder")
        found[entry.name] = folder
    return found


def plain_settings(text: str) -> dict[str, Any]:
    """Return the settings of a YAML text in plain containers; interpolations stay as they are written."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}
