"""Compose the configuration of runs from the overrides of ``qmix-train``, without running any."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmix_lightning.cli.messages import explain_hydra
from qmix_lightning.cli.overrides import (
    explicit_overrides,
    prepare_overrides,
    register_plugin_names,
    shipped_configuration,
    with_typed_algorithms_mixer,
)
from qmix_lightning.config.aliases import rename_settings
from qmix_lightning.config.run_config import RunConfig, validate
from qmix_lightning.config.shipped import shipped_file
from qmix_lightning.config.tree import key_of
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import shown_path

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["composer", "settings_of_job"]

Compose = Callable[[list[str], list[int] | None], list[RunConfig]]


def settings_of_job(config: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """Return what Hydra composed for a job in plain containers, under the names of today, and what was typed for it.

    Raises:
        ConfigurationError: a file of the user's own that was asked for is not the one that was read.
        OmegaConfBaseException: a value is missing, or an interpolation leads nowhere.
    """
    from omegaconf import OmegaConf

    _refuse_hidden_choice()
    typed = explicit_overrides()
    tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(tree, dict)
    tree = with_typed_algorithms_mixer({str(key): value for key, value in tree.items()}, typed)
    return rename_settings(tree, set(map(key_of, typed))), typed


def _refuse_hidden_choice() -> None:
    """Refuse a choice that ``--config-dir`` has a file for, where Hydra reads this package's of the same name."""
    from hydra.core.hydra_config import HydraConfig

    runtime = HydraConfig.get().runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.provider == "command-line"]
    for key, choice in runtime.choices.items() if folders else ():
        group = str(key).partition("@")[0]
        if (shipped := shipped_file(group, str(choice))) is None:
            continue
        for path in (folder / group / f"{choice}.yaml" for folder in folders):
            if path.is_file() and path.read_text() != shipped.read_text():
                raise ConfigurationError(
                    f"{shown_path(path)} is not read, since {group} '{choice}' is this package's own: give the file "
                    "another name"
                )


@contextlib.contextmanager
def composer() -> Generator[Compose]:
    """Yield ``compose(overrides, seeds)``, which returns what ``qmix-train overrides seed=...`` would run, checked.

    Without ``seeds`` it is the one run that ``overrides`` say.

    Raises:
        ConfigurationError: an override does not exist or fit; one line, with the closest name.
    """
    from hydra.core.hydra_config import HydraConfig

    register_plugin_names()
    before = HydraConfig.instance().cfg
    try:
        with shipped_configuration():
            yield _compose
    finally:
        HydraConfig.instance().cfg = before


def _compose(overrides: list[str], seeds: list[int] | None) -> list[RunConfig]:
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = compose("train", prepare_overrides(overrides, "train"), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        found = []
        for seed in [config.seed] if seeds is None else seeds:
            config.seed = seed
            found.append(validate(settings_of_job(config)[0]))
        return found
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain_hydra(error, "train")) from error
