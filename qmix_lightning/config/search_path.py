"""Add the configuration folders of plugins to Hydra's search path, behind this package's own."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from qmix_lightning.config.shipped import plugin_folders

__all__ = ["PluginFolders"]


class PluginFolders(SearchPathPlugin):
    """Hydra plugin that appends the folders, so that no plugin replaces a name of this package."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, folder in plugin_folders().items():
            search_path.append(provider=name, path=f"file://{folder}")
