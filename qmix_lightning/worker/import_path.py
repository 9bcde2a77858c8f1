"""Look for modules in more folders, behind everything that is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__all__ = ["look_in"]


def look_in(folders: Iterable[str]) -> None:
    """Let modules be found in ``folders`` too; nothing that is installed is shadowed by them."""
    sys.path += [folder for folder in folders if folder not in sys.path]
    if _InstalledInPlace not in sys.meta_path and PathFinder in sys.meta_path:
        sys.meta_path.insert(sys.meta_path.index(PathFinder), _InstalledInPlace)


class _InstalledInPlace:
    """Finds a package installed by ``pip install -e`` that a folder of its name would hide.

    Such a package has a finder of its own, behind that of the path. The path's takes every folder for a namespace
    package, also the project's, which often has the name of the package inside it.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is not None:
            return None
        spec = PathFinder.find_spec(name)
        if spec is None or spec.loader is not None:
            return spec
        behind = sys.meta_path[sys.meta_path.index(PathFinder) + 1 :]
        able = (finder for finder in behind if hasattr(finder, "find_spec"))  # that of six before 1.16 has none
        found = (finder.find_spec(name, path, target) for finder in able)
        return next((spec for spec in found if spec is not None), None)
