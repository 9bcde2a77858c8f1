"""Define the centralised critic of counterfactual actor-critics, and the advantage it gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmix_lightning.action_selection import chosen_values

__all__ = ["CounterfactualCritic", "counterfactual_advantage", "expected_values"]


def expected_values(q: Tensor, probabilities: Tensor) -> Tensor:
    """Return the expected value ``sum_a pi(a) q(a)``: ``q`` and ``probabilities`` ``[..., A]`` to ``[...]``.

    Values of actions of probability zero are never read, so those of illegal ones may be anything.
    """
    return torch.where(probabilities > 0, probabilities * q, q.new_zeros(())).sum(dim=-1)


def counterfactual_advantage(q: Tensor, probabilities: Tensor, actions: Tensor) -> Tensor:
    """Return the advantage ``A^a = Q(s, u) - sum_u'a pi^a(u'a) Q(s, (u^-a, u'a))`` (Foerster et al. 2018, eq. 4).

    What the agent's own action was worth, compared with what its policy gets in its place while the others' actions
    stay. Its mean under the policy is zero, so it adds no bias to the policy's gradient.

    Args:
        q: ``[..., N, A]``, value of the joint action for each own action.
        probabilities: ``[..., N, A]``, the agents' policies; zero for illegal actions.
        actions: ``[..., N]`` int64, taken.

    Returns:
        ``[..., N]``.
    """
    if probabilities.shape != q.shape or actions.shape != q.shape[:-1]:
        raise ValueError(
            f"expected q and probabilities [..., N, A] and actions [..., N], got {tuple(q.shape)}, "
            f"{tuple(probabilities.shape)}, {tuple(actions.shape)}"
        )
    return chosen_values(q, actions) - expected_values(q, probabilities)


class CounterfactualCritic(nn.Module):
    """Centralised critic: ``Q(s, (u^-a, .))`` of every agent ``a`` in one pass (Foerster et al. 2018, fig. 1c).

    It gives the values of all of an agent's own actions.

    Its inputs are the global state, the agent's observation, the other agents' actions, everybody's last actions and
    which agent it is; not the agent's own action. Three linear layers with ReLU, shared by the agents.

    Args:
        n_agents: ``N``.
        n_actions: ``A``.
        obs_dim: ``O``.
        state_dim: ``S``.
        hidden_dim: width of both hidden layers.
    """

    itself: Tensor

    def __init__(self, *, n_agents: int, n_actions: int, obs_dim: int, state_dim: int, hidden_dim: int) -> None:
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"critic_hidden_dim must be at least 1, not {hidden_dim}")
        self.n_agents = n_agents
        self.n_actions = n_actions
        self.register_buffer("itself", torch.eye(n_agents, dtype=torch.bool), persistent=False)
        inputs = state_dim + obs_dim + 2 * n_agents * n_actions + n_agents
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, n_actions),
        )

    def forward(self, state: Tensor, obs: Tensor, actions: Tensor, last_actions: Tensor) -> Tensor:
        """Return values for each agent's own actions.

        Args:
            state: ``[..., S]``.
            obs: ``[..., N, O]``.
            actions: ``[..., N]`` int64, taken now.
            last_actions: ``[..., N]`` int64, taken before; ``-1``: none.

        Returns:
            ``[..., N, A]`` in float32 or wider.
        """
        n = self.n_agents
        if actions.shape != obs.shape[:-1] or last_actions.shape != actions.shape or actions.shape[-1] != n:
            raise ValueError(
                f"expected actions and last_actions {(*obs.shape[:-2], n)}, got {tuple(actions.shape)} and "
                f"{tuple(last_actions.shape)}"
            )
        joint = F.one_hot(actions, self.n_actions).to(obs.dtype)  # [..., N, A]
        others = joint.unsqueeze(-3).masked_fill(self.itself[..., None], 0.0)  # [..., N, N, A]
        last = F.one_hot(last_actions + 1, self.n_actions + 1)[..., 1:].to(obs.dtype)  # [..., N, A]
        lead = (*obs.shape[:-1], -1)  # [..., N, *]
        inputs = [
            state.unsqueeze(-2).expand(lead),
            obs,
            others.flatten(-2),
            last.flatten(-2).unsqueeze(-2).expand(lead),
            self.itself.to(obs.dtype).expand(lead),
        ]
        q = self.layers(torch.cat(inputs, dim=-1))
        return q if q.dtype.itemsize >= 4 else q.float()
