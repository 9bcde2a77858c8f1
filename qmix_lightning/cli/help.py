"""Write what ``--help`` prints: a command's text, and its settings, or the groups with their choices.

Not by Hydra, which composes everything for that and copies all its sources for each group: seconds.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

from qmix_lightning import environment
from qmix_lightning.cli.overrides import config_groups
from qmix_lightning.config.shipped import plugin_folders, shipped_files

__all__ = ["help_of"]

_GROUPS, _SETTINGS = "$APP_CONFIG_GROUPS", "$CONFIG"  # Hydra's names for them


def help_of(config_name: str, arguments: Sequence[str]) -> str:
    """Return the help of a command; on a terminal no line of a group is wider than that.

    Args:
        config_name: of the command, whose file in ``conf/`` has the text.
        arguments: what was typed; ``--config-dir`` adds the choices of a folder.
    """
    text = resources.files("qmix_lightning.conf").joinpath(f"{config_name}.yaml").read_text()
    template: str = yaml.safe_load(text)["hydra"]["help"]["template"]
    if _GROUPS not in template:
        return template.replace(_SETTINGS, _settings(text))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    typed: Path | None = parser.parse_known_args(arguments)[0].config_dir
    lines = _choices([*plugin_folders().values(), *([typed] if typed else [])])
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        lines = [textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return template.replace(_GROUPS, "\n".join(lines) + "\n")


def _settings(text: str) -> str:
    """Return the settings of a command's file as they stand there, with what is said about each."""
    lines = text.partition("\nhydra:")[0].splitlines()
    head = ("#", "defaults:", "  - ")
    return "\n".join(itertools.dropwhile(lambda line: not line or line.startswith(head), lines))


def _choices(folders: Sequence[Path]) -> list[str]:
    """Return a line for each group, ``env: lbf, mpe, ...``, with what the folders add."""
    found = {group: {*shipped_files(group)} for group in config_groups()}
    found["env"].update(environment.names())
    for file in (file for folder in folders for file in folder.glob("*/*.yaml")):
        found.setdefault(file.parent.name, set()).add(file.stem)
    return [f"{group}: {', '.join(sorted(names))}" for group, names in sorted(found.items())]
