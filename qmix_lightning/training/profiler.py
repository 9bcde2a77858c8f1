"""Replace Lightning's profiler when nothing is profiled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pytorch_lightning.profilers import PassThroughProfiler

__all__ = ["NoProfiler"]

_NOTHING: AbstractContextManager[Any] = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Profiler that measures nothing.

    Lightning's own measures nothing either, but makes a generator for each of sixty hooks of an update.
    """

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _NOTHING
