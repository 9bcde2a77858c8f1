"""List, show and check environments, and write a new one: the command ``qmix-envs``.

Imports torch only to create an environment.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from qmix_lightning.cli.env_catalogue import SIZES, Entry, catalogue
from qmix_lightning.cli.env_settings import show_settings
from qmix_lightning.cli.hydra_app import run_without_hydra
from qmix_lightning.cli.known_tasks import typed_as
from qmix_lightning.cli.overrides import register_plugin_names, shipped_configuration
from qmix_lightning.config.env_address import trust, trust_file, trusted_modules
from qmix_lightning.config.run_config import InterpreterConfig, check_interpreter
from qmix_lightning.config.schema import from_mapping
from qmix_lightning.errors import ConfigurationError, MissingDependencyError, QMixLightningError
from qmix_lightning.runtime.text import aligned, did_you_mean
from qmix_lightning.types import EnvSpec

__all__ = ["main"]

_HELP = """\
qmix-envs: the environments that env= accepts.

  qmix-envs                          the table of environments; --sizes creates each that can run here
  qmix-envs show NAME [OVERRIDES]    sizes and settings of one, e.g. qmix-envs show mpe scenario=simple_tag
  qmix-envs check NAME [OVERRIDES]   play random episodes with it and report which checks fail
  qmix-envs new NAME [--path .]      write a plugin package with an environment that works and passes the checks
  qmix-envs trust [MODULE]           let checkpoints name MODULE from now on (--remove: no more); alone: list them

rollout.python=PATH among them has another Python step it, as in qmix-train.

NAME is one of the table, or the address of your own: package.module:factory. OVERRIDES are its settings as qmix-train
has them, with or without env. in front: scenario=simple_tag kwargs.max_cycles=50.

