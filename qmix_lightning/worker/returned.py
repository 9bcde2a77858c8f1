"""Look at what an environment returned: numbers, truth values and masks of any type that can be meant as such.

Imports no torch. What cannot be read is an ``EnvironmentContractError``; ``what`` begins its message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.runtime.text import shortened
from qmix_lightning.worker.spaces import to_vector

__all__ = ["BOOL", "LARGEST", "missing_outcome", "no_byte", "not_five", "read_flag", "read_mask", "read_number"]

BOOL = np.dtype(np.bool_)
LARGEST = float(np.finfo(np.float32).max)
_BITS = frozenset((0, 1))


def read_number(value: Any, what: str) -> float:
    """Return a real number of any type, also as an array of one, as a float."""
    if not isinstance(value, Real):
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "biuf":
            raise EnvironmentContractError(f"{what} is {shortened(repr(value), 60)}, a number is needed")
        value = array.item()
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return float("inf")


def read_flag(value: Any, what: str) -> bool:
    """Return a truth value of any type, also as an array of one; a text is none, whatever it says."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or array.item() not in _BITS:
        raise EnvironmentContractError(f"{what} is {shortened(repr(value), 60)}, true or false is needed")
    return bool(array.item())


def read_mask(mask: Any, what: str) -> np.ndarray:
    """Return a mask of any type of numbers as a vector; numpy itself would take texts and NaN for true."""
    flat = to_vector(mask, what)
    if flat.dtype is not BOOL and not _BITS.issuperset(flat.tolist()):
        wrong = next(value for value in flat.tolist() if value not in _BITS)
        raise EnvironmentContractError(f"{what} holds {wrong}, only 0 and 1 or false and true make a mask")
    return flat


def no_byte(values: np.ndarray) -> float | None:
    """Return the first number that is not whole or not within 0 and 255; ``None``: all are bytes.

    What is not finite is passed over: that is another fault.
    """
    if values.dtype == np.uint8:
        return None
    numbers = values[np.isfinite(values)].astype(float)
    wrong = numbers[(numbers < 0) | (numbers > 255) | (numbers % 1 != 0)]
    return float(wrong[0]) if wrong.size else None


def not_five(result: Any, what: str) -> EnvironmentContractError:
    """Return the error for a step that did not return five things."""
    found = f"{len(result)} values" if isinstance(result, (tuple, list)) else shortened(result, 40)
    return EnvironmentContractError(
        f"{what}: step must return (observations, rewards, terminations, truncations, infos), not {found}"
    )


def missing_outcome(agent: Any, result: Sequence[Any], what: str) -> EnvironmentContractError:
    """Return the error for an agent that acted and lacks its reward, termination or truncation."""
    for word, values in zip(("rewards", "terminations", "truncations"), result[1:4]):
        if not isinstance(values, Mapping):
            return EnvironmentContractError(
                f"{what}: step must return {word} as a dictionary by agent, not {type(values).__name__}"
            )
        if agent not in values:
            return EnvironmentContractError(f"{what}: agent '{agent}' acted, but is not in {word}")
    return EnvironmentContractError(f"{what}: what step returned for agent '{agent}' cannot be read")
