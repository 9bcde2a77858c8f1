"""Cut one agent out of a policy: what a single agent computes, as one function that needs nothing of the others."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from qmix_lightning.action_selection import greedy_actions
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.stochastic_policy import StochasticPolicy
from qmix_lightning.nn.convolution import AgentConv
from qmix_lightning.nn.layers import AgentLayerNorm, AgentLinear

__all__ = ["AgentProgram", "agent_programs"]


class AgentProgram(nn.Module):
    """One agent's step, for ``B`` agents that share a set of parameters.

    Args:
        policy: the team's.
        parameter_set: which set of parameters.
    """

    def __init__(self, policy: Policy, parameter_set: int) -> None:
        super().__init__()
        self.inputs = deepcopy(policy.inputs)
        self.agent = deepcopy(policy.agent)
        for module in self.agent.modules():
            if isinstance(module, AgentLinear | AgentLayerNorm | AgentConv) and module.weight.shape[0] > 1:
                _keep_set(module, parameter_set)
        self.stochastic = isinstance(policy, StochasticPolicy)
        self.mask_before_softmax = getattr(policy, "mask_before_softmax", True)
        self.memory_sizes = [part.shape[-1] for part in policy.initial_state(1)]
        self.eval().requires_grad_(False)

    @property
    def output_names(self) -> list[str]:
        """Names of what :meth:`forward` returns, in order."""
        memory = [f"next_memory_{i}" for i in range(len(self.memory_sizes))]
        return ["action", "values", *(["probabilities"] if self.stochastic else []), *memory]

    @property
    def input_names(self) -> list[str]:
        """Names of what :meth:`forward` takes, in order."""
        return ["obs", "last_action", "agent_id", "mask", *(f"memory_{i}" for i in range(len(self.memory_sizes)))]

    def example(self, rows: int) -> tuple[Tensor, ...]:
        """Return inputs of the right shapes and types."""
        actions, zeros = self.inputs.n_actions, torch.zeros(rows, dtype=torch.int64)
        memory = tuple(torch.zeros(rows, size) for size in self.memory_sizes)
        obs = torch.zeros(rows, self.inputs.obs_dim)
        return obs, zeros - 1, zeros.clone(), torch.ones(rows, actions, dtype=torch.bool), *memory

    def forward(
        self, obs: Tensor, last_action: Tensor, agent_id: Tensor, mask: Tensor, *memory: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute one step.

        Args:
            obs: ``[B, O]``, padded with zeros.
            last_action: ``[B]`` int64, ``-1`` at the first step of an episode.
            agent_id: ``[B]`` int64, the agents' slots.
            mask: ``[B, A]`` bool, the legal actions; at least one.
            memory: each ``[B, H]``, zeros at the first step and for an agent that lives again.

        Returns:
            The greedy action ``[B]``, values (or logits) ``[B, A]``, of a stochastic policy the probabilities
            ``[B, A]``, and the next memory.
        """
        n = self.inputs.n_agents
        everyone = self.inputs(obs[:, None].expand(-1, n, -1), last_action[:, None].expand(-1, n))  # [B, N, I]
        own = everyone.gather(1, agent_id[:, None, None].expand(-1, 1, everyone.shape[-1]))  # [B, 1, I]
        values, state = self.agent(own, tuple(part[:, None] for part in memory))
        values = values[:, 0]
        results = [greedy_actions(values, mask), values]
        if self.stochastic:
            results.append(self._probabilities(values, mask))
        return *results, *(part[:, 0] for part in state)

    def _probabilities(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return what is sampled from without exploration: the limit of ``floored_log_policy`` for no floor."""
        if self.mask_before_softmax:
            return torch.softmax(torch.where(mask, logits, -torch.inf), dim=-1)
        soft = torch.where(mask, torch.softmax(logits, dim=-1), 0.0)
        return soft / soft.sum(dim=-1, keepdim=True)


def agent_programs(policy: Policy) -> list[AgentProgram]:
    """Return the program of each set of parameters of a policy's agents."""
    sets = [
        m.weight.shape[0] for m in policy.agent.modules() if isinstance(m, AgentLinear | AgentLayerNorm | AgentConv)
    ]
    return [AgentProgram(policy, number) for number in range(max(sets, default=1))]


def _keep_set(layer: AgentLinear | AgentLayerNorm | AgentConv, parameter_set: int) -> None:
    for name in ("weight", "bias"):
        whole = getattr(layer, name).detach()
        setattr(layer, name, nn.Parameter(whole[parameter_set : parameter_set + 1].clone()))
    layer.sets = torch.zeros(1, dtype=torch.int64)
    if not isinstance(layer, AgentLayerNorm):
        layer.n_sets = 1