Status: 0 done, 1 a check failed, 2 something asked for does not exist or fit.
"""


def main() -> None:
    """Run the command; the console entry point."""
    run_without_hydra(_dispatch)


def _dispatch(arguments: list[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return
    command, rest = "list", arguments
    if arguments and not arguments[0].startswith("-"):
        command, *rest = arguments
    if command not in _COMMANDS:
        hint = did_you_mean(command, _COMMANDS)
        if command in catalogue():
            hint = f". Did you mean 'qmix-envs show {command}'?"
        raise ConfigurationError(f"qmix-envs has no command '{command}'{hint}")
    _COMMANDS[command](rest)


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, as those of the other commands."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"qmix-envs {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"unrecognized arguments: (--\S+)", message):
            message += did_you_mean(match[1], self._option_string_actions).split(";")[0]
        if "arguments are required: name" in message:
            message = f"{self.prog} needs a name"
        raise ConfigurationError(message)


def _parse_with_overrides(parser: _Parser, arguments: list[str]) -> argparse.Namespace:
    parser.add_argument("name", help="an environment of qmix-envs list, or package.module:factory")
    parser.add_argument("overrides", nargs="*", help="settings, e.g. kwargs.max_cycles=50")
    return parser.parse_intermixed_args(arguments)


# list --------------------------------------------------------------------------------------------------------------


def _list(arguments: list[str]) -> None:
    parser = _Parser("list", "The table of environments.")
    parser.add_argument("--sizes", action="store_true", help="create each that can run here and look")
    if named := [argument for argument in arguments if argument in catalogue()]:
        raise ConfigurationError(f"the list has all of them: qmix-envs show {named[0]} is about one")
    options = parser.parse_args(arguments)
    rows = [["env", "family", "origin", *SIZES, "can run here"]]
    for entry in catalogue().values():
        sizes, missing = entry.sizes, entry.install
        if options.sizes and entry.install is None:
            sizes, missing = _sizes_of(entry.name) or (sizes, None)
        shown = ["-" if n is None else str(n) for n in sizes or (None,) * len(SIZES)]
        rows.append([entry.name, entry.family, entry.origin, *shown, missing or "yes"])
    print(*aligned(rows, right=range(3, 3 + len(SIZES))), sep="\n")
    print("\nSizes are those of the default settings; qmix-envs show NAME tells more.")


def _sizes_of(name: str) -> tuple[tuple[int | None, ...], str | None] | None:
    from omegaconf.errors import OmegaConfBaseException

    try:
        spec, missing = _created(compose_env(name, []))
    except (QMixLightningError, OmegaConfBaseException):  # it does not start here, or needs a setting
        return None
    return (spec.n_agents, spec.n_actions, spec.obs_dim, spec.state_dim, spec.episode_limit), missing


# One environment ---------------------------------------------------------------------------------------------------


def find_entry(name: str) -> Entry | None:
    """Return the catalogue's entry of ``name``; ``None`` for the address of an environment that is not in it.

    Raises:
        ConfigurationError: there is no such environment.
    """
    known = catalogue()
    if name in known:
        return known[name]
    if "." in name or ":" in name:
        return None
    if task := typed_as(name):
        raise ConfigurationError(f"unknown environment '{name}': qmix-train knows it as {task}")
    raise ConfigurationError(f"unknown environment '{name}'{did_you_mean(name, known)}")


def compose_env(name: str, overrides: list[str], *, complete: bool = True) -> dict[str, Any]:
    """Return the ``env`` section of ``qmix-train env=NAME OVERRIDES``; ``complete``: refuse values that are missing."""
    from hydra import compose
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf

    typed = []
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if not equals or not key:
            raise ConfigurationError(f"cannot read '{override}', which should be setting=value")
        key = key.removeprefix("env.")
        if key in ("env", "name"):
            raise ConfigurationError(f"'{override}' would name another environment than '{name}'")
        typed.append(f"++env.{key}={value}")
    if find_entry(name) is None:
        typed = [f"++env.id='{name}'", *typed]
        name = "pettingzoo"
    register_plugin_names()
    with shipped_configuration():
        try:
            composed = compose("train", [f"env={name}", *typed]).env
        except OverrideParseException as error:
            mistake = error.override.removeprefix("++env.")
            raise ConfigurationError(
                f"cannot read '{mistake}', which should be setting=value (in quotes if it has special characters)"
            ) from error
        section = OmegaConf.to_container(composed, resolve=True, throw_on_missing=complete)
    assert isinstance(section, dict)
    return {str(key): value for key, value in section.items()}


_THIS_ONE = InterpreterConfig()
"""No other Python than this one."""


def _split_interpreter(overrides: list[str]) -> tuple[InterpreterConfig, list[str]]:
    """Return the other Python that is asked for, and the settings of the environment.

    Raises:
        ConfigurationError: there is no such file, or another setting of ``rollout``.
    """
    from omegaconf import OmegaConf

    given = [override for override in overrides if override.startswith("rollout.")]
    tree = OmegaConf.to_container(OmegaConf.from_dotlist(given))
    assert isinstance(tree, dict)
    config: InterpreterConfig = from_mapping(InterpreterConfig, tree.get("rollout", {}), "rollout")
    check_interpreter(config.python, config.python_env)
    return config, [override for override in overrides if override not in given]


def _created(section: dict[str, Any], other: InterpreterConfig = _THIS_ONE) -> tuple[Any, str | None]:
    """Create one environment; return its specification and what it says is missing to play, such as a game."""
    import torch

    from qmix_lightning.vector.env_section import parse_env_section
    from qmix_lightning.vector.factory import Backend, interpreter_of, make_vector_env
    from qmix_lightning.vector.sync import close_all
    from qmix_lightning.worker.declared import metadata_of

    torch.set_num_threads(1)
    env = parse_env_section(section)
    backend = Backend(interpreter=interpreter_of(other.python, other.python_env))
    created = make_vector_env(env.factory, env.settings, num_envs=1, name=env.name, backend=backend, **env.adapter)
    try:
        return created.spec, metadata_of(getattr(created, "first_env", created)).get("missing")
    finally:
        close_all([created])  # whether it closes as it should is for qmix-envs check to say


# show --------------------------------------------------------------------------------------------------------------


def _show(arguments: list[str]) -> None:
    from omegaconf.errors import MissingMandatoryValue

    options = _parse_with_overrides(_Parser("show", "Everything that is known of an environment."), arguments)
    entry = find_entry(options.name)
    rows: list[tuple[str, str]] = []
    if entry is not None:
        rows += [("family", entry.family), ("origin", f"{entry.origin} ({entry.target})")]
    other, overrides = _split_interpreter(options.overrides)
    section = compose_env(options.name, overrides, complete=False)
    where = f"no: {entry.install}" if entry and entry.install else "yes"
    try:
        spec, missing = _created(compose_env(options.name, overrides), other)
        rows += _describe(spec)
        where = where if other.python is None else f"yes, under {other.python}"
        where = f"no: {missing}" if missing else where
    except MissingMandatoryValue as error:
        where = f"yes, once {error.full_key} has a value" if where == "yes" else where
    except MissingDependencyError as error:
        where = f"no: {error}"
    except ConfigurationError as error:
        if options.overrides:
            raise
        where = f"not with these settings: {error}"
    rows.append(("can run here", where))
    print(f"{options.name}: {entry.summary}\n" if entry and entry.summary else f"{options.name}\n")
    print(*aligned([(f"  {name}", value) for name, value in rows]), sep="\n")
    show_settings(section)


def _describe(spec: EnvSpec) -> list[tuple[str, str]]:
    def each(values: Sequence[int]) -> str:
        return f"{max(values)}" if len(set(values)) == 1 else f"{max(values)} ({', '.join(map(str, values))})"

    groups = len(set(spec.group_of_agent))
    names = ", ".join(spec.agent_names[:8]) + (", ..." if spec.n_agents > 8 else "")
    others = []
    if spec.team:
        learning = ", ".join(spec.agent_names[i] for i in spec.team)
        others = [("team", f"{learning}; the other {spec.n_agents - len(spec.team)} play along")]
    return [
        *others,
        ("agents", f"{spec.n_agents} in {groups} group{'s' if groups > 1 else ''}: {names}"),
        ("actions", each(spec.action_counts)),
        ("observation", each(spec.obs_dims)),
        ("state", str(spec.state_dim)),
        ("limit", "none" if spec.episode_limit is None else f"{spec.episode_limit} steps"),
        ("episode metrics", ", ".join(spec.episode_metrics) or "none"),
        ("stepped", "all in one call, batched by nature" if spec.natively_batched else "one by one, or in workers"),
    ]


# check and new -----------------------------------------------------------------------------------------------------


def _check(arguments: list[str]) -> None:
    parser = _Parser("check", "Play random episodes with an environment and report which checks fail.")
    parser.add_argument("--steps", type=int, default=400, help="joint steps of the random episodes at most (400)")
    parser.add_argument("--seed", type=int, default=0, help="decides episodes and actions (0)")
    options = _parse_with_overrides(parser, arguments)
    if options.steps < 1 or options.seed < 0:
        raise ConfigurationError("--steps must be at least 1 and --seed at least 0")
    other, overrides = _split_interpreter(options.overrides)
    section = compose_env(options.name, overrides)

    import torch

    from qmix_lightning.env_checker.checker import check_factory
    from qmix_lightning.env_checker.report import failures, report
    from qmix_lightning.vector.env_section import parse_env_section
    from qmix_lightning.vector.factory import interpreter_of

    torch.set_num_threads(1)
    env = parse_env_section(section)
    adapter = {key: value for key, value in env.adapter.items() if key != "team"}  # the game is checked as a whole
    results = check_factory(
        env.factory,
        env.settings,
        name=options.name,
        steps=options.steps,
        seed=options.seed,
        interpreter=interpreter_of(other.python, other.python_env),
        **adapter,
    )
    print(f"{options.name}\n{report(results)}")
    passed = sum(result.status == "ok" for result in results)
    failed = sorted({result.check for result in failures(results)})
    not_tried = sum(result.status == "unseen" for result in results)
    named = f" ({', '.join(failed)})" if failed else ""
    print(f"{passed} check{'' if passed == 1 else 's'} passed, {len(failed)} failed{named}, {not_tried} not tried")
    if failed:
        raise SystemExit(1)


def _new(arguments: list[str]) -> None:
    from qmix_lightning.cli.plugin_template import write_plugin

    parser = _Parser("new", "Write a plugin package with an environment that works.")
    parser.add_argument("name", help="of the package and of the environment, e.g. my_env")
    parser.add_argument("--path", type=Path, default=Path(), help="where the new folder is made (here)")
    options = parser.parse_args(arguments)
    if options.name in catalogue():
        raise ConfigurationError(f"there is an environment '{options.name}' already; choose another name")
    folder = write_plugin(options.name, options.path)
    print(
        f"wrote {folder}\n\n"
        f"  pip install -e {folder}\n"
        f"  qmix-envs check {options.name}\n"
        f"  qmix-train --config-dir {folder / 'conf'} experiment={options.name}_qmix\n\n"
        f"The environment is in {folder / options.name / 'environment.py'}."
    )


def _trust(arguments: list[str]) -> None:
    parser = _Parser("trust", "Let checkpoints name a module, which is then imported without being typed again.")
    parser.add_argument("module", nargs="?", help="e.g. my_package.my_module; what lies in it is trusted too")
    parser.add_argument("--remove", action="store_true", help="trust it no more")
    options = parser.parse_args(arguments)
    if options.module is None:
        print("\n".join(trusted_modules()) or f"no module is trusted; {trust_file()} would list them")
        return
    path = trust(options.module.partition(":")[0], remove=options.remove)
    print(f"{options.module} is {'trusted no more' if options.remove else 'trusted from now on'} ({path})")


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "list": _list,
    "show": _show,
    "check": _check,
    "new": _new,
    "trust": _trust,
}


if __name__ == "__main__":
    main()
