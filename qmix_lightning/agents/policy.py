"""Define the policy of the whole team: the input builder and the agent behind one interface."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from qmix_lightning.action_selection import epsilon_greedy, greedy_actions
from qmix_lightning.agents.base import Agent, AgentState
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.nn.packing import Packing
from qmix_lightning.types import TrajectoryBatch

__all__ = ["Policy"]


class Policy(nn.Module):
    """Policy of the whole team: what the collector publishes, the learner trains and an export would hold.

    Args:
        inputs: builds each agent's input.
        agent: the agent network.

    Attributes:
        stochastic: it needs draws to act in training even where nothing is explored.
    """

    stochastic: ClassVar[bool] = False

    def __init__(self, *, inputs: InputBuilder, agent: Agent) -> None:
        super().__init__()
        self.inputs = inputs
        self.agent = agent

    def initial_state(self, batch_size: int) -> AgentState:
        """Return the agents' memory before the first step of ``batch_size`` episodes."""
        return self.agent.initial_state(batch_size)

    def forward(self, obs: Tensor, last_action: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        """Compute one joint step: ``obs [B, N, O]``, ``last_action [B, N]`` to ``q [B, N, A]`` and the next state."""
        return self.agent(self.inputs(obs, last_action), state)

    def select(self, q: Tensor, avail_actions: Tensor, epsilon: float | Tensor, draws: Tensor | None) -> Tensor:
        """Return legal actions ``[B, N]`` from what ``forward`` gave; greedy without ``draws [B, N, 2]``."""
        if draws is None:
            return greedy_actions(q, avail_actions)
        return epsilon_greedy(q, avail_actions, epsilon, draws)

    def unroll(self, batch: TrajectoryBatch) -> Tensor:
        """Compute ``q [B, T+1, N, A]`` of every row of ``batch``, the last observation included, in float32 or wider.

        Only values of agents that are alive mean anything.
        """
        if self.reads_alive_only:
            packed, packing = self._unroll_packed(batch)
            return packing.scatter(self.values(packed))
        return self.values(self.unroll_features(batch))

    def unroll_online_and_target(self, target: Policy, batch: TrajectoryBatch) -> tuple[Tensor, Tensor]:
        """Return ``unroll`` of this policy and, without a gradient, of ``target``.

        ``target`` is a policy like this one with weights of its own.
        """
        # Each normalises by statistics of its own: a target network takes the online one's after an update.
        if not self.reads_alive_only or self.inputs.moments is not None:
            q = self.unroll(batch)
            with torch.no_grad():
                return q, target.unroll(batch)
        inputs, state, packing = self._packed(batch)
        packed = self.agent.unroll_packed(inputs, state, packing)
        with torch.no_grad():
            q_target = packing.scatter(target.values(target.agent.unroll_packed(inputs, state, packing)))
        return packing.scatter(self.values(packed)), q_target

    def unroll_features(self, batch: TrajectoryBatch) -> Tensor:
        """Compute what the agents' heads are given in every row of ``batch``: ``[B, T+1, N, F]``, as for ``unroll``."""
        if self.reads_alive_only:
            packed, packing = self._unroll_packed(batch)
            return packing.scatter(packed)
        state = batch.initial_state or self.initial_state(batch.batch_size)
        inputs = self.inputs(batch.obs, batch.last_actions())
        features, _ = self.agent.unroll_body(inputs, state, batch.memory_kept())
        return features

    @property
    def reads_alive_only(self) -> bool:
        """Whether unrolling looks at no observation but those of alive agents, so that others need not be masked."""
        return self.agent.columns > 0

    def _unroll_packed(self, batch: TrajectoryBatch) -> tuple[Tensor, Packing]:
        """Return features ``[P, C, F]`` of the steps at which agents are alive, and the packing of these rows."""
        inputs, state, packing = self._packed(batch)
        return self.agent.unroll_packed(inputs, state, packing), packing

    def _packed(self, batch: TrajectoryBatch) -> tuple[Tensor, AgentState, Packing]:
        """Return what an agent unrolls of ``batch``: packed inputs, state before the first step, and packing."""
        columns = self.agent.columns
        unordered = self.agent.memoryless and columns == 1
        key = "packing", columns, unordered
        if key not in batch.cache:
            masks = batch if batch.host is None else batch.host
            alive = masks.agent_mask
            packing = Packing.unordered(alive) if unordered else Packing.of(alive, columns, masks.restarts)
            batch.cache[key] = packing.to(batch.agent_mask.device)
        packing: Packing = batch.cache[key]
        state = batch.initial_state or self.initial_state(batch.batch_size)
        return self.inputs.packed(batch, packing), state, packing

    def values(self, features: Tensor) -> Tensor:
        """Map ``features [..., N, F]`` to ``q [..., N, A]`` in float32 or wider."""
        q = self.agent.head(features)
        return q if q.dtype.itemsize >= 4 else q.float()
