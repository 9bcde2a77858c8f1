"""Explain Hydra's errors in one line, with the closest valid name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from qmix_lightning.cli.known_tasks import typed_as
from qmix_lightning.cli.overrides import COMMANDS_ON_A_POLICY, config_groups, shipped_configuration
from qmix_lightning.config.aliases import KEYS
from qmix_lightning.config.env_address import own_arguments
from qmix_lightning.config.shipped import shipped_files
from qmix_lightning.config.synonyms import meant_by
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["explain_hydra"]


def explain_hydra(error: BaseException, config_name: str) -> str:
    """Return Hydra's message in one line, with the closest valid name, or with what an old name is called now."""
    for old, new in KEYS.items():  # where it is not renamed: in an interpolation, or in a sweeper's own parameters
        if re.search(rf"(?<![\w.]){re.escape(old)}(?![\w.])", str(error)):
            return f"unknown key '{old}': it is called '{new}' now"
    return _explain(error, config_name)


def _explain(error: BaseException, config_name: str) -> str:
    """Return Hydra's message in one line, with the closest valid name."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import MissingMandatoryValue

    text = str(error)
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, name = match.groups()
        if group == "env" and (known := typed_as(name)):
            return f"unknown env '{name}': it is typed {known}"
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        alike = [option for option in options if option.startswith(f"{name}_")]
        if len(alike) > 1:
            return f"unknown {group} '{name}'; there are {', '.join(alike)}"
        return f"unknown {group} '{name}'{did_you_mean(name, options, f'{group}=')}"
    if match := re.search(r"Could not override '\w+@(\w+)\.", text):  # of a file's own defaults
        return f"the file of this {match[1]} must begin with the line '# @package _global_'"
    if match := re.search(r"Interpolation key 'preset\.([\w.]+)' not found", text):
        return (
            f"the preset has no '{match[1]}', which {getattr(error, 'full_key', None) or 'a setting'} takes from it: "
            "add it, or let the preset's file begin with the defaults of another, '- tuned' and '- _self_'"
        )
    if match := re.search(r"Could not override '([^']+)'.*No match in the defaults list", text, re.DOTALL):
        if config_name in COMMANDS_ON_A_POLICY:
            return f"'{match[1]}' comes from the checkpoint; settings of its environment can be given, env.key=value"
        if match[1] == "suite":
            return "suites are run by qmix-bench suite=..."
        return f"unknown group '{match[1]}'{did_you_mean(match[1], config_groups())}"
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        return _unknown_key(match[1] or match[2], config_name)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} needs a value: {error.full_key}=..."
    if match := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        return f"{match[1]} has several values: add -m to sweep over them, or write {match[1]}=[{match[2]}] for a list"
    if match := re.match(r"Sweep parameters '([^=]+)=.*' requires --multirun", text):
        return f"{match[1]} has several values: add -m to sweep over them"
    if match := re.match(r"Multiple values for (\S+)\. To override a value use 'override \S+ (\S+)'", text):
        return f"{match[1]} has a choice already: write {match[1]}={match[2]} without +"
    if isinstance(error, OverrideParseException):
        if config_name == "train" and (meant := _meant_by_word(error.override)):
            return f"cannot read '{error.override}', which should be key=value. {meant}"
        return (
            f"cannot read '{error.override}', which should be key=value (in quotes if the value has special characters)"
        )
    if match := re.search(r"Could not load '(\w+)/([^'/]+)'", text):  # one of a list: callbacks=[a,b]
        group, name = match.groups()
        return f"unknown {group} '{name}'{did_you_mean(name, shipped_files(group), f'{group}=')}"
    if re.search(r"Could not load '([^']+)'|In '([^']+)': .*", text):
        return " ".join(text.split())
    return text.splitlines()[0]


def _meant_by_word(word: str) -> str:
    """Return what somebody may mean who types a word alone after ``qmix-train``; empty if nothing is known of it."""
    if word == "help":
        return "Did you mean '--help'?"
    if (Path(word) / "config.yaml").is_file():
        return f"Did you mean 'run_dir={word} ckpt_path=last', which goes on with the run there?"
    for group in ("env", "experiment", "algorithm"):
        names = shipped_files(group)
        if alike := [name for name in names if name == word or (group == "experiment" and name.startswith(word))]:
            return f"Did you mean '{group}={alike[0]}'?"
    known = typed_as(word)
    return f"Did you mean '{known}'?" if known else ""


def _unknown_key(key: str, config_name: str) -> str:
    """Return the message for a key that the composed configuration does not have."""
    if key.startswith("env_args."):  # PyMARL's; which of them there are depends on env=, typed or not
        return f"unknown key '{key}'. Did you mean 'env.{key.removeprefix('env_args.')}'?"
    known = _known_keys(config_name)
    for meant in meant_by(key):
        if meant in known:
            return f"unknown key '{key}'. Did you mean '{meant}'?"
    section, _, name = key.rpartition(".")
    siblings = [k.removeprefix(f"{section}.") for k in known if not section or k.startswith(f"{section}.")]
    siblings = sorted({k.partition(".")[0] for k in siblings})
    elsewhere = [k for k in known if k.rpartition(".")[2] == name]
    elsewhere.sort(key=lambda k: k.startswith("preset."))  # these are defaults of the others
    close = did_you_mean(name, siblings, f"{section}." if section else "")
    if close.endswith("?"):
        return f"unknown key '{key}'{close}"
    if elsewhere:
        return f"unknown key '{key}'. Did you mean '{elsewhere[0]}'?"
    if siblings and section:
        own = own_arguments(name) if section == "env" and "kwargs" in siblings else ""
        return f"unknown key '{key}'; known in {section}: {', '.join(siblings)}{own}"
    return f"unknown key '{key}'" + did_you_mean(key, known).split(";")[0] + "; --cfg job lists all keys"


def _known_keys(config_name: str) -> list[str]:
    """Return every key and section of the configuration, with the choices that were typed as far as they exist."""
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from qmix_lightning.config.tree import flatten

    choice = re.compile(rf"({'|'.join(config_groups())})=[\w.-]+")
    choices = [a for a in sys.argv[1:] if choice.fullmatch(a)]
    with shipped_configuration():
        try:
            composed = compose(config_name, choices)
        except HydraException:
            composed = compose(config_name)
    tree = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(tree, dict)
    flat = flatten({str(k): v for k, v in tree.items()})
    return [*flat, *(str(k) for k in tree if k not in flat), *(["experiment"] if config_name == "train" else [])]
