"""Find where an environment's error comes from: the user's file and line, in one short text."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["is_fault", "location_of", "raised_at", "traceback_of"]

_PACKAGE = __name__.partition(".")[0]
_SHIPPED_ENVIRONMENTS = f"{_PACKAGE}.envs"
_NOT_THE_USERS = {*getattr(sys, "stdlib_module_names", ()), "numpy", "torch"}
_LONGEST_TRACEBACK = 20_000


def _is_ours(frame: FrameType) -> bool:
    """Return whether this package's own code runs there; the environments that it ships are a user's like others."""
    module = str(frame.f_globals.get("__name__"))
    return module.partition(".")[0] == _PACKAGE and not module.startswith(_SHIPPED_ENVIRONMENTS)


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of a traceback with their lines, the innermost last."""
    found = error.__traceback__
    while found is not None:
        yield found.tb_frame, found.tb_lineno
        found = found.tb_next


def is_fault(error: BaseException) -> bool:
    """Return whether a simulator raised this by itself, and no signal that asks the process to end.

    A simulator that calls ``sys.exit`` must not end the run, with status 0 even; the handlers of SIGTERM raise
    ``SystemExit`` too, wherever the process is at that moment.
    """
    if isinstance(error, SystemExit):
        innermost = None
        for frame, _ in _frames(error):
            innermost = frame
        return innermost is not None and not _is_ours(innermost)
    return not isinstance(error, (KeyboardInterrupt, GeneratorExit))


def raised_at(error: BaseException) -> str | None:
    """Return ``file:line`` of the last frame that is not this package's, the standard library's, numpy's or torch's."""
    found = None
    for frame, line in _frames(error):
        module = str(frame.f_globals.get("__name__")).partition(".")[0]
        if not _is_ours(frame) and module not in _NOT_THE_USERS:
            found = f"{_shown(frame.f_code.co_filename)}:{line}"
    return found


def location_of(env: Any, method: str) -> str | None:
    """Return ``file:line`` where a method of the environment is defined, of the one inside its wrappers."""
    env = getattr(env, "unwrapped", None) or env
    try:
        function = inspect.unwrap(getattr(type(env), method))
        code = function.__code__
    except (AttributeError, ValueError):  # a method in C, or made while running
        return None
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}"


def traceback_of(error: BaseException) -> str:
    """Return the end of the whole traceback as text."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))[-_LONGEST_TRACEBACK:]


def _shown(path: str) -> str:
    try:
        here = os.getcwd() + os.sep
    except OSError:  # the simulator has changed to a folder that is gone
        return path
    return path[len(here) :] if path.startswith(here) else path
