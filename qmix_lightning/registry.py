"""Register components by name and import them on first use: environments, agents, mixers, algorithms.

A name leads to a target, written ``"package.module:attribute"`` so that nothing is imported before it is
needed. Names come from three places: ``register()``, the table of this package's own that a registry is made with, and
the entry points of other installed distributions in the registry's group.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Any

from qmix_lightning.errors import ConfigurationError, MissingDependencyError
from qmix_lightning.runtime.near_modules import moved_module
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["OWN_DISTRIBUTION", "Registry", "published"]

OWN_DISTRIBUTION = "qmix-lightning"


class Registry:
    """Registry of the names of one kind of component.

    Args:
        kind: what messages call it, e.g. ``"environment"``.
        group: entry-point group that other distributions may publish names in.
        own: this package's names and their targets; no other distribution's name takes the place of one.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._own = dict(own)
        self._targets: dict[str, str | Callable[..., Any]] = {}

    def register(self, name: str, target: str | Callable[..., Any], *, overwrite: bool = False) -> None:
        """Give ``target`` a name.

        Args:
            name: what ``{kind}=`` will accept.
            target: a callable, or ``"package.module:attribute"``, imported on first use.
            overwrite: replace a name that ``register`` gave before.

        Raises:
            ConfigurationError: the name is taken, or the target is not ``module:attribute``.
        """
        if isinstance(target, str) and target.count(":") != 1:
            raise ConfigurationError(f"{self.kind} '{name}': '{target}' is not of the form 'package.module:attribute'")
        if name in self._targets and self._targets[name] != target and not overwrite:
            raise ConfigurationError(f"{self.kind} '{name}' is registered already; pass overwrite=True to replace it")
        self._targets[name] = target

    def targets(self) -> dict[str, str | Callable[..., Any]]:
        """Return every known name with its target; import nothing. What ``register`` named wins."""
        found: dict[str, str | Callable[..., Any]] = {ep.name: ep.value for ep in self._published()}
        return dict(sorted((found | self._own | self._targets).items()))

    def distribution_of(self, name: str) -> Distribution | None:
        """Return the installed distribution that brings ``name``; ``None`` if it came from ``register``."""
        if name in self._targets:
            return None
        if name not in self._own:
            return next((point.dist for point in self._published() if point.name == name), None)
        return _own_distribution()

    def _published(self) -> tuple[EntryPoint, ...]:
        return published(self.group)

    def names(self) -> list[str]:
        """Return every known name, sorted."""
        return list(self.targets())

    def load(self, name: str) -> Callable[..., Any]:
        """Import and return the factory that ``name`` stands for.

        Raises:
            ConfigurationError: the name is unknown (the message has the closest known one), or its target
                cannot be found.
            MissingDependencyError: its package is not installed.
        """
        targets = self.targets()
        if name not in targets:
            raise ConfigurationError(f"unknown {self.kind} '{name}'{did_you_mean(name, targets)}")
        target = targets[name]
        return load_target(target, f"{self.kind} '{name}'") if isinstance(target, str) else target


def published(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group that installed distributions bring."""
    return _published_by_group(tuple(map(_state, sys.path))).get(group, ())


@functools.lru_cache(maxsize=8)
def _published_by_group(path: tuple[tuple[str, int], ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """Read all entry points while ``path`` stays: those of one group take as long, and a run asks for nine."""
    found = entry_points()
    return {group: tuple(found.select(group=group)) for group in found.groups}


def _state(folder: str) -> tuple[str, int]:
    """Return a folder of the path with the time when something was installed there or removed."""
    try:
        return folder, os.stat(folder or ".").st_mtime_ns
    except OSError:
        return folder, 0


@functools.lru_cache(maxsize=None)
def _own_distribution() -> Distribution | None:
    try:
        return distribution(OWN_DISTRIBUTION)
    except PackageNotFoundError:  # the folder is on the path, and nothing is installed
        return None


def load_target(target: str, what: str) -> Callable[..., Any]:
    """Import ``"package.module:attribute"``; ``what`` names the asker in messages."""
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(f"{what}: '{target}' is not of the form 'package.module:factory'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing == module_name or module_name.startswith(missing + "."):
            raise MissingDependencyError(
                f"{what}: there is no module '{missing}' here"
                + (moved_module(missing) or f"; install the package that has it, or correct '{target}'")
            ) from error
        raise MissingDependencyError(f"{what} needs the package '{missing}': pip install {missing}") from error
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            package = _package(module_name)  # what it has imported from others is nobody's environment
            names = [
                name
                for name, found in vars(value).items()
                if not name.startswith("_") and _package(getattr(found, "__module__", None) or package) == package
            ]
            raise ConfigurationError(f"{what}: '{module_name}' has no '{part}'{did_you_mean(part, names)}")
        value = getattr(value, part)
    if not callable(value):
        raise ConfigurationError(f"{what}: '{target}' is not callable")
    return value


def _package(module: str) -> str:
    return module.partition(".")[0]
