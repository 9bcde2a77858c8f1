"""A tracker that writes to a file, and readers of what real trackers keep."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qmix_lightning.training.trackers.base import TrackedRun, Tracker, new_id


class FileTracker(Tracker):
    """Keeps every event of a tracker's run in ``<store>/<id>.jsonl``.

    Args:
        run: what it is told of the run.
        store: folder of the files.
        fail: what goes wrong: ``open`` or ``write``.
    """

    package = "pytorch_lightning"

    def __init__(self, run: TrackedRun, *, store: str, fail: str | None = None, tags: list[str] | None = None) -> None:
        super().__init__(run, name=None, group=None, tags=tags)
        self.store, self.fail = Path(store), fail

    def _append(self, event: dict[str, Any]) -> None:
        self.store.mkdir(exist_ok=True)
        with open(self.store / f"{self.tracker_id}.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")

    def open(self, params: Mapping[str, Any]) -> dict[str, int]:
        if self.fail == "open":
            raise OSError("nobody answers")
        self.tracker_id = self.tracker_id or new_id()
        before = events(self.store, self.tracker_id)
        self._append({"open": {"name": self.run_name, "group": self.group, "tags": self.tags}, "params": dict(params)})
        return {name: max(steps) for name, steps in steps_of(before).items()}

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        if self.fail == "write":
            raise OSError("disk full")
        self._append({"step": step, "metrics": dict(metrics)})

    def close(self, summary: Mapping[str, Any], step: int) -> None:
        self._append({"summary": dict(summary), "step": step})


def events(store: Path, tracker_id: str) -> list[dict[str, Any]]:
    """Return the events of a tracker's run."""
    file = store / f"{tracker_id}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def steps_of(found: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return the steps at which each metric was written."""
    steps: dict[str, list[int]] = {}
    for event in found:
        for name in event.get("metrics", {}):
            steps.setdefault(name, []).append(event["step"])
    return steps


def wandb_records(folder: Path) -> Iterator[Any]:
    """Yield the records of an offline run of W&B: a log of LevelDB's form, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, whole = next(folder.glob("*.wandb")).read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0:
            position += left
            continue
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
