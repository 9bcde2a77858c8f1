"""The acting network made ready to act: the same values up to rounding, from fewer operations.

Acting is a step of a few small matrices, where building one-hots and walking through modules cost more than the
products. Between two publications the parameters stand still, so what depends on nothing else is computed once: the
last action and the identity of an agent each pick a column of the first layer, and those become a table; a duelling
head is one linear layer. A few agents act in numpy (:mod:`qmix_lightning.agents.small_inference`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmix_lightning.agents.base import AgentLayerNorm, AgentLinear, AgentState
from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.heads import DuelingHead
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.agents.small_inference import Dense, Lookup, SmallFeedForward, SmallRecurrent, is_small

__all__ = ["Forward", "ready_to_act"]

Forward = Callable[[Tensor, Tensor, AgentState], tuple[Tensor, AgentState]]
"""``obs [B, N, O]``, ``last_action [B, N]`` and the state to ``q [B, N, A]`` and the next state."""


@torch.no_grad()
def ready_to_act(policy: Policy, num_envs: int) -> Forward:
    """A function that computes what ``policy.forward`` does for ``num_envs`` environments, until its parameters change.

    Any policy will do. One whose forward is its own, or whose agents do not share all parameters, is called as it is.
    """
    known = type(policy).forward is Policy.forward and type(policy.inputs) is InputBuilder
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in policy.modules())
    shared = all(m.n_sets == 1 for m in policy.modules() if isinstance(m, AgentLinear))
    if known and shared and not hooked:
        rows = num_envs * policy.inputs.n_agents
        if type(policy.agent) is RecurrentAgent:
            return _Recurrent(policy.inputs, policy.agent).for_rows(rows)
        if type(policy.agent) is FeedForwardAgent:
            return _FeedForward(policy.inputs, policy.agent).for_rows(rows)
    return policy


class _FirstLayer:
    """Input builder, first linear layer, normalisation and ReLU: ``obs [B, N, O]`` to ``[B * N, H]``."""

    def __init__(self, inputs: InputBuilder, layer: AgentLinear, norm: nn.Module) -> None:
        weight, n, a = layer.weight[0], inputs.n_agents, inputs.n_actions
        sizes = [inputs.use_obs * inputs.obs_dim, inputs.use_last_action * a, inputs.use_agent_id * n]
        of_obs, of_action, of_identity = weight.split(sizes, dim=1)
        self._weight = of_obs.t().contiguous() if inputs.use_obs else None  # [O, H]
        none_and_actions = torch.cat([weight.new_zeros(1, weight.shape[0]), of_action.t()])  # [1 + A or 1, H]
        identities = of_identity.t() if inputs.use_agent_id else weight.new_zeros(n, weight.shape[0])  # [N, H]
        table = layer.bias[0] + identities[:, None] + none_and_actions  # [N, 1 + A or 1, H]
        self._table = table.flatten(0, 1)
        self._has_actions = inputs.use_last_action
        self._first_row = torch.arange(n, device=weight.device) * table.shape[1] + inputs.use_last_action  # [N]
        self._moments = None
        if inputs.moments is not None:
            self._moments = inputs.moments.mean.to(weight.dtype), inputs.moments.deviation(weight)
        self._norm = _normaliser(norm)

    def lookup(self) -> Lookup | None:
        """The same in numpy; ``None`` where something is normalised."""
        if self._moments is not None or self._norm is not _identity:
            return None
        weight = None if self._weight is None else self._weight.numpy()
        return Lookup(weight, self._table.numpy(), self._first_row.numpy(), self._has_actions)

    @property
    def weight(self) -> Tensor:
        """Of the observation, ``[O, H]``, or else the table."""
        return self._table[:1] if self._weight is None else self._weight

    def __call__(self, obs: Tensor, last_action: Tensor) -> Tensor:
        rows = self._first_row + last_action if self._has_actions else self._first_row.expand_as(last_action)
        hidden = self._table.index_select(0, rows.reshape(-1))  # [B * N, H]
        if self._weight is not None:
            if self._moments is not None:
                mean, deviation = self._moments
                obs = obs.sub(mean).div_(deviation).clamp_(-10.0, 10.0)
            hidden.addmm_(obs.reshape(hidden.shape[0], -1), self._weight)
        return self._norm(hidden).relu_()


class _Recurrent:
    def __init__(self, inputs: InputBuilder, agent: RecurrentAgent) -> None:
        self._first = _FirstLayer(inputs, agent.encode, agent.encode_norm)
        gates = agent.input_gates, agent.state_gates
        self._gates = (*(g.weight[0] for g in gates), *(g.bias[0] for g in gates))
        self._norm = _normaliser(agent.memory_norm)
        self._head = _head(agent.head)

    def for_rows(self, rows: int) -> Forward:
        """The quickest way for so many rows: this, or the same in numpy."""
        weight_ih, weight_hh, bias_ih, bias_hh = self._gates
        if self._norm is _identity and is_small(rows, self._first.weight, weight_ih, weight_hh, self._head[0]):
            first = self._first.lookup()
            if first is not None:
                of_input, of_memory = Dense.of(weight_ih, bias_ih), Dense.of(weight_hh, bias_hh)
                return SmallRecurrent(first, of_input, of_memory, Dense.of(*self._head))
        return self

    def __call__(self, obs: Tensor, last_action: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        hidden = self._first(obs, last_action)  # [B * N, H]
        hidden = torch.gru_cell(hidden, state[0].view_as(hidden), *self._gates)
        q = F.linear(self._norm(hidden), *self._head)  # [B * N, A]
        return q.view(*last_action.shape, -1), (hidden.view(*last_action.shape, -1),)


class _FeedForward:
    def __init__(self, inputs: InputBuilder, agent: FeedForwardAgent) -> None:
        self._first = _FirstLayer(inputs, agent.encode, agent.encode_norm)
        self._hidden = agent.hidden.weight[0], agent.hidden.bias[0]
        self._norm = _normaliser(agent.hidden_norm)
        self._head = _head(agent.head)

    def for_rows(self, rows: int) -> Forward:
        """The quickest way for so many rows: this, or the same in numpy."""
        if self._norm is _identity and is_small(rows, self._first.weight, self._hidden[0], self._head[0]):
            first = self._first.lookup()
            if first is not None:
                return SmallFeedForward(first, Dense.of(*self._hidden), Dense.of(*self._head))
        return self

    def __call__(self, obs: Tensor, last_action: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        hidden = self._norm(F.linear(self._first(obs, last_action), *self._hidden)).relu_()  # [B * N, H]
        return F.linear(hidden, *self._head).view(*last_action.shape, -1), state


def _head(head: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight ``[A, H]`` and bias ``[A]``; ``V + A - mean A`` is linear in the features too."""
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
