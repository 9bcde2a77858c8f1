"""List every environment that ``env=`` accepts, as far as it is known without importing any of them.

* Names are those of ``conf/env`` and of the registry.
* The packages that an environment needs beside its own distribution's are the extra of its name, so that nothing lists
  them twice. What is on no index is named in its YAML file: ``# Needs: module (where to read how to install it)``.
* Sizes are in its YAML file, for the settings there:
  ``# Sizes: 3 agents, 5 actions, observation 18, state 54, limit 25``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qmix_lightning.config.shipped import shipped_files
from qmix_lightning.environment import ENVIRONMENTS
from qmix_lightning.registry import OWN_DISTRIBUTION

__all__ = ["SIZES", "Entry", "catalogue"]

SIZES = ("agents", "actions", "observation", "state", "limit")
_SIZES_LINE = re.compile(r"Sizes: (\d+) agents, (\d+) actions, observation (\d+), state (\d+), limit (\d+|none)\.?\s*")
_NEEDS_LINE = re.compile(r"Needs: ([\w.]+) \((.+)\)\.?\s*")


@dataclass(frozen=True)
class Entry:
    """One environment of the catalogue.

    Attributes:
        name: what ``env=`` accepts.
        family: its factory's name in the registry; several names may share one.
        origin: ``built-in``, the distribution that brings it, or ``registered`` from Python.
        target: the factory's address.
        summary: what its YAML file says about it.
        sizes: by :data:`SIZES`; ``None``: not declared.
        install: how to get what is missing; ``None``: it can run here.
    """

    name: str
    family: str
    origin: str
    target: str
    summary: str
    sizes: tuple[int | None, ...] | None
    install: str | None


def catalogue() -> dict[str, Entry]:
    """Return every environment by name."""
    targets = ENVIRONMENTS.targets()
    files = {name: file.read_text() for name, file in shipped_files("env").items()}
    found = {}
    for name in sorted(files.keys() | targets.keys()):
        text = files.get(name, "")
        family = match[1] if (match := re.search(r"^name: *([\w-]+)", text, re.MULTILINE)) else name
        brought_by = ENVIRONMENTS.distribution_of(family)
        summary, sizes, needs = _header(text)
        install = _missing(brought_by, family) if brought_by else None
        found[name] = Entry(
            name=name,
            family=family,
            origin=_origin(brought_by),
            target=_address(targets.get(family, "")),
            summary=summary,
            sizes=sizes,
            install=install or (needs[1] if needs and not _is_there(needs[0]) else None),
        )
    return found


def _header(text: str) -> tuple[str, tuple[int | None, ...] | None, tuple[str, str] | None]:
    """Return summary, sizes and need from the comment that a YAML file begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# ").rstrip())
    comment = " ".join(lines)
    sizes = needs = None
    if match := _SIZES_LINE.search(comment):
        sizes = tuple(None if n == "none" else int(n) for n in match.groups())
    if match := _NEEDS_LINE.search(comment):
        needs = (match[1], match[2])
    return _NEEDS_LINE.sub("", _SIZES_LINE.sub("", comment)).strip(), sizes, needs


def _origin(brought_by: Distribution | None) -> str:
    if brought_by is None:
        return "registered"
    own = canonicalize_name(brought_by.name) == OWN_DISTRIBUTION
    return "built-in" if own else f"{brought_by.name} {brought_by.version}"


def _address(target: str | Callable[..., Any]) -> str:
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"


# What is installed ------------------------------------------------------------------------------------------------


def _missing(dist: Distribution, family: str) -> str | None:
    """Return the command that installs what the extra of this environment's name requires, if anything is missing."""
    return None if _has_all(dist, {family}, set()) else f"pip install '{dist.name}[{family}]'"


def _has_all(dist: Distribution, extras: set[str], seen: set[tuple[str, str]]) -> bool:
    """Return whether everything that these extras of ``dist`` require is installed, in a version that fits."""
    for requirement in _requirements(dist):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue  # a plain dependency
        if not any(marker.evaluate({"extra": canonicalize_name(extra)}) for extra in extras):
            continue
        try:
            needed = distribution(requirement.name)
        except PackageNotFoundError:
            return False
        if not requirement.specifier.contains(needed.version, prereleases=True):
            return False
        deeper = {extra for extra in requirement.extras if (needed.name, extra) not in seen}
        if deeper and not _has_all(needed, deeper, seen | {(needed.name, extra) for extra in deeper}):
            return False
    return True


@functools.lru_cache(maxsize=8)
def _requirements(dist: Distribution) -> tuple[Requirement, ...]:
    """Parse what ``dist`` requires, once for all names that it brings."""
    return tuple(Requirement(text) for text in dist.requires or ())


def _is_there(module: str) -> bool:
    """Return whether ``package.module`` could be imported; imports nothing, unlike ``find_spec`` alone."""
    parts = module.split(".")
    spec = find_spec(parts[0])
    for i in range(1, len(parts)):
        if spec is None:
            return False
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), spec.submodule_search_locations or [])
    return spec is not None
