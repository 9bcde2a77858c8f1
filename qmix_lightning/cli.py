"""What the commands share: Hydra around a task, one line for each error, and the exit status.

Nothing here imports torch, so ``--help`` and a typing mistake answer at once.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from qmix_lightning.errors import ConfigurationError, QMixLightningError
from qmix_lightning.registry import did_you_mean

__all__ = ["RANK_CONFIG", "explicit_overrides", "import_from_here", "run_command"]

RANK_CONFIG = "QMIX_LIGHTNING_RANK_CONFIG"
"""Names the resolved configuration for ranks above 0: reading the command line again would start another sweep."""

_FREE_FORM = {
    "train": re.compile(
        r"(env\.kwargs|trainer|logger|callbacks)\.[^=]*=|"
        r"env\.(id|module|reward_aggregation|timeout_is_terminal|episode_limit)="
    ),
    "evaluate": re.compile(r"env\.[^=]*="),
}


def _register_plugin_names() -> None:
    """Make plugins' configuration and ``env=<name>`` of every entry point known to Hydra, importing none of them."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    from qmix_lightning import environment
    from qmix_lightning.conf_folders import PluginFolders

    Plugins.instance().register(PluginFolders)
    folder = resources.files("qmix_lightning.conf").joinpath("env")
    shipped = {path.name.removesuffix(".yaml") for path in folder.iterdir()}
    for name in environment.names():
        if name not in shipped:
            ConfigStore.instance().store(group="env", name=name, node={"name": name, "kwargs": {}})


def _prepare(arguments: list[str], config_name: str) -> list[str]:
    """What the user typed, as Hydra takes it.

    Flags may stand anywhere; keys of open-ended sections may be set without ``+`` (they are checked after composing);
    a sweep's jobs are named by what is swept.
    """
    flags, typed = _split(arguments)
    sweep = any(flag in ("-m", "--multirun") for flag in flags)
    rest = [f"++{a}" if _FREE_FORM[config_name].match(a) else a for a in typed]
    if config_name == "train" and not any(a.startswith("run_dir=") for a in rest):
        job = [os.environ[n] for n in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if n in os.environ]
        job = job or [os.environ[n] for n in ("SLURM_JOB_ID",) if n in os.environ]
        if sweep:
            rest.append(f"run_dir=outputs/sweep_{time.strftime('%Y-%m-%d_%H-%M-%S')}")
        elif job:  # the time would send a requeued job to a new folder, away from its checkpoints
            rest.append(f"run_dir='outputs/slurm{'_'.join(job)}_${{env.name}}_${{algorithm.name}}_seed${{seed}}'")
    rest = [_quoted(a) for a in rest]
    rest = [a for a in rest if a != "experiment=null"]  # the default, which Hydra refuses to be told
    for group in _groups():
        if f"{group}=null" in rest:
            raise ConfigurationError(f"{group} must be one of its choices, not null")
    if any(a in ("run_dir=", "run_dir=null", "run_dir=''", 'run_dir=""') for a in rest):
        raise ConfigurationError("run_dir must name a folder")
    if sweep and (name := _job_name(rest)) and not any(a.startswith("hydra.sweep.subdir=") for a in rest):
        rest.append(f"hydra.sweep.subdir='{name}'")
    return [*flags, *rest]


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and the overrides; Hydra itself wants the flags first."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        flag = re.match(r"unrecognized arguments: (\S+)", message)
        hint = did_you_mean(flag[1], parser._option_string_actions).split(";")[0] if flag else ""
        raise ConfigurationError(f"{message}{hint or '; --help shows what can be set'}")

    parser.error = refuse
    flags, overrides = list(arguments), parser.parse_intermixed_args(arguments).overrides
    for override in reversed(overrides):
        del flags[len(flags) - 1 - flags[::-1].index(override)]
    return flags, overrides


