"""Acting for a few agents in numpy: where products are tiny, the calls are the cost, and numpy's cost a third of torch's.

The same values as the torch functions of :mod:`qmix_lightning.agents.inference`, up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Dense", "Lookup", "SmallFeedForward", "SmallRecurrent", "is_small"]

Array = NDArray[np.float32]
State = tuple[Tensor, ...]

_MOST_PRODUCTS = 200_000
"""Multiplications of one layer up to which numpy is used: well below where its BLAS would start threads of its own."""


def is_small(rows: int, *layers: Tensor) -> bool:
    """Whether a step of ``rows`` agents through layers of these weights is worth doing in numpy."""
    on_cpu = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in layers)
    return on_cpu and all(rows * w.numel() <= _MOST_PRODUCTS for w in layers)


class Dense(NamedTuple):
    """A linear layer: ``weight [in, out]`` contiguous, ``bias [out]``."""

    weight: Array
    bias: Array

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Dense:
        """From torch's ``weight [out, in]``."""
        return cls(weight.t().contiguous().numpy(), bias.contiguous().numpy())

    def __call__(self, x: Array) -> Array:
        out = np.dot(x, self.weight)
        out += self.bias
        return out


class Lookup(NamedTuple):
    """A first layer whose last actions and identities are rows of a table; see ``inference.py``.

    Attributes:
        weight: of the observation, ``[O, H]``; ``None`` if it is not used.
        table: ``[N * (1 + A) or N, H]``.
        first_row: of each agent, ``[N]``.
        has_actions: whether the last action picks the row.
    """

    weight: Array | None
    table: Array
    first_row: NDArray[np.int64]
    has_actions: bool

    def __call__(self, obs: Tensor, last_action: Tensor) -> Array:
        """``obs [B, N, O]`` and ``last_action [B, N]`` to ``[B * N, H]``, after the ReLU."""
        last = last_action.numpy()
        rows = self.first_row + last if self.has_actions else np.broadcast_to(self.first_row, last.shape)
        hidden = self.table[rows.reshape(-1)]
        if self.weight is not None:
            hidden += np.dot(obs.numpy().reshape(hidden.shape[0], -1), self.weight)
        return np.maximum(hidden, 0.0, out=hidden)


class SmallFeedForward:
    """First layer, hidden layer, head."""

    def __init__(self, first: Lookup, hidden: Dense, head: Dense) -> None:
        self._first, self._hidden, self._head = first, hidden, head

    def __call__(self, obs: Tensor, last_action: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = self._hidden(self._first(obs, last_action))
        q = self._head(np.maximum(hidden, 0.0, out=hidden))
        return torch.from_numpy(q.reshape(*last_action.shape, -1)), state


class SmallRecurrent:
    """First layer, GRU cell (gates in the order reset, update, new), head."""

    def __init__(self, first: Lookup, from_input: Dense, from_memory: Dense, head: Dense) -> None:
        self._first, self._from_input, self._from_memory, self._head = first, from_input, from_memory, head

    def __call__(self, obs: Tensor, last_action: Tensor, state: State) -> tuple[Tensor, State]:
        x = self._first(obs, last_action)
        size = x.shape[1]
        memory = state[0].numpy().reshape(x.shape)
        gates, own = self._from_input(x), self._from_memory(memory)
        # sigmoid(x) = (1 + tanh(x / 2)) / 2, which cannot overflow.
        both = np.tanh((gates[:, : 2 * size] + own[:, : 2 * size]) * np.float32(0.5)) * np.float32(0.5) + np.float32(
            0.5
        )
        new = np.tanh(gates[:, 2 * size :] + both[:, :size] * own[:, 2 * size :])
        memory = new + both[:, size:] * (memory - new)
        q = self._head(memory)
        shape = last_action.shape
        return torch.from_numpy(q.reshape(*shape, -1)), (torch.from_numpy(memory.reshape(*shape, -1)),)
