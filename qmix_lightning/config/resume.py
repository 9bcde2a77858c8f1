"""Decide which settings a resumed run may change, and fill in defaults for settings that its checkpoint lacks.

Which checkpoint is resumed and how its configuration is merged with what was typed is decided in
:mod:`qmix_lightning.checkpoint.resume`.
"""

from __future__ import annotations

import functools
import re
import sys
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from qmix_lightning.config.env_address import is_trusted
from qmix_lightning.config.policy_config import EvalConfig
from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.config.schema import typed
from qmix_lightning.config.shipped import plain_settings
from qmix_lightning.config.tree import flatten, key_of
from qmix_lightning.config.trust import is_name, texts
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import printable

__all__ = [
    "MAY_CHANGE",
    "check_resumable",
    "fill_missing_defaults",
    "imported",
    "missing_settings",
    "refuse_untyped_imports",
    "refuse_untyped_interpreter",
    "shipped_defaults",
]


MAY_CHANGE = (
    "preset",  # a name; its values are compared each by itself
    "total_env_steps",
    "eval_interval",
    "eval_episodes",
    "checkpoint_interval",
    "objective",
    "run_dir",
    "ckpt_path",
    "init_from",  # where the run began; it goes on from its checkpoint
    "init_parts",
    "logger",
    "callbacks",
    "replay.storage",
    "replay.memmap_dir",
    "replay.device",
    "rollout.num_eval_envs",
    "rollout.collector",
    "rollout.num_collectors",
    "rollout.on_resume",
    "rollout.backend",
    "rollout.num_workers",
    "rollout.step_timeout_s",
    "rollout.max_faults",
    "rollout.fault_window_s",
    "rollout.python",
    "rollout.python_env",
    "ray",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.limit_val_batches",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.profiler",
)
"""Settings that a resumed run may change, since what it did before does not depend on them.

The kind of device and the number of ranks are compared apart, as they turn out.
"""


_NAMES_ONLY = {"jaxmarl": ("id",), "gymnasium": ("id",)}
"""Environments whose ``id`` is looked up among the simulator's own names: it imports nothing."""


_OPPONENTS = ("random", "no_op", "self")
"""What a file may say of ``env.opponents``: all else is an address or a path."""


_ADDRESSES = ("opponents", "opponents.policy")


