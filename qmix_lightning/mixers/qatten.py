"""Define the Qatten mixer: multi-head attention of the state over the agents (Yang et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qmix_lightning.mixers.base import at_least_one, check_inputs
from qmix_lightning.nn.mlp import hypernetwork

__all__ = ["QattenMixer"]


class QattenMixer(nn.Module):
    """Qatten mixer, ``Q_tot = c(s) + sum_h w_h(s) sum_i lambda_{h,i} Q_i``, with agent-level attention in every head::

        lambda_{h,i} = softmax_i( query_h(s) . key_h(o_i) / sqrt(E) )        w_h(s) = |W(s)| >= 0

    Queries come from the global state, keys from each agent's own observation. Attention and head weights are not
    negative, so ``dQ_tot/dQ_i = sum_h w_h lambda_{h,i} >= 0``; given state and observations it is linear in the agents'
    values. The heads share the query network's hidden layer.

    Args:
        n_agents: ``N``.
        state_dim: ``S``.
        obs_dim: ``O``.
        heads: ``H``.
        embed_dim: ``E``, size of queries and keys, and hidden width of ``c``.
        hypernet_dim: hidden width of the two-layer networks that give the queries and the head weights.
        weighted_heads: ``w_h`` from the state; otherwise every head counts 1.
    """

    def __init__(
        self,
        *,
        n_agents: int,
        state_dim: int,
        obs_dim: int,
        heads: int,
        embed_dim: int,
        hypernet_dim: int,
        weighted_heads: bool,
    ) -> None:
        super().__init__()
        at_least_one(heads=heads, embed_dim=embed_dim)
        self.n_agents = n_agents
        self.state_dim = state_dim
        self.obs_dim = obs_dim
        self.shape = (heads, embed_dim)
        self.query = hypernetwork(state_dim, heads * embed_dim, 2, hypernet_dim)
        # A bias would add the same to the score of every agent, which the softmax takes out again.
        self.key = nn.Linear(obs_dim, heads * embed_dim, bias=False)
        self.head_weight = hypernetwork(state_dim, heads, 2, hypernet_dim) if weighted_heads else None
        self.bias = hypernetwork(state_dim, 1, 2, embed_dim)

    def attention(self, state: Tensor, obs: Tensor) -> Tensor:
        """Map ``state [B, T, S]`` and ``obs [B, T, N, O]`` to ``lambda [B, T, H, N]``, in sum 1 over the agents."""
        query = self.query(state).unflatten(-1, self.shape)  # [B, T, H, E]
        key = self.key(obs).unflatten(-1, self.shape)  # [B, T, N, H, E]
        scores = torch.einsum("...he,...nhe->...hn", query, key) / math.sqrt(self.shape[1])
        return torch.softmax(scores, dim=-1)

    def forward(self, agent_qs: Tensor, state: Tensor, obs: Tensor) -> Tensor:
        """Mix ``agent_qs [B, T, N]``, ``state [B, T, S]`` and ``obs [B, T, N, O]`` to ``q_tot [B, T]``."""
        check_inputs(agent_qs, state, self.n_agents, self.state_dim)
        if obs.shape != (*agent_qs.shape, self.obs_dim):
            raise ValueError(f"expected obs {(*agent_qs.shape, self.obs_dim)}, got {tuple(obs.shape)}")
        attention = self.attention(state, obs)  # [B, T, H, N]
        heads = (attention * agent_qs[..., None, :]).sum(dim=-1)  # [B, T, H]
        if self.head_weight is not None:
            heads = self.head_weight(state).abs() * heads
        return heads.sum(dim=-1) + self.bias(state).squeeze(-1)  # [B, T]
