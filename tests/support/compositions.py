"""The configuration of a command line."""

from __future__ import annotations

import functools
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from qmix_lightning.cli import hydra_app as cli
from qmix_lightning.config.run_config import RunConfig, validate


def composed(*overrides: str, resolve: bool = False) -> dict[str, Any]:
    """The configuration of a command line, as plain containers."""
    tree = OmegaConf.to_container(_composed(overrides), resolve=resolve)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    cli.register_plugin_names()
    with initialize_config_module("qmix_lightning.conf", version_base="1.3"):
        return compose("train", [*overrides, "run_dir=outputs/x"])


def run_config(*overrides: str) -> RunConfig:
    return validate(composed(*overrides, resolve=True))
