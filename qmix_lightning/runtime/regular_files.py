"""Read files that may come from anybody: no links, no pipes, nothing too large; and write files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.runtime.text import printable, shown_path

__all__ = ["is_bounded", "read_json", "read_regular", "read_yaml", "refuse_unwritable", "write_whole"]

_MOST_JSON_BYTES = 64 * 2**20
_MOST_YAML_BYTES = 2**20
_MOST_VALUES = 10**6


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file that is no link, pipe or folder, and not larger than ``most_bytes``.

    Raises:
        CheckpointError: it is something else, or too large, or missing.
    """
    try:
        if path.is_symlink() or not path.is_file():
            what = "is not there" if not path.exists() and not path.is_symlink() else "is not a file of its own"
            raise CheckpointError(f"{path} {what}")
        if (size := path.stat().st_size) > most_bytes:
            raise CheckpointError(f"{path} was refused: it has {size:,} bytes, and at most {most_bytes:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def read_json(
    path: Path, most_bytes: int = _MOST_JSON_BYTES, parse_constant: Callable[[str], Any] | None = None
) -> Any:
    """Return what a JSON file holds.

    Args:
        path: of a regular file.
        most_bytes: that it may have.
        parse_constant: what ``NaN`` and infinities become; by default the numbers.

    Raises:
        CheckpointError: it is no JSON, is nested deeper than can be read, or is no regular file.
    """
    content = read_regular(path, most_bytes)
    try:
        return json.loads(content, parse_constant=parse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {printable(error, 200)}") from error


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds, plain values and containers.

    Raises:
        CheckpointError: it is no YAML, repeats itself without end, or is no regular file.
    """
    import yaml

    content = read_regular(path, _MOST_YAML_BYTES)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the other takes 30 ms for a run's configuration
    try:
        tree = yaml.load(content, loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {printable(error, 200)}") from error
    if not is_bounded(tree):
        raise CheckpointError(f"{path} was refused: it refers to its own parts without end")
    return tree


def is_bounded(tree: object) -> bool:
    """Return whether nested containers hold no more values than any run has.

    What a file refers to several times counts each time: a few lines of YAML, or a pickle, can hold themselves, or
    more than there is memory for once something copies or prints them.
    """
    waiting, seen = [tree], 0
    while waiting and seen <= _MOST_VALUES:
        value = waiting.pop()
        seen += 1
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return not waiting


def refuse_unwritable(path: Path, cure: str) -> None:
    """Refuse a file that could not be written, before what it is to hold is computed; leaves nothing there.

    Args:
        path: of a file; folders above it need not exist yet.
        cure: the end of the message.

    Raises:
        ConfigurationError: the folder takes no files, or cannot be made.
    """
    folder = next(above for above in path.absolute().parents if above.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(f"{shown_path(path)} cannot be written: {error.strerror}{cure}") from error


def write_whole(text: str, path: Path) -> None:
    """Write a text file in the place of the one that was there, so that a reader never finds half of it.

    Folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
    temporary.unlink(missing_ok=True)  # a link that was left there is not followed
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
