"""Define games by tables, ``E`` at once in torch: the exact values are known, so learning can be judged exactly."""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.rendering.tables import draw_payoffs
from qmix_lightning.types import NO_OP, EnvSpec, Observation, Transition

__all__ = ["TabularEnv"]


class TabularEnv:
    """A deterministic game of ``K`` states, shown to every agent as a one-hot vector.

    A game that is over shows zeros, masks every agent and leaves only the no-op. A natively batched
    :class:`~qmix_lightning.environment.VectorEnv` and a :class:`~qmix_lightning.environment.TabularGame`.

    Args:
        num_envs: games that step together, ``E``.
        labels: a name for each state; play starts in the first.
        payoff: team reward ``[K, A_1, .., A_N]`` of each joint action in each state.
        successor: state after each joint action, int64, same shape; ``K`` ends the game. A state's
            successors have larger numbers.
    """

    def __init__(self, *, num_envs: int, labels: tuple[str, ...], payoff: Tensor, successor: Tensor) -> None:
        if num_envs < 1:
            raise ConfigurationError(f"num_envs must be at least 1, not {num_envs}")
        k, counts = payoff.shape[0], tuple(payoff.shape[1:])
        n, a = len(counts), max(counts)
        over = k
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.spec = EnvSpec(
            n_agents=n,
            n_actions=a,
            obs_dim=k,
            state_dim=k,
            obs_dims=(k,) * n,
            action_counts=counts,
            agent_names=tuple(f"agent_{i + 1}" for i in range(n)),
            group_of_agent=tuple(sorted(set(counts), key=counts.index).index(c) for c in counts),
            episode_limit=_longest_path(successor),
            natively_batched=True,
        )
        self._labels = labels
        self._over = over
        # One more row for a game that is over: it pays nothing and stays over.
        self._payoff = torch.cat([payoff.float(), payoff.new_zeros(1, *counts).float()])  # [K+1, A_1, .., A_N]
        self._successor = torch.cat([successor, successor.new_full((1, *counts), over)])  # [K+1, A_1, .., A_N]
        self._one_hot = torch.eye(k + 1, k)  # [K+1, K]
        self._legal = torch.arange(a) < torch.tensor(counts)[:, None]  # [N, A]
        self._only_no_op = (torch.arange(a) == NO_OP).expand(n, a)  # [N, A]
        self._position = torch.full((num_envs,), over, dtype=torch.int64)  # [E]
        self._played: tuple[Tensor, ...] | None = None  # state and joint action of the last step, [E] each

    def reset(self, mask: Tensor, seeds: Tensor) -> Observation:
        """Start the game again where ``mask [E]``; it is deterministic, so ``seeds [E]`` change nothing."""
        self._position = torch.where(mask, 0, self._position)
        self._played = None
        return self._observe()

    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """Take one joint step with ``actions [E, N]`` where ``active [E]``."""
        chosen = torch.where(active[:, None], actions, NO_OP)  # [E, N]
        index = (self._position, *chosen.unbind(dim=1))
        self._played = index
        reward = torch.where(active, self._payoff[index], 0.0)  # [E]
        self._position = torch.where(active, self._successor[index], self._position)
        return Transition(
            next=self._observe(),
            reward=reward,
            terminated=active & (self._position == self._over),
            truncated=torch.zeros_like(active),
        )

    def render_frame(self) -> np.ndarray:
        """Return a picture of the first game's payoff tables, with where it is and what was just played."""
        if self.spec.n_agents != 2:
            raise NotImplementedError
        now = int(self._position[0])
        cell = None if self._played is None else tuple(int(part[0]) for part in self._played)
        tables = self._payoff[: self._over].tolist()
        return draw_payoffs(self._labels, tables, None if now == self._over else now, cast(Any, cell))

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def histories(self) -> dict[str, list[list[list[int]]]]:
        """Return, by the label of a state, the joint-action sequences that lead to it from reset."""
        found: dict[int, list[list[list[int]]]] = {k: [] for k in range(self._over)}
        found[0].append([])
        for k, joint in itertools.product(range(self._over), self._joint_actions()):
            after = int(self._successor[(k, *joint)])
            if after != self._over:
                found[after].extend([*history, list(joint)] for history in found[k])
        return {self._labels[k]: sequences for k, sequences in found.items()}

    def exact_q_values(self, gamma: float) -> dict[str, list[Any]]:
        """Return, by the label of a state, a nested list ``[A_1][..][A_N]`` of optimal values.

        ``Q*(s, u) = r(s, u) + gamma max_u' Q*(s', u')``.
        """
        q = self._payoff.double()  # [K+1, A_1, .., A_N]
        value = torch.zeros(self._over + 1, dtype=torch.float64)
        for k in reversed(range(self._over)):
            q[k] += gamma * value[self._successor[k]]
            value[k] = q[k].max()
        return {label: q[k].tolist() for k, label in enumerate(self._labels)}

    def _joint_actions(self) -> itertools.product[tuple[int, ...]]:
        return itertools.product(*(range(count) for count in self.spec.action_counts))

    def _observe(self) -> Observation:
        running = self._position != self._over  # [E]
        state = self._one_hot[self._position]  # [E, K]
        return Observation(
            obs=state[:, None].expand(-1, self.spec.n_agents, -1).contiguous(),  # [E, N, K]
            state=state,
            avail_actions=torch.where(running[:, None, None], self._legal, self._only_no_op),  # [E, N, A]
            agent_mask=running[:, None].expand(-1, self.spec.n_agents).contiguous(),  # [E, N]
        )


def _longest_path(successor: Tensor) -> int:
    """Return the joint steps of the longest game that ``successor [K, ..]`` allows."""
    k = successor.shape[0]
    length = torch.zeros(k + 1, dtype=torch.int64)
    for i in reversed(range(k)):
        length[i] = 1 + length[successor[i]].max()
    return int(length[0])
