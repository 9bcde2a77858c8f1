"""Convert what the user typed to the overrides that Hydra accepts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qmix_lightning.config.aliases import rename_override
from qmix_lightning.config.env_address import env_label, is_address
from qmix_lightning.config.shipped import shipped_files
from qmix_lightning.config.synonyms import meant_by
from qmix_lightning.config.tree import key_of
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.launch import launched_by
from qmix_lightning.runtime.text import did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

__all__ = [
    "COMMANDS_ON_A_POLICY",
    "config_groups",
    "explicit_overrides",
    "is_sweep",
    "parse_swept",
    "path_override",
    "prepare_overrides",
    "register_plugin_names",
    "shipped_configuration",
    "sweep_parts",
    "with_typed_algorithms_mixer",
]


COMMANDS_ON_A_POLICY = ("evaluate", "export", "watch")
"""Commands about a trained policy, which may be named without ``policy=``."""

_ENV_SETTING = re.compile(r"env\.[^=]*=")

_FREE_FORM = {
    "train": re.compile(
        r"(env\.kwargs|trainer|logger|callbacks)\.[^=]*=|"
        r"env\.(id|module|reward_aggregation|timeout_is_terminal|episode_limit|team|opponents(\.[^=]*)?)="
    ),
    **dict.fromkeys(COMMANDS_ON_A_POLICY, _ENV_SETTING),
}


def register_plugin_names() -> None:
    """Make plugins' configuration and ``env=<name>`` of every entry point known to Hydra, importing none of them."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    from qmix_lightning import environment
    from qmix_lightning.config.search_path import PluginFolders

    Plugins.instance().register(PluginFolders)
    for name in set(environment.names()) - shipped_files("env").keys():
        ConfigStore.instance().store(group="env", name=name, node={"name": name, "kwargs": {}})


@contextlib.contextmanager
def shipped_configuration() -> Generator[None]:
    """Let ``hydra.compose`` read this package's configuration, also while Hydra runs a job of its own."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # there is one at a time
    try:
        with initialize_config_module("qmix_lightning.conf", version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def prepare_overrides(arguments: list[str], config_name: str) -> list[str]:
    """Convert what the user typed to the arguments that Hydra accepts.

    Flags may stand anywhere; keys of open-ended sections may be set without ``+`` (they are checked after composing);
    a sweep's jobs are named by what is swept.
    """
    _refuse_other_forms(arguments)
    flags, typed = _split(arguments)
    if config_name in COMMANDS_ON_A_POLICY:
        typed = [a if "=" in a else f"policy={a}" for a in typed]
        _refuse_two_policies(typed, config_name)
    typed = [part for a in typed for part in _env_by_address(rename_override(a), config_name)]
    # Keys that are always there, by which folders are chosen below: one form is enough to look for.
    typed = [a.removeprefix("++") if key_of(a) in ("run_dir", "ckpt_path") else a for a in typed]
    label = next(
        (env_label({"name": "pettingzoo", "id": a.partition("=")[2]}) for a in typed if a[:7] == "env.id="), ""
    )
    sweep = is_sweep(flags)
    rest = [f"++{a}" if _FREE_FORM[config_name].match(a) else a for a in typed]
    if config_name == "train" and not any(a.startswith("run_dir=") for a in rest):
        if launched_by() == "torchrun" and not any(a.startswith("ckpt_path=") and a != "ckpt_path=last" for a in rest):
            raise ConfigurationError("torchrun starts several processes, which need one folder: add run_dir=...")
        by_label = label if "env=pettingzoo" in rest and "ckpt_path=last" not in rest else ""
        rest += _chosen_run_dir(sweep, by_label)
    rest = [_quoted(a) for a in rest]
    rest = [a for a in rest if a != "experiment=null"]  # the default, which Hydra refuses as a value
    _refuse_no_choice(rest)
    if any(a in ("run_dir=", "run_dir=null", "run_dir=''", 'run_dir=""') for a in rest):
        raise ConfigurationError("run_dir must name a folder")
    if sweep and config_name == "train":
        _check_study_folder(rest)
    return [*flags, *rest]


def _refuse_no_choice(arguments: list[str]) -> None:
    """Refuse a group without a choice, which Hydra leaves out or answers with its search path.

    Raises:
        ConfigurationError: says what to type for none, where there is such a choice.
    """
    for group in config_groups():
        for nothing in ("null", "[]", ""):
            if f"{group}={nothing}" in arguments:
                cure = f": type {group}=none" if "none" in shipped_files(group) else ""
                raise ConfigurationError(f"{group} must be one of its choices, not {nothing or 'empty'}{cure}")


def _refuse_two_policies(typed: list[str], config_name: str) -> None:
    """Refuse two policies, of which Hydra would take the last.

    Raises:
        ConfigurationError: says what to type instead.
    """
    first, *others = dict.fromkeys(a.partition("=")[2] for a in typed if a.startswith("policy=")) or [""]
    if others:
        each = "" if config_name == "export" else f", or one after the other: -m policy={first},{others[0]}"
        raise ConfigurationError(f"{first} and {others[0]} are two policies: name one{each}")


def is_sweep(arguments: list[str]) -> bool:
    """Return whether Hydra is asked for a sweep."""
    return any(argument in ("-m", "--multirun") for argument in arguments)


def _check_study_folder(arguments: list[str]) -> None:
    """Refuse what would take the runs of a sweep out of their study.

    Raises:
        ConfigurationError: says what to type instead.
    """
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "run_dir" and "${" in value:
            raise ConfigurationError("run_dir of a sweep is one folder for all of its runs, without ${...}")
        if key.startswith("hydra.sweep."):
            raise ConfigurationError(f"{key} is set for a sweep: run_dir names its folder, and each run gets one in it")
        if key == "ckpt_path":
            raise ConfigurationError("a sweep goes on by itself where it stopped: repeat its command without ckpt_path")


def sweep_parts(arguments: list[str]) -> tuple[Path, list[str], list[str]]:
    """Return the folder of a sweep, Hydra's flags for one job of it, and the overrides that all of its jobs share.

    Args:
        arguments: as :func:`prepare_overrides` returns them.
    """
    flags, overrides = _split(arguments)
    folder = [o.partition("=")[2] for o in overrides if o.startswith("run_dir=")][-1]
    if folder[:1] in ("'", '"'):
        folder = folder[1:-1].replace(f"\\{folder[0]}", folder[0])
    last = {key_of(o): o for o in overrides if not o.startswith(("hydra.", "hydra/"))}  # what Hydra obeys
    fixed = [o for o in last.values() if parse_swept(o) is None]
    return Path(folder), [flag for flag in flags if flag not in ("-m", "--multirun")], fixed


def parse_swept(argument: str) -> Override | None:
    """Return what Hydra reads of an override with several values; ``None`` for any other."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(argument)
    except HydraException:
        return None  # composing says what is wrong with it
    return parsed if parsed.is_sweep_override() else None


