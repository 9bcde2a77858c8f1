"""Split the ``env`` section of a configuration into the factory's settings and the adapter's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qmix_lightning import environment
from qmix_lightning.config.schema import check_settings, settings_of
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean
from qmix_lightning.worker.parallel_adapter import ParallelAdapter

__all__ = ["EnvSection", "adapter_settings", "parse_env_section"]


@dataclass(frozen=True)
class EnvSection:
    """A checked ``env`` section.

    ``settings`` are the factory's keyword arguments, ``adapter`` those of a single environment's adapter.
    """

    name: str
    factory: Callable[..., Any]
    settings: dict[str, Any]
    adapter: dict[str, Any]


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
    adapter = {key: given.pop(key) for key in adapter_names if key in given}
    own = settings_of(factory)
    if "kwargs" in given and "kwargs" not in own:
        given |= given.pop("kwargs")
    known = ({*own, *adapter_names} | ({"kwargs"} if "kwargs" in section else set())) - {"num_envs"}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    for key in given:
        if key not in own and not open_ended:
            inside = key not in section
            where = f"env.kwargs.{key}" if inside else f"env.{key}"
            choices = set(own) - {"num_envs"} if inside else known
            raise ConfigurationError(f"unknown key '{where}' for environment '{name}'{did_you_mean(key, choices)}")
    provided = ("num_envs",) if environment.is_natively_batched(factory) else ()
    return EnvSection(
        name=name,
        factory=factory,
        settings=check_settings("env", given, factory, provided),
        adapter=check_settings("env", adapter, ParallelAdapter, ("env", "name")),
    )
