"""What the commands share: Hydra around a task, one line for each error, and the exit status.

Nothing here imports torch, so ``--help`` and a typing mistake answer at once.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

from qmix_lightning.errors import ConfigurationError, QMixLightningError

__all__ = ["RANK_CONFIG", "explicit_overrides", "run_command"]

RANK_CONFIG = "QMIX_LIGHTNING_RANK_CONFIG"
"""Names the resolved configuration for ranks above 0: reading the command line again would start another sweep."""

_FREE_FORM = {
    "train": re.compile(r"(env\.kwargs|trainer|logger|callbacks)\.[^=]*="),
    "evaluate": re.compile(r"env\.[^=]*="),
}


def _register_plugin_names() -> None:
    """Make ``env=<name>`` of every entry point known to Hydra, without importing any of them."""
    from hydra.core.config_store import ConfigStore

    from qmix_lightning import environment

    folder = resources.files("qmix_lightning.conf").joinpath("env")
    shipped = {path.name.removesuffix(".yaml") for path in folder.iterdir()}
    for name in environment.names():
        if name not in shipped:
            ConfigStore.instance().store(group="env", name=name, node={"name": name, "kwargs": {}})


def _prepare(arguments: list[str], config_name: str) -> list[str]:
    """What the user typed, as Hydra takes it.

    Keys of open-ended sections may be set without ``+`` (they are checked after composing); the flag of a sweep may
    stand anywhere; a sweep's jobs are named by what is swept.
    """
    sweep = [a for a in arguments if a in ("-m", "--multirun")]
    rest = [f"++{a}" if _FREE_FORM[config_name].match(a) else a for a in arguments if a not in sweep]
    if config_name == "train" and not any(a.startswith("run_dir=") for a in rest):
        job = [os.environ[n] for n in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if n in os.environ]
        job = job or [os.environ[n] for n in ("SLURM_JOB_ID",) if n in os.environ]
        if sweep:
            rest.append(f"run_dir=outputs/sweep_{time.strftime('%Y-%m-%d_%H-%M-%S')}")
        elif job:  # the time would send a requeued job to a new folder, away from its checkpoints
            rest.append(f"run_dir='outputs/slurm{'_'.join(job)}_${{env.name}}_${{algorithm.name}}_seed${{seed}}'")
    if sweep and (name := _job_name(rest)) and not any(a.startswith("hydra.sweep.subdir=") for a in rest):
        rest.append(f"hydra.sweep.subdir='{name}'")
    return [*sweep, *rest]


def _job_name(arguments: list[str]) -> str:
    """What tells the jobs of a sweep apart, as interpolations: ``algorithm=...,seed=...``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups = {entry.name for entry in resources.files("qmix_lightning.conf").iterdir() if entry.is_dir()}
    parts = []
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument or argument.startswith("hydra."):
            continue
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException:
            return ""  # Hydra will say what is wrong with it
        if override.is_sweep_override():
            key = override.key_or_group
            value = f"hydra.runtime.choices.{key}" if key in groups else key
            parts.append(f"{key}=${{{value}}}")
    return ",".join(parts)


def explicit_overrides() -> list[str]:
    """The overrides that the user typed for this job, without Hydra's own."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def _explain_hydra(error: BaseException, config_name: str) -> str:
    """Hydra's message in one line, with the closest valid name."""
    from omegaconf.errors import MissingMandatoryValue

    text = str(error.__cause__ or error) if "Could not override" in str(error) else str(error)
    first = str(error).splitlines()[0]
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", str(error)):
        group, name = match.groups()
        options = re.findall(r"^\t(\S+)$", str(error), re.MULTILINE)
        close = difflib.get_close_matches(name, options, n=1)
        hint = f"Did you mean '{group}={close[0]}'?" if close else f"known: {', '.join(options)}"
        return f"unknown {group} '{name}'. {hint}"
    if match := re.search(r"Could not override '([^']+)'", str(error)):
        key = match.group(1)
        if key in _known_keys(config_name):
            return f"'{key}' does not exist with the groups chosen; --cfg job lists the keys that do"
        close = difflib.get_close_matches(key, _known_keys(config_name), n=1)
        return f"unknown key '{key}'" + (f". Did you mean '{close[0]}'?" if close else "; --cfg job lists all keys")
    if match := re.search(r"Key '([^']+)' is not in struct", text):
        close = difflib.get_close_matches(match.group(1), _known_keys(config_name), n=1)
        return f"unknown key '{match.group(1)}'" + (f". Did you mean '{close[0]}'?" if close else "")
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} needs a value: {error.full_key}=..."
    if match := re.search(r"Could not load '([^']+)'|In '([^']+)': .*", str(error)):
        return " ".join(str(error).split())
    return first


def _known_keys(config_name: str) -> list[str]:
    """Every key and group of the default configuration."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from qmix_lightning.config import flatten

    GlobalHydra.instance().clear()
    with initialize_config_module("qmix_lightning.conf", version_base="1.3"):
        tree = OmegaConf.to_container(compose(config_name), resolve=False)
    assert isinstance(tree, dict)
    flat = flatten({str(k): v for k, v in tree.items()})
    return [*flat, *map(str, tree), "experiment"]


Task = Callable[[dict[str, Any], Path, "list[str] | None"], None]
"""``task(configuration, output folder, what was typed)``; ``None`` for a rank that is told its configuration."""


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


def _on_early_sigterm(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run_command(config_name: str, task: Task) -> None:
    """Run ``task(config, output folder, overrides)`` under Hydra and exit with its status.

    Status 0: done; 1: failed while running; 2: something asked for does not exist or fit; 130 and 143: ended by
    Ctrl-C or SIGTERM. A traceback is printed only if the user set ``HYDRA_FULL_ERROR=1``.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    sys.exit(_status_of(lambda: _run(config_name, task), config_name))


def _run(config_name: str, task: Task) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0" and (rank_config := os.environ.get(RANK_CONFIG)):
        from omegaconf import OmegaConf

        tree = OmegaConf.to_container(OmegaConf.load(rank_config))
        assert isinstance(tree, dict)
        task({str(k): v for k, v in tree.items()}, Path(rank_config).parent, None)
        return

    import hydra
    from omegaconf import DictConfig, OmegaConf

    _register_plugin_names()
    sys.argv[1:] = _prepare(sys.argv[1:], config_name)

    failures: list[Exception] = []

    def job(config: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        if failures:
            return  # a sweep ends at its first failure, as Hydra's own do
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            if "run_dir" in config:
                config.run_dir = _shown(folder)
            tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            assert isinstance(tree, dict)
            task({str(k): v for k, v in tree.items()}, folder, explicit_overrides())
        except Exception as error:
            if not str(HydraConfig.get().launcher._target_).endswith("BasicLauncher"):
                raise  # the job runs in another process
            failures.append(error)  # Hydra would add lines of its own to the message
        finally:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # Hydra made it before anything was checked

    hydra.main(config_path="pkg://qmix_lightning.conf", config_name=config_name, version_base="1.3")(job)()
    if failures:
        raise failures[0]


def _shown(folder: Path) -> str:
    """A folder as people write it: relative when it is below the working folder."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


def _status_of(command: Callable[[], None], config_name: str) -> int:
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach this function instead of ending in Hydra
    signal.signal(signal.SIGTERM, _on_early_sigterm)
    try:
        command()
    except QMixLightningError as error:
        if full_error and not error.exit_status > 128:
            raise
        _fail(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if full_error:
            raise
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            _fail(_explain_hydra(error, config_name))
            return ConfigurationError.exit_status
        _fail(f"{type(error).__name__}: {' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)")
        return 1
    return 0
