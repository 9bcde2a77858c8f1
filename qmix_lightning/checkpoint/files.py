"""Read and write checkpoint files: small manifests that name immutable replay segments.

A ``.ckpt`` holds tensors and plain containers only and is opened with ``weights_only=True``: opening one never runs
code from it. It is written beside its destination, fsynced and renamed last, so a kill cannot harm it: a reader finds
the old file or the new one. Each rank's replay lies beside it in segment files that are written once and never
overwritten; the manifest holds their names and SHA-256 sums.
"""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from qmix_lightning.checkpoint.compatibility import upgrade_checkpoint
from qmix_lightning.errors import CheckpointError, RunError
from qmix_lightning.runtime.kill_points import reached
from qmix_lightning.runtime.regular_files import is_bounded
from qmix_lightning.runtime.text import printable

__all__ = [
    "FORMAT",
    "fsync_folder",
    "load_plain",
    "read_checkpoint",
    "remove_leftovers",
    "save_durably",
    "set_aside",
    "write_checkpoint",
]


FORMAT = "qmix-lightning/1"


_TEMPORARY = ".writing"


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Flush a file's contents to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder so that nothing takes it for a whole one; return its new place."""
    aside = next(
        place
        for number in itertools.count()
        if not (place := path.with_name(f"{path.name}.damaged{number or ''}")).exists()
    )
    os.replace(path, aside)
    return aside


def save_durably(payload: object, path: Path) -> None:
    """Save with ``torch.save`` so that the old file or the whole new one is left, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            torch.save(payload, file)
            reached("checkpoint.written")
            file.flush()
            os.fsync(file.fileno())
        reached("checkpoint.rename")
        os.replace(temporary, path)
        reached("checkpoint.renamed")
    except (OSError, RuntimeError) as error:
        # A full disk: torch's writer raises a RuntimeError about positions, after the system's own error.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        before = next(
            (folder for folder in (path.parent, path.parent.parent) if (folder / "last.ckpt").is_file()), None
        )
        what = "what was saved before is whole: ckpt_path=last goes on" if before else "nothing was saved before"
        raise RunError(f"{path} could not be written ({cause.strerror}); {what}") from error
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_checkpoint(payload: dict[str, Any], path: str | Path) -> None:
    """Write a manifest atomically; the one that ``last.ckpt`` held before is kept as ``previous.ckpt``."""
    path = Path(path)
    if path.name == "last.ckpt" and path.exists():
        reached("checkpoint.previous")
        link = path.with_name(f"previous.ckpt.{os.getpid()}{_TEMPORARY}")
        link.unlink(missing_ok=True)
        try:
            try:
                os.link(path, link)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, link)
                fsync_file(link)
            os.replace(link, path.with_name("previous.ckpt"))
        except OSError as error:
            link.unlink(missing_ok=True)
            raise RunError(f"{path} could not be kept as previous.ckpt ({error.strerror}); it is whole") from error
    save_durably({"format": FORMAT, **payload}, path)


def load_plain(path: Path) -> Any:
    """Load tensors and plain containers from a file; its checksums are verified, which ``torch.load`` does not do."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path} is not a file")  # a pipe would be waited for
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing: what is packed may be of any size.
            packed = next((entry.filename for entry in archive.infolist() if entry.compress_type), None)
            if packed is not None:
                raise CheckpointError(f"{path} was refused: '{printable(packed)}' in it is compressed")
            # For an entry that is marked as a folder, torch returns whatever the buffer held.
            folders = (entry.filename for entry in archive.infolist() if entry.external_attr & 0x10)
            damaged = archive.testzip() or next(folders, None)
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: '{damaged}' does not match its checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_storage(content, path)
        return content
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder; name a .ckpt file in it") from None
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint (cut off while copying?): {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} was refused: it holds more than tensors and plain values") from error
    except Exception as error:  # made-up contents raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error


def _check_storage(content: object, path: Path) -> None:
    """Refuse tensors that show more numbers than the file holds: looking at them would take any memory and time."""
    if not is_bounded(content):
        raise CheckpointError(f"{path} was refused: it refers to its own parts without end")
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise CheckpointError(f"{path} was refused: a tensor in it shows more than the file holds")
        elif isinstance(value, dict | list | tuple):
            waiting += value.values() if isinstance(value, dict) else value


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read and verify a checkpoint of this project; no code from it is run.

    Raises:
        CheckpointError: missing, damaged, hostile, or not one of this project's.
    """
    payload = load_plain(Path(path))
    if not isinstance(payload, dict) or "format" not in payload:
        raise CheckpointError(f"{path} is not a checkpoint of qmix-lightning")
    if payload["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {payload['format']!r}; this version reads '{FORMAT}'")
    missing = [key for key in ("state_dict", "config", "spec", "env_steps", "global_step") if key not in payload]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it was not written by a whole run")
    try:
        return upgrade_checkpoint(payload)
    except RecursionError:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: its contents are nested too deeply") from None


def remove_leftovers(run_dir: str | Path) -> None:
    """Remove what a killed process was in the middle of writing."""
    folder = Path(run_dir) / "checkpoints"
    for path in [*folder.glob(f"*{_TEMPORARY}"), *(folder / "replay").glob(f"*{_TEMPORARY}")]:
        path.unlink(missing_ok=True)
