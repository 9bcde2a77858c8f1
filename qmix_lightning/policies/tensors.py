"""Read and write files of tensors (safetensors); sizes are looked at before memory is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from qmix_lightning.errors import CheckpointError
from qmix_lightning.replay.memory_estimate import available_memory
from qmix_lightning.runtime.regular_files import read_regular
from qmix_lightning.runtime.text import error_line, printable

__all__ = ["describe", "read_tensors", "write_tensors"]

MOST_BYTES = 4 * 2**30


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name."""
    path.write_bytes(safetensors.torch.save({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}))


def describe(path: Path) -> dict[str, Any]:
    """Return a file's bytes and SHA-256, as ``policy.json`` names it."""
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def read_tensors(path: Path, described: object, check: Callable[[dict[str, Tensor]], None]) -> dict[str, Tensor]:
    """Return the tensors of a file.

    Args:
        path: of the file.
        described: its bytes and SHA-256, from ``policy.json``.
        check: raises if tensors of these shapes, which have no memory yet, are not what is wanted.

    Raises:
        CheckpointError: it is missing, damaged, or another file than is described.
    """
    if not isinstance(described, Mapping) or not isinstance(size := described.get("bytes"), int):
        raise CheckpointError(f"{path} is not described in its folder")
    room = available_memory()
    if not 0 <= size <= MOST_BYTES or (room is not None and 2 * size > room):
        raise CheckpointError(f"{path} was refused: {size:,} bytes are more than this machine can take")
    content = read_regular(path, size)
    if len(content) != size or hashlib.sha256(content).hexdigest() != described.get("sha256"):
        raise CheckpointError(f"{path} is damaged: it is not what its folder says")
    try:
        check(_shapes(path))
        return safetensors.torch.load(content)
    except CheckpointError:
        raise
    except Exception as error:  # made-up contents raise anything
        raise CheckpointError(f"{path} cannot be read as tensors: {printable(error_line(error), 200)}") from error


def _shapes(path: Path) -> dict[str, Tensor]:
    """Return tensors of the file's shapes and without memory."""
    with safetensors.safe_open(path, "pt") as file:
        names = list(file.keys())
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