def imported(env: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of an ``env`` section that a checkpoint must not decide: what is imported, and paths.

    Modules that the user trusts (``qmix-envs trust``) are left out. Keys are dotted, as they are typed after ``env.``.
    """
    harmless = _NAMES_ONLY.get(env["name"], ())
    found = {}
    for key, value in flatten(env).items():
        if key == "team":  # compared with agents' names, and nothing else
            continue
        if key in (*_ADDRESSES, "id", "module") and is_trusted(value):
            continue
        if key in _ADDRESSES and value not in (None, *_OPPONENTS):
            found[key] = str(value)
            continue
        names_a_module = key in ("id", "module") and value and key not in harmless
        if names_a_module or not all(map(is_name, texts(value))):
            found[key] = str(value)
    return found


def refuse_untyped_imports(env: Mapping[str, Any], allowed: Mapping[str, Any], file: str) -> None:
    """Refuse imports and paths that only a file names.

    Args:
        env: the ``env`` section that would be used.
        allowed: what does not come from the file, as that section.
        file: what the message calls it.

    Raises:
        ConfigurationError: says what to type to let it be used.
    """
    others = {key: str(value) for key, value in flatten(allowed).items()}
    for key, value in imported(env).items():
        if value == others.get(key):
            continue
        what = f"names the environment '{printable(value)}', which is not in the registry; to let it be imported"
        if key not in ("id", "module"):
            what = f"holds '{printable(value)}', which a file does not decide; to let it be used"
        raise ConfigurationError(f"{file} {what}, say env.{printable(key)}={printable(value)}")


def refuse_untyped_interpreter(config: RunConfig | EvalConfig, overrides: list[str] | None) -> None:
    """Refuse another Python, or a cluster, that a recipe or any other file names: only what is typed is run or reached.

    Args:
        config: of the run.
        overrides: what the user typed; ``None`` for a rank that is told its configuration by rank 0.

    Raises:
        ConfigurationError: says what to type.
    """
    if overrides is None:
        return
    typed_names = set(map(key_of, overrides))
    named = {"rollout.python": config.rollout.python, "rollout.python_env": config.rollout.python_env}
    if isinstance(config, RunConfig):
        named["ray.address"] = config.ray.address
    for name, value in named.items():
        if value and name not in typed_names:
            raise ConfigurationError(
                f"a file names {name}={printable(value)}, which it does not decide; to let it be used, type it"
            )


def check_resumable(saved: Mapping[str, Any], new: Mapping[str, Any], path: Path | str) -> None:
    """Refuse to resume with a configuration that would have made what the run did before different.

    Raises:
        ConfigurationError: names the first keys that differ, with both values.
    """
    before, now = flatten(saved), flatten(new)
    allowed = tuple(f"{name}." for name in MAY_CHANGE)
    keys = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in MAY_CHANGE and not key.startswith(allowed)
    ]
    # Of a mapping that is empty on one side, what the other one holds says it all.
    keys = [k for k in keys if {} not in (before.get(k), now.get(k)) or not any(o.startswith(f"{k}.") for o in keys)]
    # Of a component that is another one, its name says it all.
    others = {key.removesuffix("name") for key in keys if key.count(".") == 1 and key.endswith(".name")}
    different = [
        f"{key}={typed(now.get(key))} (the checkpoint has {typed(before.get(key))})"
        for key in keys
        if not key.startswith(tuple(others)) or key.endswith(".name")
    ]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise ConfigurationError(
            f"{path} belongs to another run: {'; '.join(different[:3])}{more}. Resume with the run's own settings, "
            "or start anew without ckpt_path"
        )


_DECIDE_NOTHING = (
    *("preset", "init_from", "init_parts", "objective"),
    *("ray.address", "ray.num_cpus", "rollout.num_collectors"),
)
"""Settings of which nobody has to be told that a checkpoint lacks them: a name, where a run began, a cluster."""

_GROUPS = ("env", "mixer", "agent", "algorithm", "replay", "rollout", "exploration", "optimizer")


def fill_missing_defaults(saved: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """Return a checkpoint's configuration with values for settings that it lacks; one line on stderr says which.

    Args:
        saved: as it is stored; not changed.
        path: of the checkpoint, for the line.
    """
    if not isinstance(saved, Mapping) or not (missing := missing_settings(saved)):
        return typing.cast("dict[str, Any]", saved)
    told = {key: value for key, value in flatten(missing).items() if key not in _DECIDE_NOTHING}
    shown = ", ".join(f"{key}={'null' if value is None else value}" for key, value in told.items())
    if shown:
        what = "was written before these settings existed and goes on with what held before"
        print(f"{path} {what}: {shown}", file=sys.stderr)
    whole = {name: dict(value) if isinstance(value, Mapping) else value for name, value in saved.items()}
    for name, value in missing.items():
        whole[name] = {**value, **whole.get(name, {})} if isinstance(value, dict) else value
    return whole


def missing_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the settings that ``saved`` lacks, nested as it is: those of version 0.1.0, never today's.

    A newer setting has the value that leaves things as they were.
    """
    frozen = plain_settings(resources.files("qmix_lightning.config").joinpath("frozen_0_1_0.yaml").read_text())
    missing: dict[str, Any] = {key: value for key, value in frozen["top"].items() if key not in saved}
    for group in _GROUPS:
        section = saved.get(group)
        if not isinstance(section, Mapping):
            continue
        known = frozen[group].get(_choice(group, section), {})
        if found := {key: value for key, value in known.items() if key not in section}:
            missing[group] = found
    return missing


def shipped_defaults(group: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the shipped file that a section was made from; empty if it is a plugin's.

    Where the file refers to a preset, the value is PyMARL's: enough to know what kind of setting it is.
    """
    tree = _read(f"{group}/{_choice(group, section)}")
    preset = _read("preset/pymarl")["preset"]
    defaults = tree.get(group, tree)  # an algorithm's file sets other groups too
    return {key: preset.get(_preset_key(value), value) for key, value in defaults.items()}


def _preset_key(value: object) -> str | None:
    match = re.fullmatch(r"\$\{preset\.(\w+)\}", value) if isinstance(value, str) else None
    return match and match[1]


@functools.cache
def _read(name: str) -> dict[str, Any]:
    """Read one of the package's own files with those that its defaults list begins with; empty if it is a plugin's."""
    from omegaconf import OmegaConf

    if "/" in name.partition("/")[2] or ".." in name:  # the name comes from a file
        return {}
    file = resources.files("qmix_lightning.conf").joinpath(f"{name}.yaml")
    if not file.is_file():
        return {}
    own = plain_settings(file.read_text())
    bases = [base for base in own.get("defaults", ()) if isinstance(base, str) and base != "_self_"]
    trees = [*(_read(f"{name.partition('/')[0]}/{base}") for base in bases), own]
    plain = OmegaConf.to_container(OmegaConf.merge(*trees), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in ("defaults", "hydra")}


def _choice(group: str, section: Mapping[str, Any]) -> str:
    """Return the name of the component that a section is about, as far as its content says."""
    by_content = {"replay": section.get("kind"), "rollout": section.get("backend"), "exploration": "epsilon_greedy"}
    return str(by_content.get(group, section.get("name")))
