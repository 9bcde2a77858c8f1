"""Define DRQN, a gated recurrent agent (Hausknecht & Stone 2015), the QMIX paper's agent network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qmix_lightning.agents.base import Agent, AgentState, forget_dead
from qmix_lightning.nn.heads import make_head
from qmix_lightning.nn.layers import (
    AgentLayerNorm,
    AgentLinear,
    ShareParameters,
    orthogonal_,
    packing_columns,
    parameter_sets,
)
from qmix_lightning.nn.packed_gru import packed_gru
from qmix_lightning.nn.packing import Packing

__all__ = ["RecurrentAgent"]


class RecurrentAgent(Agent):
    """Recurrent agent: linear, ReLU, GRU cell, head (Rashid et al. 2018, appendix; PyMARL's ``rnn`` agent).

    Args:
        input_dim: ``I``, from the input builder.
        n_actions: ``A``.
        group_of_agent: ``[N]`` unit type of each agent.
        hidden_dim: width of the first layer and of the memory, ``H``.
        share_parameters: true, false (one network for each agent), or ``"group"``.
        layer_norm: normalise the first layer before its ReLU and the memory before the head (Ba et al. 2016).
        dueling: values as a state value and advantages (Wang et al. 2016).
        orthogonal_init: orthogonal weights, zero biases (Saxe et al. 2014).
    """

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
        self.n_agents = len(sets)
        self.feature_dim = hidden_dim
        self.columns = packing_columns(sets)
        self.encode = AgentLinear(sets, input_dim, hidden_dim)
        self.encode_norm = AgentLayerNorm(sets, hidden_dim) if layer_norm else nn.Identity()
        # torch.nn.GRUCell's parametrisation: gates in the order reset, update, new; both biases kept.
        self.input_gates = AgentLinear(sets, hidden_dim, 3 * hidden_dim)
        self.state_gates = AgentLinear(sets, hidden_dim, 3 * hidden_dim)
        self.memory_norm = AgentLayerNorm(sets, hidden_dim) if layer_norm else nn.Identity()
        self.head = make_head(sets, hidden_dim, n_actions, dueling=dueling)
        if orthogonal_init:
            orthogonal_(self, input_gates=3, state_gates=3)

    def initial_state(self, batch_size: int) -> AgentState:
        return (self.encode.weight.new_zeros(batch_size, self.n_agents, self.feature_dim),)

    def _cell(self, from_input: Tensor, hidden: Tensor) -> Tensor:
        input_r, input_z, input_n = from_input.chunk(3, dim=-1)
        state_r, state_z, state_n = self.state_gates(hidden).chunk(3, dim=-1)
        reset = torch.sigmoid(input_r + state_r)
        update = torch.sigmoid(input_z + state_z)
        new = torch.tanh(input_n + reset * state_n)
        return new + update * (hidden - new)

    def _from_input(self, inputs: Tensor) -> Tensor:
        return self.input_gates(torch.relu_(self.encode_norm(self.encode(inputs))))

    def body(self, inputs: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        hidden = self._cell(self._from_input(inputs), state[0])
        return self.memory_norm(hidden), (hidden,)

    def unroll_body(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        # Everything that does not depend on the memory is one product over all steps.
        from_input = self._from_input(inputs)  # [B, T, N, 3H]
        hidden = state[0].to(from_input.dtype)
        # Forgetting matters only to an agent that is alive again; asking costs a synchronisation on a GPU.
        revives = alive.device.type != "cpu" or bool((alive[:, 1:] & ~alive[:, :-1]).any())
        memories: list[Tensor] = []
        for t in range(inputs.shape[1]):
            hidden = self._cell(from_input[:, t], hidden)
            memories.append(hidden)
            if revives:
                (hidden,) = forget_dead((hidden,), alive[:, t])
        # The next segment may revive who died in this one.
        return self.memory_norm(torch.stack(memories, dim=1)), forget_dead((hidden,), alive[:, -1])  # [B, T, N, H]

    def unroll_packed(self, inputs: Tensor, state: AgentState, packing: Packing) -> Tensor:
        encoded = torch.relu_(self.encode_norm(self.encode(inputs)))
        initial = packing.initial(state[0])
        layers = (self.input_gates, self.state_gates)
        parameters = [layer.weight for layer in layers] + [layer.bias for layer in layers]
        if packing.columns == 1:
            weights = [p.flatten(0, 1) for p in parameters]
            # Not encoded[:, 0], whose gradient would be copied into zeros of the whole.
            memory = packed_gru(encoded.flatten(0, 1), initial.flatten(0, 1), *weights, counts=packing.counts)[:, None]
        else:
            weights = [p[self.input_gates.sets] for p in parameters]  # one for each agent
            memory = packed_gru(encoded.transpose(0, 1), initial.transpose(0, 1), *weights, counts=packing.counts)
            memory = memory.transpose(0, 1)
        return self.memory_norm(memory)  # [P, C, H]
