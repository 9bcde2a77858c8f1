"""Keep modules and names of 0.1.0 importable where they were, until 0.3.0.

Nothing is loaded before it is asked for: an old module is an empty one that looks names up in the module it has become.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["MODULES", "keep_modules", "look_up_renamed", "warn_renamed"]

_PACKAGE = "qmix_lightning"

_ENTRY_POINTS = {"train": "commands.train", "evaluate": "commands.evaluate"}
"""Modules that stay importable for good; like all of them they run by ``python -m`` too."""

MODULES = {
    "agents.gru": "nn.packed_gru",
    "agents.heads": "nn.heads",
    "agents.layers": "nn.layers",
    "agents.moments": "nn.running_moments",
    "agents.packing": "nn.packing",
    "algorithms.critic": "algorithms.networks.coma",
    "algorithms.joint": "algorithms.networks.qtran",
    "envs_command": "commands.envs",
    "mixers.central": "algorithms.networks.weighted_qmix",
    "mixers.checks": "mixers.base",
    "q_table": "training.callbacks.q_table",
}
"""Old module -> new module, of those that plugins and scripts may have imported; using one warns."""

_MOVED = {**_ENTRY_POINTS, **MODULES}


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller of the function that calls this that ``old`` is called ``new``."""
    warnings.warn(f"{old} is {new} now; the old name works until version 0.3.0", FutureWarning, stacklevel=3)


class _EntryPoint(ModuleType):
    """A module ``train`` or ``evaluate``: imported, it takes the place of the package's function, so it is callable."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = getattr(importlib.import_module(f"{_PACKAGE}.api"), self.__name__.partition(".")[2])
        return function(*args, **kwargs)


class _Loader(SourceFileLoader):
    """Loader of an empty module in the place of a moved one; ``python -m`` runs the code of what it has become."""

    def exec_module(self, module: ModuleType) -> None:
        old = self.name.partition(".")[2]
        target = f"{_PACKAGE}.{_MOVED[old]}"

        def look_up(name: str) -> Any:
            value = getattr(importlib.import_module(target), name)
            if old in MODULES and not name.startswith("__"):
                warn_renamed(self.name, target)
            return value

        vars(module)["__getattr__"] = look_up
        if old in _ENTRY_POINTS:
            module.__class__ = _EntryPoint


class _Finder(MetaPathFinder):
    """Finds the modules that have moved, when nothing else has been found under their names."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        new = _MOVED.get(fullname.partition(".")[2])
        if new is None or not fullname.startswith(f"{_PACKAGE}."):
            return None
        file = Path(__file__).parent.parent / f"{new.replace('.', '/')}.py"
        return importlib.util.spec_from_loader(fullname, _Loader(fullname, str(file)))


def keep_modules() -> None:
    """Let every module that has moved be imported under its old name."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def look_up_renamed(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for ``module`` that knows its old names.

    Args:
        module: its ``__name__``.
        renamed: old name -> ``package.module:name`` of today.
    """

    def look_up(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = renamed[name].partition(":")
        warn_renamed(f"{module}.{name}", f"{place}.{new}")
        return getattr(importlib.import_module(place), new)

    return look_up
