"""Checkpoint files: a small manifest that names immutable replay segments, written so that a kill cannot harm it.

A ``.ckpt`` holds tensors and plain containers only and is opened with ``weights_only=True``: opening one never runs
code from it. It is written beside its destination, fsynced and renamed last, so a reader finds the old file or the
new one. Each rank's replay lies beside it in segment files that are written once and never overwritten; the manifest
holds their names and SHA-256 sums.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from qmix_lightning.errors import CheckpointError, RunError
from qmix_lightning.replay import EpisodeReplay

__all__ = [
    "FORMAT",
    "RunCheckpointIO",
    "SegmentStore",
    "find_last",
    "folder_of_segments",
    "read_checkpoint",
    "remove_leftovers",
    "write_checkpoint",
]

FORMAT = "qmix-lightning/1"
_TEMPORARY = ".writing"
_SEGMENT_NAME = re.compile(r"replay-rank\d+-\d+-\d+-[0-9a-f]{16}\.pt")
_MERGE_AT = 32
"""So many small segments are written again as few large ones."""

_SEGMENT_BYTES = 1 << 26
"""A segment is in memory as a whole when it is written or read, so it is no larger, unless one episode is."""


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _save_durably(payload: Any, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the whole new one, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # A full disk: torch's writer raises a RuntimeError about positions, after the system's own error.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        raise RunError(
            f"{path} could not be written ({cause.strerror}); what was saved before is whole: ckpt_path=last goes on"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    _fsync_folder(path.parent)


def write_checkpoint(payload: dict[str, Any], path: str | Path) -> None:
    """Write a manifest atomically. A full run's checkpoint replaces ``last.ckpt`` and keeps one before it."""
    path = Path(path)
    if path.name == "last.ckpt" and path.exists():
        previous = path.with_name("previous.ckpt")
        link = path.with_name(f"previous.ckpt.{os.getpid()}{_TEMPORARY}")
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, previous)
    _save_durably({"format": FORMAT, **payload}, path)


def _load_plain(path: Path) -> Any:
    """Tensors and plain containers from a file; its checksums are verified, which ``torch.load`` does not do."""
    try:
        with zipfile.ZipFile(path) as archive:
            # For an entry that is marked as a folder, torch returns whatever was in memory.
            folders = (entry.filename for entry in archive.infolist() if entry.external_attr & 0x10)
            damaged = archive.testzip() or next(folders, None)
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: '{damaged}' does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint of this project, verified; no code from it is run.

    Raises:
        CheckpointError: missing, damaged, hostile, or not one of this project's.
    """
    payload = _load_plain(Path(path))
    if not isinstance(payload, dict) or "format" not in payload:
        raise CheckpointError(f"{path} is not a checkpoint of qmix-lightning")
    if payload["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {payload['format']!r}; this version reads '{FORMAT}'")
    missing = [key for key in ("state_dict", "config", "spec", "env_steps", "global_step") if key not in payload]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it was not written by a whole run")
    return payload


def _segments_of(payload: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        ranks = payload.get("ReplayDataModule", {}).get("ranks", [])
        segments = [segment for one in ranks for segment in one["replay"]]
        if all(isinstance(segment[key], str) for segment in segments for key in ("name", "sha256")):
            return segments
    except (AttributeError, KeyError, TypeError):
        pass
    raise CheckpointError("the checkpoint's list of replay segments is damaged")


def folder_of_segments(payload: dict[str, Any], path: Path) -> Path:
    """The ``checkpoints`` folder of the run that wrote the checkpoint at ``path``, where its segments are.

    A checkpoint of Lightning's own callbacks may lie elsewhere in the run's folder, or outside.
    """
    names = [segment["name"] for segment in _segments_of(payload)]
    above = [parent / "checkpoints" for parent in path.resolve().parents]
    for folder in [path.parent, *above, Path(payload["config"]["run_dir"] or ".") / "checkpoints"]:
        if all(_segment_path(folder, name).is_file() for name in names):
            return folder
    return path.parent


def verify_segments(payload: dict[str, Any], folder: Path) -> None:
    """Every segment that a manifest names is there and unchanged.

    Raises:
        CheckpointError: one is missing or differs.
    """
    for segment in _segments_of(payload):
        path = _segment_path(folder, segment["name"])
        if not path.is_file():
            raise CheckpointError(f"the checkpoint names a replay segment that is gone: {path}")
        if _sha256(path) != segment["sha256"]:
            raise CheckpointError(f"the replay segment {path} does not match its checksum")


def find_last(run_dir: str | Path) -> Path:
    """The newest checkpoint of a run folder from which training can go on, damaged ones passed over.

    Raises:
        CheckpointError: there is none; the message says what was found.
    """
    folder = Path(run_dir) / "checkpoints"
    found = sorted(folder.glob("*.ckpt")) if folder.is_dir() else []
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}; name the folder of the run with run_dir=")
    candidates: list[tuple[int, float, Path]] = []
    problems: list[str] = []
    for path in found:
        try:
            payload = read_checkpoint(path)
            if "loops" in payload:
                verify_segments(payload, folder)
                candidates.append((payload["global_step"], path.stat().st_mtime, path))
        except CheckpointError as error:
            problems.append(str(error))
    if not candidates:
        raise CheckpointError(f"no checkpoint in {folder} can be resumed" + "".join(f"; {p}" for p in problems))
    return max(candidates)[2]


def remove_leftovers(run_dir: str | Path) -> None:
    """Remove what a killed process was in the middle of writing."""
    folder = Path(run_dir) / "checkpoints"
    for path in [*folder.glob(f"*{_TEMPORARY}"), *(folder / "replay").glob(f"*{_TEMPORARY}")]:
        path.unlink(missing_ok=True)


class RunCheckpointIO(CheckpointIO):
    """Lightning's checkpoint plugin, with the guarantees of this module."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _segment_path(folder: Path, name: str) -> Path:
    if not _SEGMENT_NAME.fullmatch(name):
        raise CheckpointError(f"{name!r} is not the name of a replay segment")
    return folder / "replay" / name


