"""Read the configuration files that come with this package, one by one: Hydra composes them."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

__all__ = ["plain_settings", "shipped_files"]


def shipped_files(group: str) -> dict[str, Traversable]:
    """Return the files of a configuration group by the names of its choices."""
    files = resources.files("qmix_lightning.conf").joinpath(group).iterdir()
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


def plain_settings(text: str) -> dict[str, Any]:
    """Return the settings of a YAML text in plain containers; interpolations stay as they are written."""
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}
