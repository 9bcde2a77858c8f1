"""Define a feed-forward agent, for tasks whose observation is all that matters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qmix_lightning.agents.base import Agent, AgentState
from qmix_lightning.nn.heads import make_head
from qmix_lightning.nn.layers import (
    AgentLayerNorm,
    AgentLinear,
    ShareParameters,
    orthogonal_,
    packing_columns,
    parameter_sets,
)
from qmix_lightning.nn.packing import Packing

__all__ = ["FeedForwardAgent"]


class FeedForwardAgent(Agent):
    """Feed-forward agent: linear, ReLU, linear, ReLU, head; no memory, so a sequence is one product.

    Args:
        input_dim: ``I``, from the input builder.
        n_actions: ``A``.
        group_of_agent: ``[N]`` unit type of each agent.
        hidden_dim: width of both hidden layers.
        share_parameters: true, false (one network for each agent), or ``"group"``.
        layer_norm: normalise both hidden layers before the ReLU (Ba et al. 2016).
        dueling: values as a state value and advantages (Wang et al. 2016).
        orthogonal_init: orthogonal weights, zero biases (Saxe et al. 2014).
    """

    memoryless = True

    def __init__(
        self,
        *,
        input_dim: int,
        n_actions: int,
        group_of_agent: Sequence[int],
        hidden_dim: int,
        share_parameters: ShareParameters,
        layer_norm: bool,
        dueling: bool,
        orthogonal_init: bool,
    ) -> None:
        super().__init__()
        sets = parameter_sets(share_parameters, group_of_agent)
        self.feature_dim = hidden_dim
        self.columns = packing_columns(sets)
        self.encode = AgentLinear(sets, input_dim, hidden_dim)
        self.encode_norm = AgentLayerNorm(sets, hidden_dim) if layer_norm else nn.Identity()
        self.hidden = AgentLinear(sets, hidden_dim, hidden_dim)
        self.hidden_norm = AgentLayerNorm(sets, hidden_dim) if layer_norm else nn.Identity()
        self.head = make_head(sets, hidden_dim, n_actions, dueling=dueling)
        if orthogonal_init:
            orthogonal_(self)

    def initial_state(self, batch_size: int) -> AgentState:
        return ()

    def body(self, inputs: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        encoded = torch.relu_(self.encode_norm(self.encode(inputs)))
        return torch.relu(self.hidden_norm(self.hidden(encoded))), state

    def unroll_body(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        return self.body(inputs, state)

    def unroll_packed(self, inputs: Tensor, state: AgentState, packing: Packing) -> Tensor:
        return self.body(inputs, state)[0]
