"""Acting for a few agents in numpy: where products are tiny, calls are the cost, and numpy's cost a third of torch's.

For some more agents torch computes the products, on the threads that it was given, and numpy the rest: its ``tanh`` of
96 rows of 64 takes 4 microseconds, torch's 16.

The same values as the torch functions of :mod:`qmix_lightning.agents.inference`, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.agents.base import AgentState
from qmix_lightning.agents.inference import FeedForwardStep, FirstLayer, Forward, RecurrentStep

__all__ = ["SmallFeedForward", "SmallRecurrent", "in_numpy"]

Array = NDArray[np.float32]
Product = Callable[[Array, Array, Array], Array]

_MOST_PRODUCTS = 200_000
"""Multiplications of one layer up to which numpy is used: well below where its BLAS would start threads of its own."""
_MOST_MIXED_PRODUCTS = 4_000_000
"""Up to which torch computes the products only: beyond, its threads are worth it for the rest too."""


def in_numpy(forward: Forward, rows: int) -> Forward:
    """``forward`` in numpy where a step of ``rows`` agents is worth it, else as it is."""
    if not isinstance(forward, FeedForwardStep | RecurrentStep) or not forward.plain:
        return forward
    weights = [forward.first.table[:1], forward.head[0]]
    weights += [forward.hidden[0]] if isinstance(forward, FeedForwardStep) else forward.gates[:2]
    weights += [] if forward.first.weight is None else [forward.first.weight]
    if any(w.device.type != "cpu" or w.dtype != torch.float32 for w in weights):
        return forward
    most = rows * max(w.numel() for w in weights)
    if most > _MOST_MIXED_PRODUCTS:
        return forward
    product = _in_numpy if most <= _MOST_PRODUCTS else _in_torch
    if isinstance(forward, FeedForwardStep):
        return SmallFeedForward(forward, product)
    return SmallRecurrent(forward, product)


def _in_numpy(x: Array, weight: Array, add: Array) -> Array:
    """``x @ weight + add``."""
    out = np.dot(x, weight)
    out += add
    return out


def _in_torch(x: Array, weight: Array, add: Array) -> Array:
    """``x @ weight + add``."""
    return torch.addmm(torch.from_numpy(add), torch.from_numpy(x), torch.from_numpy(weight)).numpy()


class _Dense(NamedTuple):
    """A linear layer: ``weight [in, out]`` contiguous, ``bias [out]``."""

    weight: Array
    bias: Array
    product: Product

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, product: Product) -> _Dense:
        """From torch's ``weight [out, in]``."""
        return cls(weight.t().contiguous().numpy(), bias.contiguous().numpy(), product)

    def __call__(self, x: Array) -> Array:
        return self.product(x, self.weight, self.bias)


class _Lookup:
    """The first layer, whose last actions and identities are rows of a table, and its ReLU."""

    def __init__(self, layer: FirstLayer, product: Product) -> None:
        self._product = product
        self._weight = None if layer.weight is None else layer.weight.numpy()
        self._table, self._first_row, self._has_actions = (
            layer.table.numpy(),
            layer.first_row.numpy(),
            layer.has_actions,
        )

    def __call__(self, obs: Tensor, last_action: Tensor) -> Array:
        """``obs [B, N, O]`` and ``last_action [B, N]`` to ``[B * N, H]``."""
        last = last_action.numpy()
        rows = self._first_row + last if self._has_actions else np.broadcast_to(self._first_row, last.shape)
        hidden = self._table[rows.reshape(-1)]
        if self._weight is not None:
            hidden = self._product(obs.numpy().reshape(hidden.shape[0], -1), self._weight, hidden)
        return np.maximum(hidden, 0.0, out=hidden)


class SmallFeedForward:
    """First layer, hidden layer, head."""

    def __init__(self, step: FeedForwardStep, product: Product) -> None:
        self._first = _Lookup(step.first, product)
        self._hidden, self._head = _Dense.of(*step.hidden, product), _Dense.of(*step.head, product)

    def __call__(self, obs: Tensor, last_action: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        hidden = self._hidden(self._first(obs, last_action))
        q = self._head(np.maximum(hidden, 0.0, out=hidden))
        return torch.from_numpy(q.reshape(*last_action.shape, -1)), state


class SmallRecurrent:
    """First layer, GRU cell (gates in the order reset, update, new), head."""

    def __init__(self, step: RecurrentStep, product: Product) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh = step.gates
        self._first, self._head = _Lookup(step.first, product), _Dense.of(*step.head, product)
        self._from_input = _Dense.of(weight_ih, bias_ih, product)
        self._from_memory = _Dense.of(weight_hh, bias_hh, product)

    def __call__(self, obs: Tensor, last_action: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        x = self._first(obs, last_action)
        size = x.shape[1]
        memory = state[0].numpy().reshape(x.shape)
        gates, own = self._from_input(x), self._from_memory(memory)
        half = np.float32(0.5)
        # sigmoid(x) = (1 + tanh(x / 2)) / 2, which cannot overflow.
        both = gates[:, : 2 * size] + own[:, : 2 * size]
        both *= half
        np.tanh(both, out=both)
        both *= half
        both += half
        new = both[:, :size] * own[:, 2 * size :]
        new += gates[:, 2 * size :]
        np.tanh(new, out=new)
        memory = memory - new
        memory *= both[:, size:]
        memory += new
        q = self._head(memory)
        shape = last_action.shape
        return torch.from_numpy(q.reshape(*shape, -1)), (torch.from_numpy(memory.reshape(*shape, -1)),)
