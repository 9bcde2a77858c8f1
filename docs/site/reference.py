"""Generate the reference from the code: commands, settings, environments, Python.

Imports no torch. What is written about a setting is what its YAML file says and what the schema takes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, get_args, get_origin

from qmix_lightning.cli.env_catalogue import SIZES, catalogue
from qmix_lightning.commands import COMMANDS
from qmix_lightning.config.expected import describe, parts_of
from qmix_lightning.config.run_config import RunConfig

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SETTING = re.compile(r"^( *)([\w.-]+): *(.*?)(?: +# (.*))?$")
CONTINUED = re.compile(r"^ {12,}# (.*)$")
MODULES = (
    *("environment", "types", "registry", "errors", "env_checker", "mixers.base", "agents.base", "algorithms.base"),
    *("algorithms.returns", "action_selection"),
)
"""What a plugin imports, and the mathematics."""


def pages() -> dict[str, str]:
    """Return every page of the reference by file name."""
    return {
        "commands.md": commands(),
        "settings.md": settings(),
        "environments.md": environments(),
        "python_api.md": python(),
    }


def commands() -> str:
    """Return what each command says of itself."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    names = {target.split(":")[0].rsplit(".", 1)[1]: script for script, target in scripts.items()}
    text = "# Commands\n\nWhat each says with `--help`. All are also `python -m qmix_lightning COMMAND`.\n"
    for module, summary in COMMANDS.items():
        command = [sys.executable, "-m", "qmix_lightning", module, "--help"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()
        text += f"\n## {names.get(module, module)}\n\n{summary.capitalize()}.\n\n```text\n{said}\n```\n"
    return text


def settings() -> str:
    """Return every setting of ``qmix-train``: the sections that are fixed, then each choice of each group."""
    text = (
        "# Settings\n\nEvery key can be typed: `group=choice`, `group.key=value`. `${preset.x}` means that the "
        "preset decides; `qmix-train --cfg job --resolve ...` shows the values of a command.\n\n"
    )
    text += "## At the top\n\n" + table(CONF / "train.yaml", RunConfig)
    hints = typing.get_type_hints(RunConfig, include_extras=True)
    for group in sorted(path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("_")):
        text += f"\n## {group}\n\n"
        if group == "experiment":
            text += "Recipes: the other groups, set for one task.\n\n"
            text += "".join(f"* `{file.stem}`: {opening(file)}\n" for file in sorted((CONF / group).glob("*.yaml")))
            continue
        section = hints.get(group)
        for file in sorted((CONF / group).glob("*.yaml")):
            text += f"### {group}={file.stem}\n\n{opening(file)}{based_on(file)}\n\n"
            text += table(file, section if is_dataclass(section) else None)
    return text


def based_on(file: Path) -> str:
    """Return which other choice of its group a YAML file begins with."""
    found = re.findall(r"^  - (\w+)$", file.read_text(), re.MULTILINE)
    return "".join(f" What is not below is as in `{file.parent.name}={name}`." for name in found if name != "_self_")


def table(file: Path, schema: type | None) -> str:
    """Return a table of the settings of a YAML file, with what the schema takes where there is one."""
    hints = typing.get_type_hints(schema, include_extras=True) if schema else {}
    names = {field.name for field in fields(schema)} if schema else None
    group = file.parent.name
    rows = []
    for key, value, comment in entries(file.read_text()):
        key = key.removeprefix(f"{group}.")
        if key == "name" or (names is not None and key not in names):
            continue
        cells = [f"`{key}`", f"`{value}`" if value else "", takes(hints[key]) if key in hints else "", comment]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    if not rows:
        return ""
    return "| key | value here | takes | |\n|---|---|---|---|\n" + "".join(rows) + "\n"


def takes(hint: object) -> str:
    """Return in words what a setting may be, its range too."""
    words = {"ge": "at least", "gt": "more than", "le": "at most"}
    ranges = [
        f"{words[name]} {getattr(rule, name)}"
        for part in parts_of(hint)
        if get_origin(part) is Annotated
        for rule in get_args(part)[1:]
        for name in words
        if hasattr(rule, name)
    ]
    return ", ".join([describe(hint), *ranges])


def entries(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and comment of each line of a YAML file but those under ``defaults`` and ``hydra``."""
    parents: list[tuple[int, str]] = []
    pending: tuple[str, str, str] | None = None
    for line in text.splitlines():
        if pending and (more := CONTINUED.match(line)):
            pending = (*pending[:2], f"{pending[2]} {more[1]}")
            continue
        if not (found := SETTING.match(line)):
            continue
        indent, key, value, comment = len(found[1]), found[2], found[3].strip(), found[4] or ""
        parents = [(depth, name) for depth, name in parents if depth < indent]
        path = ".".join([*(name for _, name in parents), key])
        parents.append((indent, key))
        if pending:
            yield pending
            pending = None
        if value and path.split(".")[0] not in ("defaults", "hydra"):
            pending = (path, value, comment)
    if pending:
        yield pending


def opening(file: Path) -> str:
    """Return the comment with which a YAML file begins, as a sentence or more."""
    lines = []
    for line in file.read_text().splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        if not line.startswith(("# Sizes:", "# Needs:")):
            lines.append(line.lstrip("# "))
    return " ".join(lines).replace("<", "&lt;")


def environments() -> str:
    """Return the table of ``qmix-envs``: every environment of the registry that comes with the package."""
    text = "# Environments by name\n\n`qmix-envs` prints this table with what can run on your machine. Sizes are those "
    text += (
        "of the default settings.\n\n| `env=` | " + " | ".join(SIZES) + " | |\n|---|" + "---|" * (len(SIZES) + 1) + "\n"
    )
    for entry in catalogue().values():
        if entry.origin == "built-in":
            sizes = ["" if n is None else str(n) for n in entry.sizes or (None,) * len(SIZES)]
            text += f"| `{entry.name}` | {' | '.join(sizes)} | {entry.summary.replace('|', ' ')} |\n"
    return text


def python() -> str:
    """Return the page that mkdocstrings fills from docstrings."""
    text = "# Python\n\n[How they are used](../python.md). `import qmix_lightning as ql` needs no torch.\n\n"
    text += "## qmix_lightning\n\n::: qmix_lightning.api\n\n::: qmix_lightning.policies.team.Team\n\n"
    for module in MODULES:
        text += f"## qmix_lightning.{module}\n\n::: qmix_lightning.{module}\n\n"
    return text
