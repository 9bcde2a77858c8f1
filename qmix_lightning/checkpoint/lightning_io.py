"""Let Lightning read and write checkpoints with this package's functions; apart, since it imports Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO

from qmix_lightning.checkpoint.files import read_checkpoint, write_checkpoint
from qmix_lightning.checkpoint.resume import Resumed

__all__ = ["RunCheckpointIO"]


class RunCheckpointIO(CheckpointIO):
    """Lightning plugin that reads and writes checkpoints as this package does.

    Args:
        resumed: the checkpoint that the run goes on from: it has been read, and is not read again.
    """

    def __init__(self, resumed: Resumed | None = None) -> None:
        self._resumed = resumed

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if self._resumed is not None and Path(path) == self._resumed.path:
            return self._resumed.manifest.payload
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
