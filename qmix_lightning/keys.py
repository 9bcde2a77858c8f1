"""Keyed randomness: every random number is a pure function of what it is for.

A stream that is consumed depends on everything that consumed it before: the number of environments, the order in which
they end, where a run was interrupted. A keyed draw depends on its key only, so nothing of it needs saving, a resumed
run repeats it, and backends that step in another order collect the same episodes.

A key is mixed from integers (seed, rank, slot, episode, purpose) with the SplitMix64 finaliser (Steele et al. 2014),
vectorised over numpy ``uint64``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Purpose", "bounded", "fold", "mix", "uniform"]

_MASK = 0xFFFFFFFFFFFFFFFF
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S40 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(40)

Keys = NDArray[np.uint64]


class Purpose:
    """What a draw is for; two purposes never share numbers. Values are part of the checkpoint format."""

    TRAIN_RESET = 1
    EVAL_RESET = 2
    EXPLORE = 3
    SAMPLE = 4
    INIT = 5


def _finalise(z: Keys) -> Keys:
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


def mix(*parts: int | NDArray[np.integer]) -> Keys:
    """One key for each broadcast combination of ``parts`` (integers, or integer arrays)."""
    key = np.zeros((1,), np.uint64)
    for part in parts:
        key = fold(key, np.array([part & _MASK], np.uint64) if isinstance(part, int) else part.astype(np.uint64))
    return key


def fold(keys: Keys, part: Keys) -> Keys:
    """``keys`` with one more part mixed in."""
    return _finalise((keys ^ _finalise(part + _GOLDEN)) + _GOLDEN)


def uniform(keys: Keys, n: int) -> NDArray[np.float32]:
    """``n`` numbers in [0, 1) for each key: shape ``[*keys.shape, n]``, float32 with 24 random bits."""
    counters = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
    bits = _finalise(keys[..., None] + counters)
    return (bits >> _S40).astype(np.float32) * np.float32(2.0**-24)


def bounded(keys: Keys) -> NDArray[np.int64]:
    """One integer in [0, 2**31) for each key: the range that every environment's ``seed`` accepts."""
    return (_finalise(keys + _GOLDEN) >> np.uint64(33)).astype(np.int64)
