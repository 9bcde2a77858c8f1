"""Define the base class of agent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qmix_lightning.nn.packing import Packing

__all__ = ["Agent", "AgentState", "forget_dead"]

AgentState = tuple[Tensor, ...]
"""A recurrent agent's memory: a tuple of ``[B, N, H]``; empty for one without memory."""


class Agent(nn.Module):
    """Base class of agent networks: a ``body`` that makes features, and a ``head`` that makes values of them.

    A subclass defines ``body``, ``head`` (a module), ``feature_dim`` and ``initial_state``; one that can compute a
    whole sequence faster than step by step overrides ``unroll_body``. Joint critics read the features (QTRAN).

    Attributes:
        feature_dim: ``F``, size of an agent's features.
        head: ``features [..., N, F]`` to ``q [..., N, A]``.
        columns: of the packing that ``unroll_packed`` takes, see :class:`~qmix_lightning.nn.packing.Packing`: 1 if
            all agents share one network, ``N`` if not; 0 if the agent has no such way and takes whole batches.
        memoryless: a step's features depend on that step's inputs alone, so the order of packed rows does not
            matter to it.
    """

    feature_dim: int
    head: nn.Module
    columns: int = 0
    memoryless: bool = False

    def initial_state(self, batch_size: int) -> AgentState:
        """Return the state before the first step, on the parameters' device."""
        raise NotImplementedError

    def body(self, inputs: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        """Compute one step: ``inputs [B, N, I]`` to ``features [B, N, F]`` and the next state."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        """Compute one step: ``inputs [B, N, I]`` to ``q [B, N, A]`` and the next state."""
        features, state = self.body(inputs, state)
        return self.head(features), state

    def unroll_body(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        """Compute a sequence: ``inputs [B, T, N, I]``, ``alive [B, T, N]`` bool to ``[B, T, N, F]`` and the last state.

        The memory of an agent that is not alive is cleared, so that it starts anew if it is alive again.
        """
        outputs: list[Tensor] = []
        for t in range(inputs.shape[1]):
            features, state = self.body(inputs[:, t], state)
            state = forget_dead(state, alive[:, t])
            outputs.append(features)
        return torch.stack(outputs, dim=1), state  # [B, T, N, F]

    def unroll_packed(self, inputs: Tensor, state: AgentState, packing: Packing) -> Tensor:
        """Compute the steps at which agents are alive and no others: ``inputs [P, C, I]`` to features ``[P, C, F]``.

        Equal to ``unroll_body`` wherever an agent is alive. ``state`` is that before the first step, each
        ``[B, N, H]``. Everything that is defined on ``[..., N, F]`` works on ``[..., C, F]`` too: with one column there
        is one set of parameters, which needs no agent's number.
        """
        raise NotImplementedError

    def unroll(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        """Compute a sequence as ``unroll_body`` does, to ``q [B, T, N, A]``."""
        features, state = self.unroll_body(inputs, state, alive)
        return self.head(features), state


def forget_dead(state: AgentState, alive: Tensor) -> AgentState:
    """Return ``state`` with zeros where ``alive [B, N]`` is false."""
    return tuple(torch.where(alive[..., None], s, torch.zeros((), dtype=s.dtype, device=s.device)) for s in state)