def _chosen_run_dir(sweep: bool, label: str) -> list[str]:
    """Return a run folder as an override; none where the configured one does.

    Args:
        sweep: many runs, whose folder is a study.
        label: what an environment given by its address is called; empty for one with a name.
    """
    job = [os.environ[n] for n in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if n in os.environ]
    job = job or [os.environ[n] for n in ("SLURM_JOB_ID",) if n in os.environ]
    if sweep:
        return ["run_dir=outputs/study"]
    # The time would send a requeued job to a new folder, away from its checkpoints.
    if job:
        return [f"run_dir='outputs/slurm{'_'.join(job)}_${{env.name}}_${{algorithm.name}}_seed${{seed}}'"]
    if label:
        return [f"run_dir='outputs/${{now:%Y-%m-%d_%H-%M-%S-%f}}_{label}_${{algorithm.name}}_seed${{seed}}'"]
    return []


def _env_by_address(override: str, config_name: str) -> list[str]:
    """Return ``env=package.module:factory`` as Hydra can read it; other overrides as they are."""
    key, _, value = override.partition("=")
    address = value.strip("'\"")
    if key != "env" or not is_address(address):
        return [override]
    return [f"env.id={address}"] if config_name in COMMANDS_ON_A_POLICY else ["env=pettingzoo", f"env.id={address}"]


_KEY = re.compile(r"[A-Za-z]\w*(\.\w+)*")


