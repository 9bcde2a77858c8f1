"""The agent protocol, and linear layers whose parameters are shared by groups of agents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from qmix_lightning.agents.first_layer import PackedInputs
    from qmix_lightning.agents.packing import Packing

__all__ = [
    "Agent",
    "AgentLayerNorm",
    "AgentLinear",
    "AgentState",
    "forget_dead",
    "orthogonal_",
    "packing_columns",
    "parameter_sets",
]

AgentState = tuple[Tensor, ...]
"""A recurrent agent's memory: a tuple of ``[B, N, H]``; empty for one without memory."""


class Agent(nn.Module):
    """Base class of agent networks: a ``body`` that makes features, and a ``head`` that makes values of them.

    A subclass defines ``body``, ``head`` (a module), ``feature_dim`` and ``initial_state``; one that can compute a
    whole sequence faster than step by step overrides ``unroll_body``. Joint critics read the features (QTRAN).

    Attributes:
        feature_dim: ``F``, size of an agent's features.
        head: ``features [..., N, F]`` to ``q [..., N, A]``.
        columns: of the packing that ``unroll_packed`` takes, see :class:`~qmix_lightning.agents.packing.Packing`: 1 if
            all agents share one network, ``N`` if not; 0 if the agent has no such way and takes whole batches.
        memoryless: a step's features depend on that step's inputs alone, so the order of a packing's cells is nothing
            to it.
    """

    feature_dim: int
    head: nn.Module
    columns: int = 0
    memoryless: bool = False

    def initial_state(self, batch_size: int) -> AgentState:
        """The state before the first step, on the parameters' device."""
        raise NotImplementedError

    def body(self, inputs: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        """One step: ``inputs [B, N, I]`` to ``features [B, N, F]`` and the next state."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        """One step: ``inputs [B, N, I]`` to ``q [B, N, A]`` and the next state."""
        features, state = self.body(inputs, state)
        return self.head(features), state

    def unroll_body(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        """A sequence: ``inputs [B, T, N, I]``, ``alive [B, T, N]`` bool to ``[B, T, N, F]`` and the last state.

        The memory of an agent that is not alive is cleared, so that it starts anew if it lives again.
        """
        outputs: list[Tensor] = []
        for t in range(inputs.shape[1]):
            features, state = self.body(inputs[:, t], state)
            state = forget_dead(state, alive[:, t])
            outputs.append(features)
        return torch.stack(outputs, dim=1), state  # [B, T, N, F]

    def unroll_packed(self, inputs: PackedInputs, state: AgentState, packing: Packing) -> Tensor:
        """The living agents' steps and no others: to features ``[P, C, F]``.

        Equal to ``unroll_body`` wherever an agent lives. ``state`` is that before the first step, ``[B, N, H]`` each.
        Everything that is defined on ``[..., N, F]`` works on ``[..., C, F]`` too: with one column there is one set of
        parameters, which asks for no agent's number.
        """
        raise NotImplementedError

    def unroll_packed_beside(
        self, fixed: Agent, inputs: PackedInputs, state: AgentState, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        """``unroll_packed`` of this agent and, without a gradient, of ``fixed``, one like it with weights of its own.

        To be overridden where both together are faster than one after the other.
        """
        features = self.unroll_packed(inputs, state, packing)
        with torch.no_grad():
            return features, fixed.unroll_packed(inputs, state, packing)

    def unroll(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        """As ``unroll_body``, to ``q [B, T, N, A]``."""
        features, state = self.unroll_body(inputs, state, alive)
        return self.head(features), state


def forget_dead(state: AgentState, alive: Tensor) -> AgentState:
    """``state`` with zeros where ``alive [B, N]`` is false."""
    return tuple(torch.where(alive[..., None], s, torch.zeros((), dtype=s.dtype, device=s.device)) for s in state)


def parameter_sets(share_parameters: bool | str, group_of_agent: Sequence[int]) -> list[int]:
    """Which set of parameters each agent uses: one for all, one for each group, or one for each agent.

    Args:
        share_parameters: true, false or ``"group"`` (agents of one unit type share).
        group_of_agent: ``[N]``, from ``EnvSpec``.
    """
    if share_parameters == "group":
        order = {group: index for index, group in enumerate(dict.fromkeys(group_of_agent))}
        return [order[group] for group in group_of_agent]
    if share_parameters is True:
        return [0] * len(group_of_agent)
    if share_parameters is False:
        return list(range(len(group_of_agent)))
    raise ValueError(f"share_parameters must be true, false or 'group', not {share_parameters!r}")


def packing_columns(sets: Sequence[int]) -> int:
    """How agents with these sets of parameters are packed: in one column if they share a single one, else in ``N``."""
    return 1 if len(set(sets)) == 1 else len(sets)


class AgentLinear(nn.Module):
    """``torch.nn.Linear`` on ``[..., N, in]`` with one weight matrix for each parameter set.

    With a single set it is exactly ``F.linear``. Initialised as ``torch.nn.Linear`` is.

    Args:
        sets: the parameter set of each agent, from :func:`parameter_sets`.
        in_features: last axis of the input.
        out_features: last axis of the output.
    """

    sets: Tensor

    def __init__(self, sets: Sequence[int], in_features: int, out_features: int) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"a layer needs at least one input and one output; check hidden_dim: {out_features}")
        self.n_sets = max(sets) + 1
        self.register_buffer("sets", torch.tensor(sets), persistent=False)
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(self.n_sets, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(self.n_sets, out_features).uniform_(-bound, bound))

    @torch.no_grad()
    def orthogonal_(self, gain: float = 1.0, blocks: int = 1) -> None:
        """Orthogonal weights and zero biases (Saxe et al. 2014), for each parameter set and block of outputs by itself.

        Args:
            gain: the size of the singular values; sqrt(2) before a ReLU.
            blocks: parts along the outputs that are matrices of their own, as a GRU's three gates are.
        """
        for weight in self.weight:
            for block in weight.chunk(blocks):
                nn.init.orthogonal_(block, gain)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.n_sets == 1:
            # A view and not an element: the gradient of an element is copied into zeros of the whole.
            return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
        flat = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)  # [N, M, in]
        weight = self.weight[self.sets].transpose(1, 2)  # [N, in, out]
        out = torch.matmul(flat, weight) + self.bias[self.sets][:, None]  # [N, M, out]
        return out.transpose(0, 1).reshape(*x.shape[:-1], -1)  # [..., N, out]


def orthogonal_(agent: nn.Module, **gates: int) -> None:
    """Initialise every :class:`AgentLinear` of ``agent`` orthogonally: gain sqrt(2) before a ReLU, 1 in the head.

    Args:
        agent: one, or a part of one; changed in place.
        gates: for layers that feed gates instead of a ReLU, by name: how many; their gain is 1.
    """
    for name, module in agent.named_modules():
        if isinstance(module, AgentLinear):
            plain = name in gates or name.startswith("head")
            module.orthogonal_(1.0 if plain else math.sqrt(2.0), gates.get(name, 1))


class AgentLayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of ``[..., N, F]`` with one scale and shift for each parameter set.

    Args:
        sets: the parameter set of each agent, from :func:`parameter_sets`.
        features: last axis.
    """

    sets: Tensor

    def __init__(self, sets: Sequence[int], features: int) -> None:
        super().__init__()
        self.register_buffer("sets", torch.tensor(sets), persistent=False)
        self.weight = nn.Parameter(torch.ones(max(sets) + 1, features))
        self.bias = nn.Parameter(torch.zeros(max(sets) + 1, features))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[0] == 1:
            return F.layer_norm(x, x.shape[-1:], self.weight[0], self.bias[0])
        return F.layer_norm(x, x.shape[-1:]) * self.weight[self.sets] + self.bias[self.sets]
