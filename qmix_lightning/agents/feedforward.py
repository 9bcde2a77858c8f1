"""Define a feed-forward agent, for tasks whose observation is all that matters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qmix_lightning.agents.base import Agent, AgentState
from qmix_lightning.nn.fused_linear import rectified_linear
from qmix_lightning.nn.heads import make_head
from qmix_lightning.nn.layers import (
    AgentLayerNorm,
    AgentLinear,
    ShareParameters,
    orthogonal_,
    packing_columns,
    parameter_sets,
)
from qmix_lightning.nn.packed_input_layer import PackedInputs, first_layer, first_layer_pair
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
        return self._after_first(self.encode(inputs)), state

    def unroll_body(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        return self.body(inputs, state)

    def unroll_packed(self, inputs: PackedInputs, state: AgentState, packing: Packing) -> Tensor:
        return self._after_packed(first_layer(self.encode, inputs, rectify=self._rectified_first))

    def unroll_packed_online_and_target(
        self, target: Agent, inputs: PackedInputs, state: AgentState, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(target, FeedForwardAgent):
            return super().unroll_packed_online_and_target(target, inputs, state, packing)
        first, other = first_layer_pair(self.encode, target.encode, inputs, rectify=self._rectified_first)
        with torch.no_grad():
            target_features = target._after_packed(other)
        return self._after_packed(first), target_features

    def after_first_layer(self, first: Tensor, state: AgentState, packing: Packing) -> Tensor:
        """Compute the rest of ``unroll_packed``, from ``first [P, C, H]`` made in another way, which is overwritten."""
        return self._after_first(first)

    @property
    def _rectified_first(self) -> bool:
        """Whether the ReLU follows the first layer at once."""
        return isinstance(self.encode_norm, nn.Identity)

    def _after_packed(self, first: Tensor) -> Tensor:
        """Compute features from the first layer ``[P, C, H]``, rectified already where it may be."""
        if not self._rectified_first:
            return self._after_first(first)
        plain = self.hidden.n_sets == 1 and isinstance(self.hidden_norm, nn.Identity)
        if plain and not torch.is_autocast_enabled(first.device.type):
            weight, bias = self.hidden.weight.flatten(0, 1), self.hidden.bias.flatten()
            return rectified_linear(first[:, 0], weight, bias)[:, None]
        return torch.relu(self.hidden_norm(self.hidden(first)))

    def _after_first(self, encoded: Tensor) -> Tensor:
        encoded = torch.relu_(self.encode_norm(encoded))
        return torch.relu(self.hidden_norm(self.hidden(encoded)))
