"""Look at a picture that an environment drew."""

from __future__ import annotations

import numpy as np

from qmix_lightning.errors import ConfigurationError

__all__ = ["read_frame"]

LARGEST_FRAME = 32 * 2**20
"""Bytes."""


def read_frame(value: object, what: str) -> np.ndarray:
    """Return what ``render()`` gave as ``[height, width, 3]`` uint8, in one piece.

    Raises:
        ConfigurationError: it drew nothing, or no picture in colours.
    """
    if value is None:
        raise ConfigurationError(f"{what} drew nothing: give it the setting render_mode=rgb_array, if it has one")
    frame = np.asarray(value)
    if frame.ndim != 3 or frame.shape[2] not in (3, 4) or frame.dtype.kind not in "ui":
        raise ConfigurationError(
            f"{what}: render() gave {frame.dtype} {list(frame.shape)}, a picture [height, width, 3] of bytes is needed"
        )
    if frame.size > LARGEST_FRAME:
        raise ConfigurationError(f"{what}: render() gave a picture of {frame.shape[1]} x {frame.shape[0]}: too large")
    return np.ascontiguousarray(frame[..., :3], np.uint8)
