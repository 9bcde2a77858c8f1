"""Fold the acting network for inference: the same values up to rounding, from fewer operations.

Acting is a step of a few small matrices, where building one-hots and walking through modules cost more than the
products. Between two publications the parameters stand still, so what depends on nothing else is computed once: the
last action and the identity of an agent each pick a column of the first layer, and those become a table; a duelling
head is one linear layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmix_lightning.agents.base import AgentState
from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.nn.heads import DuelingHead
from qmix_lightning.nn.layers import AgentLayerNorm, AgentLinear

__all__ = ["ActFunction", "FeedForwardStep", "FirstLayer", "RecurrentStep", "fold_for_inference"]

ActFunction = Callable[[Tensor, Tensor, AgentState], tuple[Tensor, AgentState]]
"""An act function: ``obs [B, N, O]``, ``last_action [B, N]`` and the state to ``q [B, N, A]`` and the next state."""


def fold_for_inference(policy: Policy) -> ActFunction:
    """Return a function that computes what ``policy.forward`` does, until its parameters change.

    Any policy will do. One whose forward is its own, or whose agents do not share all parameters, is called as it is.
    """
    known = type(policy).forward is Policy.forward and type(policy.inputs) is InputBuilder
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in policy.modules())  # pyright: ignore[reportPrivateUsage]
    shared = all(m.n_sets == 1 for m in policy.modules() if isinstance(m, AgentLinear))
    if known and shared and not hooked:
        if type(policy.agent) is RecurrentAgent:
            return RecurrentStep(policy.inputs, policy.agent)
        if type(policy.agent) is FeedForwardAgent:
            return FeedForwardStep(policy.inputs, policy.agent)
    return policy


class FirstLayer:
    """Input builder, first linear layer, normalisation and ReLU: ``obs [B, N, O]`` to ``[B * N, H]``.

    Attributes:
        weight: of the observation, ``[O, H]``; ``None`` if it is not used.
        table: what the last action and the identity add, ``[N * (1 + A) or N, H]``.
        first_row: of each agent, ``[N]``.
        has_actions: whether the last action picks the row.
        plain: nothing is normalised.
    """

    def __init__(self, inputs: InputBuilder, layer: AgentLinear, norm: nn.Module) -> None:
        weight, n, a = layer.weight[0], inputs.n_agents, inputs.n_actions
        sizes = [inputs.use_obs * inputs.obs_dim, inputs.use_last_action * a, inputs.use_agent_id * n]
        of_obs, of_action, of_identity = weight.split(sizes, dim=1)
        self.weight = of_obs.t().contiguous() if inputs.use_obs else None  # [O, H]
        none_and_actions = torch.cat([weight.new_zeros(1, weight.shape[0]), of_action.t()])  # [1 + A or 1, H]
        identities = of_identity.t() if inputs.use_agent_id else weight.new_zeros(n, weight.shape[0])  # [N, H]
        table = layer.bias[0] + identities[:, None] + none_and_actions  # [N, 1 + A or 1, H]
        self.table = table.flatten(0, 1)
        self.has_actions = inputs.use_last_action
        self.first_row = torch.arange(n, device=weight.device) * table.shape[1] + inputs.use_last_action  # [N]
        self.moments = None
        if inputs.moments is not None:
            self.moments = inputs.moments.mean.to(weight.dtype), inputs.moments.deviation(weight)
        self.norm = _normaliser(norm)
        self.plain = self.moments is None and self.norm is _identity

    def __call__(self, obs: Tensor, last_action: Tensor) -> Tensor:
        rows = self.first_row + last_action if self.has_actions else self.first_row.expand_as(last_action)
        hidden = self.table.index_select(0, rows.reshape(-1))  # [B * N, H]
        if self.weight is not None:
            if self.moments is not None:
                mean, deviation = self.moments
                obs = obs.sub(mean).div_(deviation).clamp_(-10.0, 10.0)
            hidden.addmm_(obs.reshape(hidden.shape[0], -1), self.weight)
        return self.norm(hidden).relu_()


class RecurrentStep:
    """The step of a recurrent agent, folded for inference."""

    def __init__(self, inputs: InputBuilder, agent: RecurrentAgent) -> None:
        self.first = FirstLayer(inputs, agent.encode, agent.encode_norm)
        gates = agent.input_gates, agent.state_gates
        self.gates = (*(g.weight[0] for g in gates), *(g.bias[0] for g in gates))
        self.norm = _normaliser(agent.memory_norm)
        self.plain = self.first.plain and self.norm is _identity
        self.head = _head(agent.head)

    def __call__(self, obs: Tensor, last_action: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        hidden = self.first(obs, last_action)  # [B * N, H]
        hidden = torch.gru_cell(hidden, state[0].view_as(hidden), *self.gates)
        q = F.linear(self.norm(hidden), *self.head)  # [B * N, A]
        return q.view(*last_action.shape, -1), (hidden.view(*last_action.shape, -1),)


class FeedForwardStep:
    """The step of a feed-forward agent, folded for inference."""

    def __init__(self, inputs: InputBuilder, agent: FeedForwardAgent) -> None:
        self.first = FirstLayer(inputs, agent.encode, agent.encode_norm)
        self.hidden = agent.hidden.weight[0], agent.hidden.bias[0]
        self.norm = _normaliser(agent.hidden_norm)
        self.plain = self.first.plain and self.norm is _identity
        self.head = _head(agent.head)

    def __call__(self, obs: Tensor, last_action: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        hidden = self.norm(F.linear(self.first(obs, last_action), *self.hidden)).relu_()  # [B * N, H]
        return F.linear(hidden, *self.head).view(*last_action.shape, -1), state


def _head(head: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight ``[A, H]`` and bias ``[A]`` of the head; ``V + A - mean A`` is linear in the features too."""
    if isinstance(head, DuelingHead):
        (value_w, value_b), (advantage_w, advantage_b) = _head(head.value), _head(head.advantage)
        return value_w + advantage_w - advantage_w.mean(0), value_b + advantage_b - advantage_b.mean(0)
    assert isinstance(head, AgentLinear)
    return head.weight[0], head.bias[0]


def _normaliser(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    if not isinstance(norm, AgentLayerNorm):
        return _identity
    weight, bias = norm.weight[0], norm.bias[0]
    return lambda x: F.layer_norm(x, x.shape[-1:], weight, bias)


def _identity(x: Tensor) -> Tensor:
    return x