class SegmentStore:
    """One rank's replay on disk: append-only segments beside the checkpoints that name them.

    Args:
        folder: the run's ``checkpoints`` folder.
        rank: whose replay it is.
        source: the ``checkpoints`` folder that a resumed run's segments are read from; the same one unless the run
            goes on in a new folder.
    """

    def __init__(self, folder: Path, rank: int, source: Path | None = None) -> None:
        self.folder = folder
        self.rank = rank
        self.source = source or folder
        self._segments: list[dict[str, Any]] = []
        self._named_by: dict[Path, tuple[int, set[str]]] = {}

    def save(self, replay: EpisodeReplay) -> list[dict[str, Any]]:
        """Write the episodes that no segment holds yet; returns the segments that hold what the replay holds."""
        live = [s for s in self._segments if s["last_id"] > replay.first_id]
        large = len(live)
        while large and self._is_small(live[large - 1]):
            large -= 1
        if len(live) - large >= _MERGE_AT:
            live = live[:large]
        written_to = live[-1]["last_id"] if live else replay.first_id
        while replay.next_id > written_to:
            live.append(self._write(replay, written_to, replay.last_within(written_to, _SEGMENT_BYTES)))
            written_to = live[-1]["last_id"]
        self._segments = live
        return [dict(s, oldest_id=replay.first_id) for s in live]

    def _is_small(self, segment: dict[str, Any]) -> bool:
        return _segment_path(self.folder, segment["name"]).stat().st_size < _SEGMENT_BYTES // 2

    def _write(self, replay: EpisodeReplay, first_id: int, last_id: int) -> dict[str, Any]:
        temporary = self.folder / "replay" / f"rank{self.rank}-{first_id}-{last_id}.pt"
        _save_durably(replay.export(first_id, last_id), temporary)
        digest = _sha256(temporary)
        name = f"replay-rank{self.rank}-{first_id}-{last_id}-{digest[:16]}.pt"
        os.replace(temporary, temporary.with_name(name))
        _fsync_folder(temporary.parent)
        return {"name": name, "sha256": digest, "first_id": first_id, "last_id": last_id}

    def load(self, replay: EpisodeReplay, segments: list[dict[str, Any]]) -> None:
        """Fill an empty replay from the segments of a manifest, each verified first."""
        for segment in segments:
            path = _segment_path(self.source, segment["name"])
            if not path.is_file() or _sha256(path) != segment["sha256"]:
                raise CheckpointError(f"the replay segment {path} is missing or does not match its checksum")
            replay.restore(segment["first_id"], _load_plain(path), segment["oldest_id"])
        if self.source == self.folder:
            self._segments = [{k: v for k, v in s.items() if k != "oldest_id"} for s in segments]

    def collect_garbage(self) -> None:
        """Remove this rank's segments that no checkpoint of the run names; call it when all have been written."""
        named = {segment["name"] for segment in self._segments}
        seen: dict[Path, tuple[int, set[str]]] = {}
        for path in self.folder.parent.rglob("*.ckpt"):
            try:
                stamp = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            known = self._named_by.get(path)
            if known is None or known[0] != stamp:
                try:
                    names = {segment["name"] for segment in _segments_of(read_checkpoint(path))}
                except CheckpointError:
                    return  # an unreadable checkpoint may name anything: keep everything
                known = (stamp, names)
            seen[path] = known
            named |= known[1]
        self._named_by = seen
        for path in (self.folder / "replay").glob("*.pt"):
            ours = path.name.startswith((f"replay-rank{self.rank}-", f"rank{self.rank}-"))
            if ours and path.name not in named:
                path.unlink(missing_ok=True)