def _quoted(argument: str) -> str:
    """A path with "=" in it, as Lightning's own checkpoints have, in the quotes that Hydra's grammar wants."""
    key, _, value = argument.partition("=")
    if key in ("ckpt_path", "run_dir", "output") and "=" in value and value[:1] not in "'\"":
        return f"{key}='" + value.replace("'", "\\'") + "'"
    return argument


def _job_name(arguments: list[str]) -> str:
    """What tells the jobs of a sweep apart, as interpolations: ``algorithm=...,seed=...``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups = _groups()
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


def _with_typed_algorithms_mixer(tree: dict[str, Any], typed: list[str]) -> dict[str, Any]:
    """``experiment=... algorithm=vdn`` trains VDN: a recipe's mixer belongs to the recipe's own algorithm.

    Hydra lets the recipe's choice of mixer win over the one that another algorithm, typed beside it, brings. A typed
    mixer stays, and so does the recipe's if its own algorithm is typed.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    names = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in typed}
    if "algorithm" not in names or "mixer" in names:
        return tree
    choices = HydraConfig.get().runtime.choices
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None

    def alone(group: str) -> Any:
        return hydra.config_loader.load_configuration("train", [f"{group}={choices[group]}"], RunMode.RUN)

    if choices.get("experiment") is None:
        return tree
    if alone("experiment").hydra.runtime.choices["algorithm"] == choices["algorithm"]:
        return tree
    own = alone("algorithm")
    if own.hydra.runtime.choices["mixer"] == choices["mixer"]:
        return tree
    return {**tree, "mixer": OmegaConf.to_container(own.mixer)}


def _explain_hydra(error: BaseException, config_name: str) -> str:
    """Hydra's message in one line, with the closest valid name."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    text = str(error)
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, name = match.groups()
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"unknown {group} '{name}'{did_you_mean(name, options, f'{group}=')}"
    if match := re.search(r"Could not override '([^']+)'.*No match in the defaults list", text, re.DOTALL):
        if config_name == "evaluate":
            return f"'{match[1]}' comes from the checkpoint; settings of its environment can be given, env.key=value"
        return f"unknown group '{match[1]}'{did_you_mean(match[1], _groups())}"
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        return _unknown_key(match[1] or match[2], config_name)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} needs a value: {error.full_key}=..."
    if match := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        return f"{match[1]} has several values: add -m to sweep over them, or write {match[1]}=[{match[2]}] for a list"
    if match := re.match(r"Multiple values for (\S+)\. To override a value use 'override \S+ (\S+)'", text):
        return f"{match[1]} has a choice already: write {match[1]}={match[2]} without +"
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read '{error.override}', which should be key=value (in quotes if the value has special characters)"
        )
    if re.search(r"Could not load '([^']+)'|In '([^']+)': .*", text):
        return " ".join(text.split())
    return text.splitlines()[0]


def _groups() -> list[str]:
    return [entry.name for entry in resources.files("qmix_lightning.conf").iterdir() if entry.is_dir()]


def _unknown_key(key: str, config_name: str) -> str:
    """The message for a key that the composed configuration does not have."""
    known = _known_keys(config_name)
    section, _, name = key.rpartition(".")
    siblings = [k.removeprefix(f"{section}.") for k in known if not section or k.startswith(f"{section}.")]
    siblings = sorted({k.partition(".")[0] for k in siblings})
    elsewhere = [k for k in known if k.rpartition(".")[2] == name]
    close = did_you_mean(name, siblings, f"{section}." if section else "")
    if close.endswith("?"):
        return f"unknown key '{key}'{close}"
    if elsewhere:
        return f"unknown key '{key}'. Did you mean '{elsewhere[0]}'?"
    if siblings and section:
        return f"unknown key '{key}'; known in {section}: {', '.join(siblings)}"
    return f"unknown key '{key}'" + did_you_mean(key, known).split(";")[0] + "; --cfg job lists all keys"


def _known_keys(config_name: str) -> list[str]:
    """Every key and section of the configuration, with the choices that were typed as far as they exist."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from qmix_lightning.config import flatten

    choice = re.compile(rf"({'|'.join(_groups())})=[\w.-]+")
    choices = [a for a in sys.argv[1:] if choice.fullmatch(a)]
    GlobalHydra.instance().clear()
    with initialize_config_module("qmix_lightning.conf", version_base="1.3"):
        try:
            composed = compose(config_name, choices)
        except HydraException:
            composed = compose(config_name)
    tree = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(tree, dict)
    flat = flatten({str(k): v for k, v in tree.items()})
    return [*flat, *(str(k) for k in tree if k not in flat), *(["experiment"] if config_name == "train" else [])]


