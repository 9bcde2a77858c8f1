"""Make Lightning's Trainer, loggers and callbacks from their sections of a configuration."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from qmix_lightning.checkpoint.resume import Resumed
from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.config.schema import check_settings
from qmix_lightning.config.trust import texts
from qmix_lightning.errors import ConfigurationError, QMixLightningError
from qmix_lightning.runtime.text import did_you_mean, on_one_line
from qmix_lightning.training.trackers.base import TrackedRun, Tracker, tracker_ids

__all__ = ["in_folder", "make_instances", "make_loggers", "make_trainer", "quieten_lightning"]


def make_trainer(section: Mapping[str, Any], **provided: Any) -> Trainer:
    """Make Lightning's Trainer; ``trainer.*`` is passed straight through, what it refuses is the user's to correct."""
    settings = check_settings("trainer", section, Trainer, provided)
    try:
        return Trainer(**(settings | provided))
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        hint = ": use trainer.accelerator=auto or cpu" if "backend found" in str(error) else ""
        raise ConfigurationError(f"trainer: {on_one_line(error).rstrip('!')}{hint}") from error


def make_instances(
    section: Mapping[str, Any], group: str, tracked: Callable[[str], TrackedRun] | None = None
) -> list[Any]:
    """Make loggers or callbacks by their ``_target_``, as Hydra's users know it; ``null`` switches one off.

    Args:
        section: name of an entry -> its settings.
        group: of the configuration, for messages.
        tracked: returns what the tracker of an entry is told of the run.
    """
    made = []
    for name, settings in section.items():
        if settings is None:
            continue
        if not isinstance(settings, Mapping) or "_target_" not in settings:
            raise ConfigurationError(f"{group}.{name} needs a _target_, the class to make")
        # Hydra has resolved what was typed; what is left now would be resolved by the making.
        if any("${" in text for text in texts(settings)):
            raise ConfigurationError(f"{group}.{name} holds an interpolation that was not resolved")
        try:
            made.append(_instance(dict(settings), f"{group}.{name}", tracked and tracked(name)))
        except QMixLightningError:
            raise
        except Exception as error:
            cause = error.__cause__ or error
            hint = _closest_name(str(settings["_target_"]))
            raise ConfigurationError(f"{group}.{name}: {hint or on_one_line(cause)}") from error
    return made


def _instance(settings: dict[str, Any], entry: str, run: TrackedRun | None) -> Any:
    """Make a logger or a callback; trackers, and what comes with this package, are checked as components are."""
    made_of = get_object(str(settings["_target_"]))
    is_tracker = isinstance(made_of, type) and issubclass(made_of, Tracker)
    if not is_tracker and not made_of.__module__.startswith("qmix_lightning."):
        return instantiate(settings)
    provided = {"run": run} if is_tracker else {}
    given = {key: value for key, value in settings.items() if key != "_target_"}
    return made_of(**provided, **check_settings(entry, given, made_of, provided))


def _closest_name(target: str) -> str:
    """Return what is wrong with an address whose module is there and has no such name; empty otherwise."""
    module, _, name = target.rpartition(".")
    found = sys.modules.get(module)
    if found is None or hasattr(found, name):
        return ""
    public = [n for n in vars(found) if not n.startswith("_")]
    return f"'{module}' has no '{name}'{did_you_mean(name, public).split(';')[0]}"


def in_folder(section: Mapping[str, Any], config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """Return a section of loggers or callbacks whose ``${run_dir}`` is ``run_dir``, absolute.

    An environment in this process may change the working folder before they write.
    """

    def at(value: Any) -> Any:
        return str(run_dir.absolute()) if value == config.run_dir else value

    return {
        name: {key: at(value) for key, value in settings.items()} if isinstance(settings, Mapping) else settings
        for name, settings in section.items()
    }


def make_loggers(config: RunConfig, run_dir: Path, resumed: Resumed | None) -> list[Any]:
    """Make the run's loggers; those of TensorBoard drop what a resumed run is going to write again."""
    made = in_folder(config.logger, config, run_dir)
    for name, settings in made.items():
        is_board = isinstance(settings, Mapping) and str(settings.get("_target_")).endswith("BoardLogger")
        if is_board and resumed is not None:
            made[name] = {**settings, "purge_step": resumed.manifest.env_steps + 1}
    ids: dict[str, str] = {}
    if resumed is not None and resumed.source.parent.resolve() == run_dir.resolve():  # elsewhere it is another run
        ids = tracker_ids(resumed.manifest.payload)

    def tracked(entry: str) -> TrackedRun:
        return TrackedRun(run_dir, entry, config.env["name"], config.algorithm["name"], ids.get(entry))

    return make_instances(made, "logger", tracked)


def quieten_lightning() -> None:
    """Silence advice of Lightning that does not apply: the loaders are this package's own; srun may be there unused."""
    for noisy in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # what trainer.profiler was asked for
    warnings.filterwarnings("ignore", "The `srun` command is available.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
    warnings.filterwarnings("ignore", ".*`IterableDataset` has `__len__` defined.*")