def _refuse_other_forms(arguments: list[str]) -> None:
    """Refuse settings that are typed as other programs want them: ``--seed 3``, ``seed = 3``, ``seed 3``.

    Raises:
        ConfigurationError: says how it is typed here.
    """
    for i, argument in enumerate(arguments):
        key, equals, value = argument.lstrip("-").partition("=")
        after = next((a for a in arguments[i + 1 : i + 3] if a != "="), "...").lstrip("=")
        is_value = "=" not in after and not after.startswith("-")
        if argument.startswith("-"):
            _refuse_dashes(key.replace("-", "_"), value if equals else after if is_value else "...")
        elif not _KEY.fullmatch(key) or i + 1 == len(arguments) or not is_value:
            continue
        elif (not equals and arguments[i + 1].startswith("=")) or (equals and not value and _is_setting(key)):
            raise ConfigurationError(f"there must be no blanks around '=': {key}={after}")
        elif not equals and _is_setting(key) and not (i and arguments[i - 1].startswith("-")):
            raise ConfigurationError(f"there must be a '=' between a setting and its value: {key}={after}")


_OPTIONS_OF_PYMARL = {"config": "algorithm", "env_config": "env"}


def _refuse_dashes(key: str, value: str) -> None:
    meant = key if _is_setting(key) else next(iter(meant_by(key)), _OPTIONS_OF_PYMARL.get(key))
    if meant is not None and not key.startswith("hydra"):
        raise ConfigurationError(f"settings are typed without dashes: {meant}={value}")


def _is_setting(key: str) -> bool:
    """Return whether a key begins with one of the settings or groups at the top."""
    files = resources.files("qmix_lightning.conf")
    top = [*config_groups(), *re.findall(r"^(\w+):", files.joinpath("train.yaml").read_text(), re.MULTILINE)]
    top += re.findall(r"^(\w+):", files.joinpath("evaluate.yaml").read_text(), re.MULTILINE)
    return key.partition(".")[0] in {*top} - {"hydra", "defaults"}


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into Hydra's flags with their values and the overrides; Hydra itself wants the flags first."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        flag = re.match(r"unrecognized arguments: (\S+)", message)
        hint = did_you_mean(flag[1], parser._option_string_actions).split(";")[0] if flag else ""
        raise ConfigurationError(f"{message}{hint or '; --help shows what can be set'}")

    parser.error = refuse
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.experimental_rerun is not None:
        raise ConfigurationError(
            "--experimental-rerun unpickles the file it names, which may run anything: type the settings, or resume "
            "with ckpt_path="
        )
    flags, overrides = list(arguments), parsed.overrides
    for override in reversed(overrides):
        del flags[len(flags) - 1 - flags[::-1].index(override)]
    return flags, overrides


_PATHS = ("ckpt_path", "run_dir", "output", "policy", "init_from")
_NOT_OF_THE_GRAMMAR = re.compile(r"[^\x00-\x7f]|[]=@[&#;!']")
_TEXTS = ("task", "command", "commit")
"""Settings that are read by people: what is in them is nobody's grammar."""


def _quoted(argument: str) -> str:
    """Quote texts, and paths that are not of Hydra's grammar: accents, or "=" as Lightning's checkpoints have."""
    key, _, value = argument.partition("=")
    special = key in _PATHS and _NOT_OF_THE_GRAMMAR.search(value)
    if (special or (key in _TEXTS and value)) and value[:1] not in "'\"":
        return _of_text(key, value)
    return argument


def _of_text(key: str, text: str) -> str:
    return f"{key}='" + text.replace("'", "\\'") + "'"


def path_override(key: str, path: Path | str) -> str:
    """Return the override that gives a key a path, in quotes where Hydra's grammar wants them."""
    return f"{key}={path}" if re.fullmatch(r"[\w./+-]+", str(path), re.ASCII) else _of_text(key, str(path))


def explicit_overrides() -> list[str]:
    """Return the overrides that the user typed for this job, without Hydra's own."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def with_typed_algorithms_mixer(tree: dict[str, Any], typed: list[str]) -> dict[str, Any]:
    """Return ``tree`` with the mixer of the algorithm that was typed, instead of a recipe's.

    ``experiment=... algorithm=vdn`` trains VDN: a recipe's mixer belongs to the recipe's own algorithm. Hydra
    lets the recipe's choice of mixer win over the one that another algorithm, typed beside it, brings. A typed mixer
    stays, and so does the recipe's if its own algorithm is typed.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    names = {key_of(override).partition(".")[0] for override in typed}
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


def config_groups() -> list[str]:
    """Return the names of the configuration groups, the folders of ``conf/`` but for the suites of ``qmix-bench``."""
    folders = [entry.name for entry in resources.files("qmix_lightning.conf").iterdir() if entry.is_dir()]
    return [name for name in folders if name != "suite"]
