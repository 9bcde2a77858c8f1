"""Keep the index of a study: which run, by the identity of its configuration, is in which folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from qmix_lightning.config.resume import MAY_CHANGE
from qmix_lightning.config.tree import flatten
from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.runtime.regular_files import read_json, write_whole
from qmix_lightning.runtime.text import shown_path

__all__ = ["Study", "deciding_settings", "identity", "write_lines"]

_DECIDE_THE_RESULT = (
    "total_env_steps",
    "eval_interval",
    "eval_episodes",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
)
"""Settings that a resumed run may change, and that two runs with the same result may not differ in."""

_BEGUN_FROM = ("init_from", "init_parts")
"""Where a run's networks come from: decides its result where it is set."""

_FOLDER = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.,=+-]*(/[A-Za-z0-9][\w.,=+-]*)*")
"""Folder of a run below its study's."""


def deciding_settings(config: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """Return the settings, by dotted keys, that a run's result depends on: not those that a resumed run may change.

    Args:
        config: nested containers, interpolations resolved.
        more: keys that count besides, though a resumed run may change them.
    """
    ignored = tuple(key for key in MAY_CHANGE if key not in (*_DECIDE_THE_RESULT, *more))
    below = tuple(f"{key}." for key in ignored)
    return {k: v for k, v in flatten(config).items() if k not in ignored and not k.startswith(below)}


def identity(config: Mapping[str, Any]) -> str:
    """Return the hash of a run's configuration, seed included, without what its result does not depend on.

    Left out is what a resumed run may change (paths, loggers, how environments are hosted), but for the budget, the
    evaluations, the devices, and the networks that it begins with.

    Args:
        config: nested containers, interpolations resolved.
    """
    kept = deciding_settings(config, *(_BEGUN_FROM if config.get("init_from") else ()))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def write_lines(content: Mapping[str, Any], path: Path) -> None:
    """Write a JSON object, one line for each of its keys, atomically."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    write_whole(f"{{\n{lines}\n}}\n", path)


class Study:
    """A folder with ``study.json`` and one folder a run.

    A run keeps the folder that it was given first, whatever its name would be today, so that a study can be extended.

    Args:
        folder: made when the first run is placed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "study.json"

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return what is known of each run, by identity: its ``folder``, and what it was begun with.

        Raises:
            ConfigurationError: the file is not a study's.
        """
        if not self.path.exists():
            return {}
        runs: Any = None
        try:
            runs = read_json(self.path)
            whole = all(_FOLDER.fullmatch(run["folder"]) for run in runs.values())
        except (CheckpointError, TypeError, KeyError, AttributeError):
            whole = False
        if not whole:
            raise ConfigurationError(
                f"{shown_path(self.path)} is not the index of a study: remove it to begin anew, or take another folder"
            )
        return runs

    def place(self, run: str, name: str, begun_with: Mapping[str, Any], *, anew: bool = False) -> dict[str, Any]:
        """Return the entry of a run, which is given a folder of its own if it has none yet.

        Args:
            run: its identity.
            name: what its folder should be called; it gets a number if another run's is.
            begun_with: what its entry holds beside the folder if it is made now.
            anew: leave the folder that it has, and give it another one.
        """
        if not _FOLDER.fullmatch(name):
            raise ConfigurationError(f"'{name}' cannot be the name of a run's folder")
        with self._locked():
            runs = self.runs()
            if run not in runs or anew:
                taken = {entry["folder"] for entry in runs.values()}
                number, folder = 1, name
                while folder in taken or (self.folder / folder).exists():
                    number += 1
                    folder = f"{name}-{number}"
                runs[run] = {"folder": folder, **begun_with}
                write_lines(runs, self.path)
            return runs[run]

    def lock_of(self, run: str) -> Path:
        """Return the file that is locked while a run is being made."""
        return self.folder / "locks" / run

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "study.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
