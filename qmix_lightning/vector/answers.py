"""Read what a worker answers: it may run under any interpreter, so nothing is taken to be what it should be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.runtime.text import printable
from qmix_lightning.types import EnvSpec
from qmix_lightning.worker.buffers import Buffers, SharedBuffers
from qmix_lightning.worker.fault_tolerance import FAULT_KINDS, sum_of_squares
from qmix_lightning.worker.protocol import VERSION

__all__ = ["Introduction", "check_values", "read_fatal", "read_fault", "read_introduction"]

_LONGEST_TEXT = 4_000
_LARGEST_INTEGER = 2**31
_LARGEST_MEMORY = 2**33
"""Bytes that one environment may share with its worker."""


@dataclass(frozen=True)
class Introduction:
    """What a worker says first: of its environments, and of the Python that it runs under."""

    spec: EnvSpec
    versions: dict[str, str]
    seeded: bool
    python: str
    numpy: str


def read_introduction(answer: Any) -> Introduction:
    """Return a worker's first answer.

    Raises:
        ConfigurationError: it could not create its environments, in its own words.
        RunError: the answer is none, or asks for more memory than there could be.
    """
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        error = ConfigurationError(_text(answer["error"]))
        error.exit_status = 2 if answer.get("status") == ConfigurationError.exit_status else 1
        raise error
    try:
        if answer["protocol"] != VERSION:
            raise RunError(f"it speaks version {printable(answer['protocol'])} of the protocol, this is {VERSION}")
        _check_plain(answer)
        spec = EnvSpec.from_dict(answer["spec"])
        spec = replace(spec, agent_names=tuple(printable(name) for name in spec.agent_names))
        size = SharedBuffers(spec, 1, None).nbytes
        versions = {printable(name): printable(value) for name, value in answer["versions"].items()}
        texts = printable(answer["python"], 20), printable(answer["numpy"], 20)
        introduction = Introduction(spec, versions, bool(answer["seeded"]), *texts)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunError(f"what it says of its environments cannot be read ({printable(error)})") from error
    sizes = (spec.n_agents - 1, spec.n_actions - 1, spec.obs_dim, spec.state_dim, *spec.obs_dims, *spec.action_counts)
    if size > _LARGEST_MEMORY or min(sizes) < 0:
        raise RunError(f"the sizes that it says are none: an environment would need {size:,} bytes")
    return introduction


def _check_plain(value: object, depth: int = 0) -> None:
    """Refuse texts, numbers and containers that no description of an environment holds."""
    if depth > 6:
        raise ValueError("it is nested too deep")
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise ValueError("a text is too long")
    if isinstance(value, bool):
        return
    if isinstance(value, int) and not -_LARGEST_INTEGER < value < _LARGEST_INTEGER:
        raise ValueError("a number is too large")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for inner in value:
            _check_plain(inner, depth + 1)


def read_fault(message: Any) -> tuple[dict[str, int], str]:
    """Return the counts by kind and the last cause of faults that a worker tolerated.

    Raises:
        ConnectionError: it is no such message.
    """
    try:
        counts = {kind: int(message["counts"].get(kind, 0)) for kind in FAULT_KINDS}
        return {kind: min(max(0, number), 10**6) for kind, number in counts.items()}, _text(message["cause"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConnectionError("it sent what is no message") from error


def read_fatal(message: Any) -> tuple[str, bool, str]:
    """Return what ended a worker's environments, whether a setting is to blame, and the traceback from there.

    Raises:
        ConnectionError: it is no such message.
    """
    try:
        trace = "".join(c for c in message["traceback"] if c.isprintable() or c == "\n")[-20_000:]
        return _text(message["error"]), message["configuration"] is True, trace
    except (KeyError, TypeError) as error:
        raise ConnectionError("it sent what is no message") from error


def _text(value: object) -> str:
    return printable(value, _LONGEST_TEXT)


def check_values(buffers: Buffers, rows: np.ndarray) -> str | None:
    """Return what a worker must not have written in the ``rows`` where it stepped, if anything.

    Worker code looks at every value before it answers; memory that another interpreter writes is looked at once more.
    """
    numbers = (buffers.obs, buffers.state, buffers.reward, buffers.agent_reward)
    # Rows that were not stepped hold what was looked at before, but for those that failed.
    if not (math.isfinite(sum_of_squares(*numbers)) or all(np.isfinite(values[rows]).all() for values in numbers)):
        return "a value that is not finite"
    flags = (buffers.avail_actions, buffers.agent_mask, buffers.terminated, buffers.truncated)
    if any(values.size and values.view(np.uint8).max() > 1 for values in flags):
        return "a truth value that is neither true nor false"
    return None
