"""Draw keyed random numbers: every one is a pure function of what it is for.

A stream that is consumed depends on everything that consumed it before: the number of environments, the order in which
they end, where a run was interrupted. A keyed draw depends on its key only, so nothing of it needs saving, a resumed
run repeats it, and backends that step in another order collect the same episodes.

A key is derived from integers (seed, rank, slot, episode, purpose) with the SplitMix64 finaliser (Steele et al. 2014),
vectorised over numpy ``uint64``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["EpisodeKeys", "Purpose", "StepDraws", "derive_key", "fold", "to_seed", "uniform"]

_MASK = 0xFFFFFFFFFFFFFFFF
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S40 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(40)

Keys = NDArray[np.uint64]


class Purpose:
    """The purposes of draws; two purposes never share numbers. Values are part of the checkpoint format."""

    TRAIN_RESET = 1
    EVAL_RESET = 2
    EXPLORE = 3
    SAMPLE = 4
    INIT = 5
    ROUND = 6
    LAST_ACTION = 7
    OPPONENTS = 8


def _finalise(z: Keys) -> Keys:
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


def derive_key(*parts: int | NDArray[np.integer]) -> Keys:
    """Return one key for each broadcast combination of ``parts`` (integers, or integer arrays)."""
    key = np.zeros((1,), np.uint64)
    for part in parts:
        key = fold(key, np.array([part & _MASK], np.uint64) if isinstance(part, int) else part.astype(np.uint64))
    return key


def fold(keys: Keys, part: Keys) -> Keys:
    """Return ``keys`` with one more part folded in."""
    return _finalise((keys ^ _finalise(part + _GOLDEN)) + _GOLDEN)


def uniform(keys: Keys, n: int) -> NDArray[np.float32]:
    """Return ``n`` numbers in [0, 1) for each key: shape ``[*keys.shape, n]``, float32 with 24 random bits."""
    counters = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
    bits = _finalise(keys[..., None] + counters)
    return (bits >> _S40).astype(np.float32) * np.float32(2.0**-24)


def to_seed(keys: Keys) -> NDArray[np.int64]:
    """Return one integer in [0, 2**31) for each key: the range that every environment's ``seed`` accepts."""
    return (_finalise(keys + _GOLDEN) >> np.uint64(33)).astype(np.int64)


class EpisodeKeys:
    """The keys ``fold(keys, episode)`` of episodes that go on side by side, derived for many episodes in advance.

    Args:
        keys: ``[P, E]``.
        block: episodes whose keys are derived at once.
    """

    def __init__(self, keys: Keys, block: int = 16) -> None:
        self._keys = keys
        self._ahead = np.arange(block)
        self._index = np.arange(keys.shape[1])
        self._first = np.full(keys.shape[1], -block - 1)  # before any episode
        self._table = np.zeros((*keys.shape, block), np.uint64)

    def __call__(self, episode: NDArray[np.int64]) -> Keys:
        """Return the keys ``[P, K, E]`` for ``episode [K, E]``, of which the first row has each column's smallest."""
        offset = episode - self._first
        if offset.min() < 0 or offset.max() >= len(self._ahead):
            stale = ((offset < 0) | (offset >= len(self._ahead))).any(0)
            self._first[stale] = episode[0, stale]
            numbers = self._first[stale, None] + self._ahead  # [E', block]
            self._table[:, stale] = fold(self._keys[:, stale, None], numbers.astype(np.uint64))
            offset = episode - self._first
        return self._table[:, self._index, offset]


class StepDraws:
    """Uniform numbers of every step of episodes that go on side by side, computed for many steps in advance.

    ``draws(keys, t)`` is ``uniform(fold(keys, t), n)`` in another shape; as numpy's cost is in the calls, a block of
    steps costs little more than one. Environments end at different times, so the first steps of the episodes that
    follow are computed with the others: an episode that begins costs no call either.

    Args:
        num: episodes side by side, ``E``.
        shape: of the numbers of one step; ``n`` is their count.
        block: steps computed at once.
    """

    def __init__(self, num: int, *shape: int, block: int = 16) -> None:
        self._steps = np.arange(block, dtype=np.uint64)
        self._index = np.arange(num)
        # Of the present episodes and of those that follow: the numbers of these keys from these steps on.
        self._keys = np.zeros((2, num), np.uint64)
        self._first = np.full(num, -block - 1)
        self._block = np.zeros((2, num, block, *shape), np.float32)
        self._seen: Keys | None = None  # the keys of the last call: while they are the same object, time alone counts

    def __call__(self, keys: Keys, t: NDArray[np.int64], following: Keys | None = None) -> NDArray[np.float32]:
        """Return ``[E, *shape]`` for steps ``t [E]`` of the episodes ``keys [E]``, an array that is never written to.

        Whatever ``following [E]`` is, the numbers are the same; they come sooner if it is what ``keys`` will be after
        the end of each episode.
        """
        known = keys is self._seen
        if not known:
            begun = (self._keys[0] != keys) & (self._keys[1] == keys)
            self._keys[0, begun], self._first[begun] = keys[begun], 0
            self._block[0, begun] = self._block[1, begun]
            self._seen = keys
            known = bool((self._keys[0] == keys).all())
        offset = t - self._first
        if not known or offset.max() >= len(self._steps) or offset.min() < 0:
            self._keys[0], self._first = keys, t.copy()
            self._keys[1] = keys if following is None else following
            steps = np.stack([t, np.zeros_like(t)]).astype(np.uint64)[..., None] + self._steps  # [2, E, block]
            numbers = uniform(fold(self._keys[..., None], steps), math.prod(self._block.shape[3:]))
            self._block = numbers.reshape(self._block.shape)
            offset = t - self._first
        return self._block[0, self._index, offset]
