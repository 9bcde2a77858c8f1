"""Define the textbook recurrent QMIX learner, to measure ours against.

Written the plain way on purpose: padded float32 batches with one-hot actions as the replay would hand them over, one
step after the other through time, the target network likewise, ``torch.nn.GRUCell``, a mixing network of small layers,
``torch.optim.RMSprop``. Nothing here is used by the package.

Letters: ``B`` episodes, ``T`` steps, ``N`` agents, ``A`` actions, ``O`` observation, ``S`` state.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmix_lightning.types import TrajectoryBatch

__all__ = ["PlainBatch", "PlainLearner"]


@dataclass
class PlainBatch:
    """Batch of padded episodes, everything a float but the actions taken.

    Shapes: ``obs [B, T+1, N, O]``, ``state [B, T+1, S]``, ``avail_actions`` and ``last_action [B, T+1, N, A]``,
    ``actions [B, T, N, 1]`` int64, ``reward``, ``terminated`` and ``filled [B, T]``.
    """

    obs: Tensor
    state: Tensor
    avail_actions: Tensor
    last_action: Tensor
    actions: Tensor
    reward: Tensor
    terminated: Tensor
    filled: Tensor

    @classmethod
    def of(cls, batch: TrajectoryBatch) -> PlainBatch:
        """Convert our batch, masked; a dead agent's action is the no-op, whose value is mixed in like any other."""
        masked = batch.mask_invalid()
        a = masked.avail_actions.shape[-1]
        one_hot = F.one_hot(masked.actions, a).float()  # [B, T, N, A]
        return cls(
            obs=masked.obs,
            state=masked.state,
            avail_actions=masked.avail_actions.float(),
            last_action=torch.cat([torch.zeros_like(one_hot[:, :1]), one_hot], dim=1),
            actions=masked.actions[..., None],
            reward=masked.reward,
            terminated=masked.terminated.float(),
            filled=masked.filled.float(),
        )


class PlainAgent(nn.Module):
    """Agent network: linear, ReLU, GRU cell, linear, on rows of ``B * N``."""

    def __init__(self, input_dim: int, hidden_dim: int, n_actions: int) -> None:
        super().__init__()
        self.encode = nn.Linear(input_dim, hidden_dim)
        self.cell = nn.GRUCell(hidden_dim, hidden_dim)
        self.decode = nn.Linear(hidden_dim, n_actions)

    def forward(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.cell(F.relu(self.encode(inputs)), hidden)
        return self.decode(hidden), hidden


class PlainMixer(nn.Module):
    """QMIX's mixing network with hypernetworks of two layers."""

    def __init__(self, n_agents: int, state_dim: int, embed_dim: int, hypernet_dim: int) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.embed_dim = embed_dim
        self.weight_1 = nn.Sequential(
            nn.Linear(state_dim, hypernet_dim), nn.ReLU(), nn.Linear(hypernet_dim, n_agents * embed_dim)
        )
        self.weight_2 = nn.Sequential(nn.Linear(state_dim, hypernet_dim), nn.ReLU(), nn.Linear(hypernet_dim, embed_dim))
        self.bias_1 = nn.Linear(state_dim, embed_dim)
        self.bias_2 = nn.Sequential(nn.Linear(state_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, 1))

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        b, t, n = agent_qs.shape
        state = state.reshape(b * t, -1)
        weight_1 = self.weight_1(state).abs().view(b * t, n, self.embed_dim)
        bias_1 = self.bias_1(state).view(b * t, 1, self.embed_dim)
        hidden = F.elu(torch.bmm(agent_qs.reshape(b * t, 1, n), weight_1) + bias_1)
        weight_2 = self.weight_2(state).abs().view(b * t, self.embed_dim, 1)
        return (torch.bmm(hidden, weight_2) + self.bias_2(state).view(b * t, 1, 1)).view(b, t)


class PlainLearner:
    """Learner of double Q-learning with a target network, an update at a time.

    Args:
        n_agents: ``N``.
        n_actions: ``A``.
        obs_dim: ``O``.
        state_dim: ``S``.
        hidden_dim: width of the agent network.
        embed_dim: width of the mixing network.
        hypernet_dim: hidden width of its hypernetworks.
    """

    def __init__(
        self,
        *,
        n_agents: int,
        n_actions: int,
        obs_dim: int,
        state_dim: int,
        hidden_dim: int,
        embed_dim: int,
        hypernet_dim: int,
    ) -> None:
        self.hidden_dim = hidden_dim
        self.agent = PlainAgent(obs_dim + n_actions + n_agents, hidden_dim, n_actions)
        self.mixer = PlainMixer(n_agents, state_dim, embed_dim, hypernet_dim)
        self.target_agent = copy.deepcopy(self.agent)
        self.target_mixer = copy.deepcopy(self.mixer)
        self.parameters = [*self.agent.parameters(), *self.mixer.parameters()]
        self.optimizer = torch.optim.RMSprop(self.parameters, lr=5e-4, alpha=0.99, eps=1e-5)

    def unroll(self, agent: PlainAgent, batch: PlainBatch) -> Tensor:
        """Run an agent network over a batch step by step; return ``q [B, T+1, N, A]``."""
        b, steps, n, _ = batch.obs.shape
        hidden = batch.obs.new_zeros(b * n, self.hidden_dim)
        identity = torch.eye(n, device=batch.obs.device).expand(b, -1, -1)
        values: list[Tensor] = []
        for t in range(steps):
            inputs = torch.cat([batch.obs[:, t], batch.last_action[:, t], identity], dim=-1)
            q, hidden = agent(inputs.reshape(b * n, -1), hidden)
            values.append(q.view(b, n, -1))
        return torch.stack(values, dim=1)

    def loss(self, batch: PlainBatch) -> Tensor:
        """Return the mean squared TD error over filled steps."""
        q = self.unroll(self.agent, batch)
        taken = q[:, :-1].gather(3, batch.actions).squeeze(3)
        with torch.no_grad():
            q_target = self.unroll(self.target_agent, batch)[:, 1:]
            select = q.detach().clone()
            select[batch.avail_actions == 0] = float("-inf")
            best = select[:, 1:].argmax(dim=3, keepdim=True)
            value = self.target_mixer(q_target.gather(3, best).squeeze(3), batch.state[:, 1:])
            target = batch.reward + 0.99 * (1 - batch.terminated) * value
        error = (self.mixer(taken, batch.state[:, :-1]) - target) * batch.filled
        return (error**2).sum() / batch.filled.sum()

    def update(self, batch: PlainBatch) -> Tensor:
        """Make one step of the optimiser; return the loss."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        return loss.detach()
