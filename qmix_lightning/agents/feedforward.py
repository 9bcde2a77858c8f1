"""A feed-forward agent: for tasks whose observation is all that matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from qmix_lightning.agents.base import Agent, AgentLinear, AgentState, parameter_sets

__all__ = ["FeedForwardAgent"]


class FeedForwardAgent(Agent):
    """Linear, ReLU, linear, ReLU, linear; no memory, so a sequence is one product.

    Args:
        input_dim: ``I``, from the input builder.
        n_actions: ``A``.
        group_of_agent: ``[N]`` unit type of each agent.
        hidden_dim: width of both hidden layers.
        share_parameters: true, false (one network for each agent), or ``"group"``.
    """

    def __init__(
        self,
        *,
        input_dim: int,
        n_actions: int,
        group_of_agent: Sequence[int],
        hidden_dim: int,
        share_parameters: Literal[True, False, "group"],
    ) -> None:
        super().__init__()
        sets = parameter_sets(share_parameters, group_of_agent)
        self.encode = AgentLinear(sets, input_dim, hidden_dim)
        self.hidden = AgentLinear(sets, hidden_dim, hidden_dim)
        self.decode = AgentLinear(sets, hidden_dim, n_actions)

    def initial_state(self, batch_size: int) -> AgentState:
        return ()

    def forward(self, inputs: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        hidden = torch.relu(self.hidden(torch.relu(self.encode(inputs))))
        return self.decode(hidden), state

    def unroll(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        return self(inputs, state)
