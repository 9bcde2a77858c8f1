"""Add the configuration folders of plugins to Hydra's search path, behind this package's own.

An entry point in the group ``qmix_lightning.conf`` names the folder by its package, ``my_team.conf``; its sub-folders
are the groups (``algorithm``, ``mixer``, ``agent``, ``env``, ``experiment``, ...). Nothing of the plugin is imported.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import entry_points
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from qmix_lightning.errors import ConfigurationError

__all__ = ["PluginFolders", "plugin_folders"]

_GROUP = "qmix_lightning.conf"


def plugin_folders() -> dict[str, Path]:
    """Return the configuration folder of each plugin, by the name of its entry point.

    Raises:
        ConfigurationError: an installed entry point leads to no folder.
    """
    found: dict[str, Path] = {}
    for entry in entry_points(group=_GROUP):
        # The top package alone: finding a sub-package would import those above it.
        top, *rest = entry.value.split(".")
        spec = importlib.util.find_spec(top)
        places = [Path(place, *rest) for place in (spec and spec.submodule_search_locations) or ()]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise ConfigurationError(f"the entry point {entry.name} = '{entry.value}' of {_GROUP} leads to no folder")
        found[entry.name] = folder
    return found


class PluginFolders(SearchPathPlugin):
    """Hydra plugin that appends the folders, so that no plugin replaces a name of this package."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, folder in plugin_folders().items():
            search_path.append(provider=name, path=f"file://{folder}")