def import_from_here() -> None:
    """Let ``env.id=my_module:make`` and ``_target_`` name files of the working folder, as ``python -m`` does.

    The folder is put last, so that nothing installed is shadowed; worker processes inherit the path.
    """
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


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
    import_from_here()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # torchmetrics imports it, and it tells of its font cache
    sys.exit(_status_of(lambda: _run(config_name, task), config_name))


def _run(config_name: str, task: Task) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0" and (rank_config := os.environ.get(RANK_CONFIG)):
        from omegaconf import OmegaConf

        tree = OmegaConf.to_container(OmegaConf.load(rank_config))
        assert isinstance(tree, dict)
        task({str(k): v for k, v in tree.items()}, Path(rank_config).parent, None)
        return

    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _register_plugin_names()
    sys.argv[1:] = _prepare(sys.argv[1:], config_name)

    new_folders = _missing_folders(sys.argv[1:])
    started: list[Path] = []
    failures: list[Exception] = []
    skipped: list[Path] = []

    def job(config: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        folder = Path(HydraConfig.get().runtime.output_dir)
        started.append(folder)
        if failures:
            skipped.append(folder)
            return  # a sweep ends at its first failure, as Hydra's own do
        try:
            if "run_dir" in config:
                config.run_dir = _shown(folder)
            tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            assert isinstance(tree, dict)
            if config_name == "train":
                tree = _with_typed_algorithms_mixer({str(k): v for k, v in tree.items()}, explicit_overrides())
            task({str(k): v for k, v in tree.items()}, folder, explicit_overrides())
        except Exception as error:
            if not str(HydraConfig.get().launcher._target_).endswith("BasicLauncher"):
                raise  # the job runs in another process
            failures.append(error)  # Hydra would add lines of its own to the message

    try:
        hydra.main(config_path="pkg://qmix_lightning.conf", config_name=config_name, version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException):
        raise
    except (ValueError, OSError, YAMLError) as error:
        if started:
            raise
        # Hydra refuses some choices, reads files and makes the run folder without exceptions of its own.
        what = "run_dir cannot be made: " if isinstance(error, OSError) else ""
        raise ConfigurationError(what + " ".join(str(error).split())) from error
    finally:
        _remove_empty(started, new_folders)
    if failures:
        if skipped:
            which = f"job #{len(started) - len(skipped) - 1} of the sweep; the {len(skipped)} after it were not run"
            failures[0].args = (f"{failures[0]} ({which})",)
        raise failures[0]


def _missing_folders(arguments: list[str]) -> list[Path]:
    """What does not exist yet of the run folder and those above it, innermost first."""
    typed = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("run_dir=")]
    known = Path((typed or ["outputs/"])[-1].split("${")[0])
    return [path for path in (known, *known.parents) if not path.exists()]


def _remove_empty(jobs: list[Path], above: list[Path]) -> None:
    """Remove what Hydra made before anything was checked, where nothing else was written."""
    for folder in [*jobs, *above]:
        if not folder.is_dir() or folder.samefile(Path.cwd()):
            continue
        content = [path.name for path in folder.iterdir()]
        if folder in above and content == ["multirun.yaml"]:
            (folder / "multirun.yaml").unlink()
            content = []
        if not content:
            folder.rmdir()


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
            traceback.print_exc()
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
            traceback.print_exc()
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            _fail(_explain_hydra(error, config_name))
            return ConfigurationError.exit_status
        _fail(f"{type(error).__name__}: {' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)")
        return 1
    return 0
