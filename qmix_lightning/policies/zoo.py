"""Find the policies that come with this package, by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from qmix_lightning.policies.reference import POLICY_FILE

__all__ = ["zoo_folder", "zoo_names"]


def _root() -> Path:
    return Path(str(resources.files("qmix_lightning.policies"))) / "shipped"


def zoo_names() -> list[str]:
    """Return the names of the policies that come with this package."""
    root = _root()
    return sorted(path.name for path in root.iterdir() if (path / POLICY_FILE).is_file()) if root.is_dir() else []


def zoo_folder(name: str) -> Path:
    """Return the policy folder of ``name``, one of :func:`zoo_names`."""
    return _root() / name
