"""Split the ``env`` section of a configuration into the factory's settings and the adapter's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qmix_lightning import environment
from qmix_lightning.config.env_address import env_label, own_arguments
from qmix_lightning.config.expected import typed
from qmix_lightning.config.schema import check_settings, from_mapping, settings_of
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean
from qmix_lightning.worker.parallel_adapter import ParallelAdapter

__all__ = ["EnvSection", "OpponentSettings", "adapter_settings", "parse_env_section"]


@dataclass(frozen=True)
class OpponentSettings:
    """The setting ``env.opponents``: a text, or a mapping with these keys.

    Attributes:
        policy: ``random``, ``no_op``, ``self``, the address ``package.module:function``, or a reference to a policy.
        versions: of ``self``: the last versions of the team that are played against.
        interval: of ``self``: joint steps of training between versions.
    """

    policy: str = "random"
    versions: int = 10
    interval: int = 10_000


@dataclass(frozen=True)
class EnvSection:
    """A checked ``env`` section.

    ``name`` is what the environment is called in messages, ``settings`` are the factory's keyword arguments,
    ``adapter`` those of a single environment's adapter; ``opponents`` is how the agents act that ``env.team`` leaves
    out, ``None`` where there is no team.
    """

    name: str
    factory: Callable[..., Any]
    settings: dict[str, Any]
    adapter: dict[str, Any]
    opponents: OpponentSettings | None = None


def adapter_settings(factory: Callable[..., Any]) -> list[str]:
    """Return the names of the adapter's settings, which stand beside the factory's own.

    A natively batched environment has none: it decides these for itself.
    """
    return [] if environment.is_natively_batched(factory) else settings_of(ParallelAdapter, ("env", "name"))


def parse_env_section(section: Mapping[str, Any]) -> EnvSection:
    """Check the ``env`` section against the signature of the factory that it names; create nothing.

    Raises:
        ConfigurationError: an unknown name, key or type.
    """
    name = section["name"]
    factory = environment.load(name)
    adapter_names = adapter_settings(factory)
    given = {key: value for key, value in section.items() if key != "name"}
    provided = ("num_envs",) if environment.is_natively_batched(factory) else ()
    own = settings_of(factory, provided)
    if not adapter_names:
        _leave_out_adapter_settings(name, given, own)
    opponents = _opponents(given.pop("opponents", None), given.get("team")) if adapter_names else None
    adapter = {key: given.pop(key) for key in adapter_names if key in given}
    if "kwargs" in given and "kwargs" not in own:
        inner = given.pop("kwargs")
        if not isinstance(inner, Mapping):
            raise ConfigurationError(f"env.kwargs must be a mapping {{key: value}}, not {typed(inner)}")
        given |= inner
    known = {*own, *adapter_names} | ({"opponents"} if adapter_names else set())
    if "kwargs" in section:
        known = (known if "kwargs" in own else known - {*own}) | {"kwargs"}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    for key in given:
        if key not in own and not open_ended:
            inside = key not in section
            where = f"env.kwargs.{key}" if inside else f"env.{key}"
            meant = did_you_mean(key, own if inside else known)
            if not inside and "kwargs" in known and not meant.endswith("?"):
                meant += own_arguments(key)
            if key in provided:
                meant = "; rollout.num_envs is how many step together"
            raise ConfigurationError(f"unknown key '{where}' for environment '{name}'{meant}")
    return EnvSection(
        name=env_label(section),
        factory=factory,
        settings=check_settings("env", given, factory, provided),
        adapter=check_settings("env", adapter, ParallelAdapter, ("env", "name")),
        opponents=opponents,
    )


def _leave_out_adapter_settings(name: str, given: dict[str, Any], own: Collection[str]) -> None:
    """Refuse settings of the adapter, which a natively batched environment lacks, and take out those that are null.

    Raises:
        ConfigurationError: one is set; its ``own`` settings may have such names.
    """
    for key in (*settings_of(ParallelAdapter, ("env", "name")), "opponents"):
        if key in own or given.pop(key, None) is None:
            continue
        why = "shows one team" if key in ("team", "opponents") else "decides that by itself"
        meant = "; its limit is env.max_steps" if key == "episode_limit" and "max_steps" in own else ""
        raise ConfigurationError(f"environment '{name}' is batched by nature and {why}: it takes no env.{key}{meant}")


def _opponents(given: Any, team: Any) -> OpponentSettings | None:
    """Return the checked setting ``env.opponents``."""
    if team is None:
        if given is not None:
            raise ConfigurationError("env.opponents needs env.team, the agents that learn, as in env.team=[red_*]")
        return None
    if given is None:
        return OpponentSettings()
    found: OpponentSettings = from_mapping(
        OpponentSettings, given if isinstance(given, Mapping) else {"policy": given}, "env.opponents"
    )
    for name in ("versions", "interval"):
        if getattr(found, name) < 1:
            raise ConfigurationError(f"env.opponents.{name} must be at least 1, not {getattr(found, name)}")
    return found
