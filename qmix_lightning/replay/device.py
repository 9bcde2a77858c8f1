"""Hold the replay's large part, observations and states, on an accelerator, and choose whether it goes there.

Steps stay in host memory: rewards, actions and masks are a few percent of the bytes, and the host must know which
agents are alive, to say what there is to compute. So it also knows where every row lies: what is drawn is gathered on
the device, which receives the rows' positions and from which nothing is requested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.replay.layout import host_dtype
from qmix_lightning.replay.storage import RowQueue
from qmix_lightning.runtime.text import shown_size
from qmix_lightning.runtime.transfer import sent

__all__ = ["DeviceRows", "ReplayDevice", "choose_replay_device", "free_memory"]

_SHARE = 0.5
"""The part of an accelerator's free bytes that ``auto`` gives to the replay: networks, gradients, and a batch with all
that its backward pass keeps need the rest."""


class DeviceRows(RowQueue):
    """A :class:`RowQueue` of floats whose rows lie on a device; which row lies where is known to the host.

    The bytes for ``expected_rows`` are allocated at once, so that a run that begins has them; more rows are held by
    moving all.

    Args:
        width: numbers of a row.
        dtype: of a number as stored.
        expected_rows: how many rows will be held.
        device: where.
    """

    def __init__(self, width: int, dtype: torch.dtype, *, expected_rows: int, device: torch.device) -> None:
        self.device = device
        self._stored = dtype
        # The host's view of the same bytes: numpy has no bfloat16.
        super().__init__(width, host_dtype(dtype), expected_rows=expected_rows)
        rows = 1 + (-(-expected_rows // self.chunk_rows) + 2) * self.chunk_rows if expected_rows else 1
        self._held = self._new(rows)

    def _new(self, rows: int) -> Tensor:
        try:
            return torch.zeros(rows, self.width, dtype=self._stored, device=self.device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            size = rows * self.row_bytes
            raise RunError(
                f"the replay needs {size:,} bytes on {self.device}, which has no room for them: set replay.device=cpu"
            ) from error

    def _grow(self, chunks: int) -> None:
        needed = 1 + chunks * self.chunk_rows
        if needed > len(self._held):
            old, self._held = self._held, self._new(max(needed, len(self._held) * 9 // 8))
            self._held[: len(old)] = old

    def _write(self, place: int, rows: NDArray[Any]) -> None:
        values = torch.from_numpy(np.ascontiguousarray(rows)).view(self._stored)
        self._held[place : place + len(rows)].copy_(sent(values, self.device))

    def _rows_at(self, index: NDArray[np.int64]) -> Tensor:
        place = np.where(index < 0, 0, self._locate(index)).reshape(-1)
        return self._held.index_select(0, sent(torch.from_numpy(place), self.device))

    def gather(self, index: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return copies in host memory, as :meth:`RowQueue.gather` does; this waits for the device."""
        assert out is None, "rows of a device are read into a buffer of their own"
        rows = self._rows_at(index).cpu()
        plain = rows.view(torch.int16) if self._stored in (torch.float16, torch.bfloat16) else rows
        return plain.numpy().reshape(*index.shape, self.width)

    def floats(self, index: NDArray[np.int64]) -> Tensor:
        """Return the rows of ``index [...]`` as float32 on the device, ``[index.size, width]``; nobody waits."""
        return self._rows_at(index).float()


@dataclass(frozen=True)
class ReplayDevice:
    """The choice of where a rank's observations and states are.

    Attributes:
        device: the device that holds them; ``None``: host memory, or a file.
        line: what to print for the user; ``None``: nothing was to be chosen.
    """

    device: torch.device | None
    line: str | None = None


def choose_replay_device(
    setting: str, *, accelerator: torch.device, in_file: bool, need: int, free: int | None, growing: bool
) -> ReplayDevice:
    """Choose where observations and states go: to the device, to host memory or to a file.

    Args:
        setting: ``auto``, ``cpu`` or ``device``.
        accelerator: where this rank's networks are.
        in_file: the replay is to be memory-mapped.
        need: bytes of a full replay's observations and states, of this rank.
        free: bytes that are free on the accelerator; ``None``: not known.
        growing: the number of rows is not known beforehand, and making room for more needs both rooms for a moment.

    Raises:
        ConfigurationError: they were to be on the device and cannot be.
    """
    if setting == "device" and in_file:
        raise ConfigurationError("replay.device=device and replay.storage=memmap exclude each other: choose one")
    on_gpu = accelerator.type == "cuda"
    if setting == "cpu" or in_file or (setting == "auto" and not on_gpu):
        why = "replay.storage=memmap" if in_file else "replay.device=cpu"
        return ReplayDevice(None, _from_host(accelerator, why) if on_gpu else None)
    peak = need * 2 if growing else need
    if free is not None:
        allowed = int(_SHARE * free) if setting == "auto" else free
        if peak > allowed:
            why = f"{shown_size(peak)} of observations and states, {shown_size(free)} free on {accelerator}"
            if setting == "device":
                raise ConfigurationError(
                    f"replay.device=device does not fit: {why}; set replay.device=auto, replay.dtype=float16 or a "
                    "smaller replay.capacity"
                )
            return ReplayDevice(None, _from_host(accelerator, f"{why}, of which auto takes half at most"))
    room = "" if free is None else f", {shown_size(free)} free there"
    return ReplayDevice(
        accelerator, f"replay on {accelerator}: at most {shown_size(need)} of observations and states{room}"
    )


def _from_host(accelerator: torch.device, why: str) -> str:
    return f"replay in host memory, copied to {accelerator} from page-locked memory meanwhile ({why})"


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a GPU; ``None`` elsewhere."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
