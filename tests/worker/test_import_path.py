"""Modules of the working folder are found behind everything that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from qmix_lightning.worker.import_path import look_in


class InPlace:
    """Finds ``my_team`` as the finder does that ``pip install -e`` writes: by its name, behind the path's."""

    def __init__(self, package: Path) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "my_team":
            return None
        return importlib.util.spec_from_file_location(name, self.package / "__init__.py")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a project ``my_team`` that is installed in place, ``other`` beside it, and ``json.py``."""
    package = tmp_path / "my_team" / "my_team"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("name = 'installed'\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "part.py").write_text("name = 'beside'\n")
    (tmp_path / "json.py").write_text("name = 'shadow'\n")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, InPlace(package)])
    yield tmp_path
    for name in ("my_team", "other", "other.part"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("first", [False, True])
def test_a_project_beside_is_not_taken_for_its_package(folder: Path, monkeypatch: pytest.MonkeyPatch, first: bool):
    """``python -m`` has the working folder first."""
    if first:
        monkeypatch.syspath_prepend(folder)
    look_in([str(folder)])
    look_in([str(folder)])
    assert sys.path.count(str(folder)) == 1
    assert importlib.import_module("my_team").name == "installed"
    assert importlib.import_module("other.part").name == "beside"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nowhere_at_all")


def test_a_finder_of_the_old_kind_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Such as that of six before 1.16, which old simulators bring, has ``find_module`` alone."""
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path[:-1], object(), sys.meta_path[-1]])
    look_in([str(folder)])
    assert importlib.import_module("other.part").name == "beside"
    assert importlib.import_module("my_team").name == "installed"


def test_what_is_installed_is_not_shadowed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "json")
    look_in([str(folder)])
    assert not hasattr(importlib.import_module("json"), "name")
