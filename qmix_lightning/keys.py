"""Keyed randomness: every random number is a pure function of what it is for.

A stream that is consumed depends on everything that consumed it before: the number of environments, the order in which
they end, where a run was interrupted. A keyed draw depends on its key only, so nothing of it needs saving, a resumed
run repeats it, and backends that step in another order collect the same episodes.

A key is mixed from integers (seed, rank, slot, episode, purpose) with the SplitMix64 finaliser (Steele et al. 2014),
vectorised over numpy ``uint64``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Purpose", "StepDraws", "bounded", "fold", "mix", "uniform"]

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
    ROUND = 6
    LAST_ACTION = 7


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


class StepDraws:
    """Uniform numbers of every step of episodes that go on side by side, computed for many steps ahead.

    ``draws(keys, t)`` is ``uniform(fold(keys, t), n)`` in another shape; as numpy's cost is in the calls, a block of
    steps costs little more than one.

    Args:
        num: episodes side by side, ``E``.
        shape: of the numbers of one step; ``n`` is their count.
        block: steps computed at once, a power of two.
    """

    def __init__(self, num: int, *shape: int, block: int = 16) -> None:
        self._steps = np.arange(block, dtype=np.uint64)
        self._index = np.arange(num)
        # What the block of each episode holds: the numbers of these keys from these steps on.
        self._keys = np.zeros(num, np.uint64)
        self._first = np.full(num, -1)
        self._block = np.zeros((num, block, *shape), np.float32)
        self._seen: Keys | None = None  # the keys of the last call: while they are the same object, time alone tells

    def __call__(self, keys: Keys, t: NDArray[np.int64]) -> NDArray[np.float32]:
        """``[E, *shape]`` for the steps ``t [E]`` of the episodes ``keys [E]``, an array that is never written to."""
        offset = t - self._first
        if keys is not self._seen or offset.max() >= len(self._steps) or offset.min() < 0:
            first = t & -len(self._steps)
            stale = (self._first != first) | (self._keys != keys)
            self._first[stale], self._keys[stale] = first[stale], keys[stale]
            steps = first[stale].astype(np.uint64)[:, None] + self._steps  # [K, block]
            shape = self._block.shape[2:]
            numbers = uniform(fold(keys[stale][:, None], steps), math.prod(shape))
            self._block[stale] = numbers.reshape(*steps.shape, *shape)
            self._seen = keys
            offset = t - self._first
        return self._block[self._index, offset]
