"""Keep a rank's replay on disk, in immutable segment files that checkpoints name and hash."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from qmix_lightning.checkpoint.compatibility import upgrade_segment
from qmix_lightning.checkpoint.files import fsync_folder, load_plain, read_checkpoint, save_durably
from qmix_lightning.errors import CheckpointError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.runtime.kill_points import reached

__all__ = ["SegmentStore", "folder_of_segments", "verify_segments"]


_SEGMENT_NAME = re.compile(r"replay-rank\d+-\d+-\d+-[0-9a-f]{16}\.pt")


_MERGE_AT = 32
"""Number of small segments at which they are written again as few large ones."""


_SEGMENT_BYTES = 1 << 26
"""Largest segment, unless one episode is larger: it is in host memory as a whole when it is written or read."""


def _segments_of(payload: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        ranks = payload.get("ReplayDataModule", {}).get("ranks", [])
        segments = [segment for one in ranks for segment in one["replay"]]
        named = all(isinstance(segment[key], str) for segment in segments for key in ("name", "sha256"))
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError("the checkpoint's list of replay segments is damaged") from error
    if not named:
        raise CheckpointError("the checkpoint's list of replay segments is damaged")
    return segments


def folder_of_segments(payload: dict[str, Any], path: Path, run_dir: Path | None = None) -> Path:
    """Return the ``checkpoints`` folder of the run that wrote the checkpoint at ``path``, where its segments are.

    A checkpoint of Lightning's own callbacks may lie elsewhere in the run's folder; if it lies outside, ``run_dir`` is
    where to look.
    """
    names = [segment["name"] for segment in _segments_of(payload)]
    around = [*path.resolve().parents, *([run_dir] if run_dir else [])]
    for folder in [path.parent, *(parent / "checkpoints" for parent in around)]:
        if all(_segment_path(folder, name).is_file() for name in names):
            return folder
    return path.parent


def verify_segments(payload: dict[str, Any], folder: Path) -> None:
    """Check that every segment that a checkpoint names is there and unchanged.

    Raises:
        CheckpointError: one is missing or differs.
    """
    for segment in _segments_of(payload):
        path = _segment_path(folder, segment["name"])
        if not path.is_file():
            raise CheckpointError(f"the checkpoint names a replay segment that is gone: {path}")
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"the replay segment {path} is a link out of the run's folder")
        if _sha256(path) != segment["sha256"]:
            raise CheckpointError(f"the replay segment {path} does not match its checksum")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _segment_path(folder: Path, name: str) -> Path:
    if not _SEGMENT_NAME.fullmatch(name):
        raise CheckpointError(f"{name!r} is not the name of a replay segment")
    return folder / "replay" / name


class SegmentStore:
    """Store of one rank's replay on disk: append-only segments beside the checkpoints that name them.

    Args:
        folder: the run's ``checkpoints`` folder.
        rank: whose replay it is.
        source: the ``checkpoints`` folder that a resumed run's segments are read from; the same one unless the run
            continues in a new folder.
        verified: :func:`verify_segments` has seen the segments of ``source``, which are not hashed again.
    """

    def __init__(self, folder: Path, rank: int, source: Path | None = None, *, verified: bool = False) -> None:
        self.folder = folder
        self.rank = rank
        self.source = source or folder
        self._verified = verified
        self._segments: list[dict[str, Any]] = []
        self._named_by: dict[tuple[int, int], set[str]] = {}

    def save(self, replay: EpisodeReplay) -> list[dict[str, Any]]:
        """Write the episodes that no segment holds yet; return the segments that hold what the replay holds."""
        live = [s for s in self._segments if s["last_id"] > replay.first_id]
        large = len(live)
        while large and self._is_small(live[large - 1]):
            large -= 1
        if len(live) - large >= _MERGE_AT:
            live = live[:large]
            reached("segment.merge")
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
        reached("segment.begin")
        save_durably(replay.export(first_id, last_id), temporary)
        digest = _sha256(temporary)
        name = f"replay-rank{self.rank}-{first_id}-{last_id}-{digest[:16]}.pt"
        reached("segment.rename")
        os.replace(temporary, temporary.with_name(name))
        fsync_folder(temporary.parent)
        return {"name": name, "sha256": digest, "first_id": first_id, "last_id": last_id}

    def load(self, replay: EpisodeReplay, segments: list[dict[str, Any]]) -> None:
        """Fill an empty replay from the segments of a manifest, each verified before it is opened."""
        for segment in segments:
            path = _segment_path(self.source, segment["name"])
            if not path.is_file() or not (self._verified or _sha256(path) == segment["sha256"]):
                raise CheckpointError(f"the replay segment {path} is missing or does not match its checksum")
            columns = upgrade_segment(load_plain(path))
            held = columns.get("lengths") if isinstance(columns, dict) else None
            if not isinstance(held, Tensor) or held.shape != (segment["last_id"] - segment["first_id"],):
                raise CheckpointError(f"{path} does not hold the episodes that the checkpoint says")
            try:
                replay.restore(segment["first_id"], columns, segment["oldest_id"])
            except CheckpointError as error:
                raise CheckpointError(f"{error} ({path})") from None
        if self.source == self.folder:
            self._segments = [{k: v for k, v in s.items() if k != "oldest_id"} for s in segments]

    def collect_garbage(self) -> None:
        """Remove this rank's segments that no checkpoint of the run names; call it when all have been written."""
        named = {segment["name"] for segment in self._segments}
        seen: dict[tuple[int, int], set[str]] = {}
        for path in self.folder.parent.rglob("*.ckpt"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            file = (status.st_ino, status.st_mtime_ns)  # not the path: previous.ckpt is the file that last.ckpt was
            names = self._named_by.get(file)
            if names is None:
                try:
                    names = {segment["name"] for segment in _segments_of(read_checkpoint(path))}
                except CheckpointError:
                    return  # an unreadable checkpoint may name anything: keep everything
            seen[file] = names
            named |= names
        self._named_by = seen
        for path in (self.folder / "replay").glob("*.pt"):
            of_this_rank = path.name.startswith((f"replay-rank{self.rank}-", f"rank{self.rank}-"))
            if of_this_rank and path.name not in named:
                reached("segment.remove")
                path.unlink(missing_ok=True)
