"""Say of a module that is not there which extra brings it, or which one beside it is meant."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from typing import Any

from qmix_lightning.errors import MissingDependencyError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["import_extra", "moved_module"]


def import_extra(module: str, what: str, extra: str, instead: str = "") -> Any:
    """Import and return a module of a package that not everybody needs.

    Args:
        module: its full name.
        what: what needs which package, for the message.
        extra: of this package, which installs it.
        instead: the end of the message: what goes without.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"{what}: pip install 'qmix-lightning[{extra}]'{instead}") from error


def moved_module(name: str) -> str:
    """Return ``". Did you mean 'x'?"`` for a module that is not there, for one beside it; empty if none is close.

    ``pursuit_v4`` is looked for as ``pursuit`` of any version first. The parent package is imported.
    """
    parent, _, last = name.rpartition(".")
    if not parent:
        return ""
    try:
        spec = importlib.util.find_spec(parent)
    except (ImportError, ValueError):
        return ""
    if spec is None or not spec.submodule_search_locations:
        return ""
    beside = [module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)]
    stem = re.sub(r"_v\d+$", "", last)
    versions = [other for other in beside if re.fullmatch(rf"{re.escape(stem)}_v\d+", other)]
    if versions:
        newest = max(versions, key=lambda other: int(other.rpartition("_v")[2]))
        return f". Did you mean '{parent}.{newest}'?"
    close = did_you_mean(last, beside, f"{parent}.")
    return close if close.endswith("?") else ""
