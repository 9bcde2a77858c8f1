"""Act for a few agents in numpy: where products are tiny, calls are the cost, and numpy's cost a third of torch's.

The same values as the torch functions of :mod:`qmix_lightning.rollout.inference`, up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.agents.base import AgentState
from qmix_lightning.rollout.inference import ActFunction, FeedForwardStep, FirstLayer, RecurrentStep

__all__ = ["NumpyFeedForward", "NumpyRecurrent", "to_numpy_inference"]

Array = NDArray[np.float32]

_MOST_PRODUCTS = 200_000
"""Multiplications of one layer up to which numpy is used: well below where its BLAS would start threads of its own."""


def to_numpy_inference(act_function: ActFunction, rows: int) -> ActFunction:
    """Return ``act_function`` in numpy where a step of ``rows`` agents is worth it, else as it is."""
    if not isinstance(act_function, FeedForwardStep | RecurrentStep) or not act_function.plain:
        return act_function
    weights = [act_function.first.table[:1], act_function.head[0]]
    weights += [act_function.hidden[0]] if isinstance(act_function, FeedForwardStep) else act_function.gates[:2]
    weights += [] if act_function.first.weight is None else [act_function.first.weight]
    if any(w.device.type != "cpu" or w.dtype != torch.float32 or rows * w.numel() > _MOST_PRODUCTS for w in weights):
        return act_function
    return NumpyFeedForward(act_function) if isinstance(act_function, FeedForwardStep) else NumpyRecurrent(act_function)


class _Dense(NamedTuple):
    """A linear layer: ``weight [in, out]`` contiguous, ``bias [out]``."""

    weight: Array
    bias: Array

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> _Dense:
        """Create the layer from torch's ``weight [out, in]``."""
        return cls(weight.t().contiguous().numpy(), bias.contiguous().numpy())

    def __call__(self, x: Array) -> Array:
        out = np.dot(x, self.weight)
        out += self.bias
        return out


class _Lookup:
    """The first layer, in which last actions and identities are rows of a table, and its ReLU."""

    def __init__(self, layer: FirstLayer) -> None:
        self._weight = None if layer.weight is None else layer.weight.numpy()
        self._table, self._first_row, self._has_actions = (
            layer.table.numpy(),
            layer.first_row.numpy(),
            layer.has_actions,
        )

    def __call__(self, obs: Tensor, last_action: Tensor) -> Array:
        """Return the features ``[B * N, H]`` of ``obs [B, N, O]`` and ``last_action [B, N]``."""
        last = last_action.numpy()
        rows = self._first_row + last if self._has_actions else np.broadcast_to(self._first_row, last.shape)
        hidden = self._table[rows.reshape(-1)]
        if self._weight is not None:
            hidden += np.dot(obs.numpy().reshape(hidden.shape[0], -1), self._weight)
        return np.maximum(hidden, 0.0, out=hidden)


_DIVERGING = np.errstate(over="ignore", invalid="ignore")  # the run says so itself, once


class NumpyFeedForward:
    """The step of a feed-forward agent in numpy: first layer, hidden layer, head."""

    def __init__(self, step: FeedForwardStep) -> None:
        self._first, self._hidden, self._head = _Lookup(step.first), _Dense.of(*step.hidden), _Dense.of(*step.head)

    @_DIVERGING
    def __call__(self, obs: Tensor, last_action: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        hidden = self._hidden(self._first(obs, last_action))
        q = self._head(np.maximum(hidden, 0.0, out=hidden))
        return torch.from_numpy(q.reshape(*last_action.shape, -1)), state


class NumpyRecurrent:
    """The step of a recurrent agent in numpy: first layer, GRU cell (gates in the order reset, update, new), head."""

    def __init__(self, step: RecurrentStep) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh = step.gates
        self._first, self._head = _Lookup(step.first), _Dense.of(*step.head)
        self._from_input, self._from_memory = _Dense.of(weight_ih, bias_ih), _Dense.of(weight_hh, bias_hh)

    @_DIVERGING
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
