"""Print the settings of an environment: what its factory's signature and docstring say, and their values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import aligned

__all__ = ["show_settings"]

_ADAPTER = {
    "reward_aggregation": ("sum", "str", "the team reward: sum or mean of the agents' rewards"),
    "timeout_is_terminal": (False, "bool", "count a time limit as a true end"),
    "episode_limit": (None, "int | None", "truncate episodes after so many joint steps"),
    "team": (None, "list | None", "names or patterns of the agents that learn, where there are sides"),
    "opponents": (None, "str | dict", "how the others act: random, no_op, self, package.module:function, a policy"),
}


def show_settings(section: dict[str, Any]) -> None:
    """Print the factory's docstring, and its settings with their values here."""
    from qmix_lightning import environment
    from qmix_lightning.registry import load_target
    from qmix_lightning.vector.env_section import adapter_settings

    try:
        factory = environment.load(section["name"])
        adapter = adapter_settings(factory)
        if section["name"] == "pettingzoo" and section["id"] != "???":
            address = section["id"] if ":" in section["id"] else f"{section['id']}:parallel_env"
            factory = load_target(address, "env.id")
    except ConfigurationError:
        return
    text = _docstring(factory)
    if summary := text.split("\n\n")[0].split("\nArgs:")[0]:
        print("\n" + "\n".join(f"  {line}" for line in _plain(summary).splitlines()))
    provided = "num_envs" if environment.is_natively_batched(factory) else ""
    rows = _setting_rows(section, factory, adapter, provided, _described_arguments(text))
    if rows:
        print("", *aligned([["  setting", "value", "type", "meaning"], *rows]), sep="\n")


def _docstring(factory: Callable[..., Any]) -> str:
    """Return a factory's docstring; a class without one has its base's, but not PettingZoo's about all of them."""
    text = inspect.getdoc(factory) or ""
    bases = inspect.getmro(factory) if inspect.isclass(factory) else ()
    general = [base.__doc__ for base in bases if base.__module__.startswith("pettingzoo.utils.") and base.__doc__]
    return "" if text in map(inspect.cleandoc, general) else text


def _setting_rows(
    section: dict[str, Any],
    factory: Callable[..., Any],
    adapter: list[str],
    provided: str,
    described: dict[str, str],
) -> list[list[str]]:
    """Return name, value, type and meaning of each setting: the factory's own, then the adapter's."""
    own = {
        name: parameter
        for name, parameter in inspect.signature(factory).parameters.items()
        if name != provided and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    rows = []
    for name, parameter in own.items():
        # Where there is no YAML file that names the settings, they are under env.kwargs.
        inside = name not in section and "kwargs" in section and "kwargs" not in own
        value = (section["kwargs"] if inside else section).get(name, parameter.default)
        shown = "(needed)" if value is parameter.empty or value == "???" else _yaml(value)
        kind = parameter.annotation
        kind = "" if kind is parameter.empty else kind if isinstance(kind, str) else inspect.formatannotation(kind)
        meaning = described.get(name) or _ADAPTER.get(name, ("", "", ""))[2]
        rows.append([f"  env.{'kwargs.' if inside else ''}{name}", shown, kind, meaning])
    for name in [*adapter, *(["opponents"] if adapter else [])]:
        if name not in own:
            default, kind, meaning = _ADAPTER[name]
            rows.append([f"  env.{name}", _yaml(section.get(name, default)), kind, meaning])
    return rows


def _yaml(value: object) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(text: str) -> str:
    """Return ``text`` without documentation markup."""
    return re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "")


def _described_arguments(text: str) -> dict[str, str]:
    """Return what ``Args:`` of a docstring says about each name, in one line; several names may share a line."""
    _, _, block = text.partition("Args:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in block.splitlines():
        if not line.startswith("    "):
            break
        if match := re.match(r"    (\w[\w, ]*):\s*(.*)", line):
            names = [name.strip() for name in match[1].split(",")]
            found |= dict.fromkeys(names, match[2])
        else:
            for name in names:
                found[name] += " " + line.strip()
    return {name: _plain(meaning) for name, meaning in found.items()}
