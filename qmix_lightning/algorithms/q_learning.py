"""Define the value-decomposition Q-learner on whole episodes: its mixer makes it IQL, VDN, QMIX or QPLEX."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qmix_lightning.action_selection import greedy_actions
from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms.base import LossTerms, masked_sum
from qmix_lightning.algorithms.value_learner import ValueLearner, ValueSettings, actions_tp1, td_errors
from qmix_lightning.mixers.base import MixerCall
from qmix_lightning.types import TrajectoryBatch

__all__ = ["QLearning"]


class QLearning(ValueLearner):
    """Learner by Q-learning through a mixer, on whole episodes, with target networks (Rashid et al. 2018, eq. 6).

    Args:
        policy: the team's acting network.
        mixer: ``(agent_qs [B, T, N], state [B, T, S]) -> [B, T]`` (or ``[B, T, N]``: one value for each agent); may ask
            for more, see :class:`MixerCall`.
        settings: see :class:`ValueSettings`.
    """

    def __init__(self, *, policy: Policy, mixer: nn.Module, settings: ValueSettings) -> None:
        super().__init__(settings)
        self.policy = policy
        self.mixer = mixer
        self.mix = MixerCall(mixer)
        obs_too = policy.reads_alive_only and "obs" not in self.mix.wants
        self._read_where_meaningful = ("state", "obs") if obs_too else ("state",)
        self.target_policy = copy.deepcopy(policy).requires_grad_(False)
        self.target_mixer = copy.deepcopy(mixer).requires_grad_(False)

    def target_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        return (self.policy, self.target_policy), (self.mixer, self.target_mixer)

    @torch.no_grad()
    def targets(self, batch: TrajectoryBatch, q_online: Tensor, q_target: Tensor | None = None) -> Tensor:
        """Return the targets ``y [B, T]`` (or ``[B, T, N]``) for a masked batch.

        The target mixer gets the next state. Double Q-learning (van Hasselt et al. 2016, eq. 4) selects the greedy
        action with the online network and values it with the target network.

        Args:
            batch: masked.
            q_online: ``[B, T+1, N, A]``.
            q_target: the same shape, of the target network; unrolled here if it is not given.
        """
        after = slice(1, None)
        q_target = (self.target_policy.unroll(batch) if q_target is None else q_target)[:, after]  # [B, T, N, A]
        q_select = q_online.detach()[:, after] if self.settings.double_q else q_target
        greedy = greedy_actions(q_select, batch.avail_actions[:, after])  # [B, T, N]
        greedy_tp1 = self.mix(self.target_mixer, q_target, greedy, batch, after)
        taken_tp1 = None
        if self.needs_taken_values:
            taken = actions_tp1(batch)
            taken_tp1 = self.mix(self.target_mixer, q_target, taken, batch, after)
        return self.returns(batch, greedy_tp1, taken_tp1)

    def returns(self, batch: TrajectoryBatch, greedy_tp1: Tensor, taken_tp1: Tensor | None = None) -> Tensor:
        """Return targets as :meth:`ValueLearner.returns` does; without a mixer, an absent agent's value is 0."""
        if greedy_tp1.dim() == 3 and self.value_moments is not None:
            # Zero returns: the mixer's zero for an absent agent is the mean return, in the scale that is learned.
            present_tp1 = batch.agent_mask[:, 1:]
            nothing = self.value_moments.normalize(torch.zeros_like(greedy_tp1))
            greedy_tp1 = greedy_tp1.where(present_tp1, nothing)
            taken_tp1 = None if taken_tp1 is None else taken_tp1.where(present_tp1, nothing)
        return super().returns(batch, greedy_tp1, taken_tp1)

    def unroll(self, batch: TrajectoryBatch) -> tuple[Tensor, Tensor | None]:
        """Return the online network's ``q [B, T+1, N, A]`` and, where both at once are faster, the target network's."""
        # A policy with an unroll of its own is unrolled by that, and by nothing else.
        plain = all(type(p).unroll is Policy.unroll for p in (self.policy, self.target_policy))
        if not (plain and self.policy.reads_alive_only):
            return self.policy.unroll(batch), None
        return self.policy.unroll_online_and_target(self.target_policy, batch)

    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        """Return the squared TD error over filled steps; without a mixer, of every agent whose value counts there."""
        batch = self.masked(batch, skip=self._read_where_meaningful)
        q, q_target = self.unroll(batch)  # [B, T+1, N, A]
        before = slice(0, -1)
        q_mixed = self.mix(self.mixer, q, batch.actions, batch, before)  # [B, T] or [B, T, N]
        y = self.targets(batch, q, q_target)
        mask = batch.filled if q_mixed.dim() == 2 else batch.filled[..., None] & batch.agent_mask[:, before]
        error = q_mixed - y
        squared = error.square()
        if "weight" in batch.extras:  # importance weights of prioritised replay, [B]
            squared = squared * batch.extras["weight"].reshape(-1, *(1,) * (squared.dim() - 1))
        error = error.detach()
        played, y = q_mixed.detach(), y.detach()
        return LossTerms(
            total=masked_sum(squared, mask),
            count=mask.sum(),
            sums=lambda: {
                "td_error_abs": masked_sum(error.abs(), mask),
                "q_taken": masked_sum(self.unscaled(played), mask),
                "target": masked_sum(self.unscaled(y), mask),
            },
            td_errors=lambda: td_errors(error, mask),
        )
