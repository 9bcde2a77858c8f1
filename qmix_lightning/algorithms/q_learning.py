"""Value-decomposition Q-learning on whole episodes: IQL, VDN and QMIX are this learner with different mixers."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms.base import LossTerms, masked_sum, trainable_groups
from qmix_lightning.algorithms.returns import greedy_values, one_step_targets
from qmix_lightning.types import TrajectoryBatch

__all__ = ["QLearning", "TargetUpdate", "chosen_values"]


def chosen_values(q: Tensor, actions: Tensor) -> Tensor:
    """``q [..., A]`` and ``actions [...]`` int64 to the value of each action taken, ``[...]``."""
    return q.gather(-1, actions[..., None]).squeeze(-1)


class TargetUpdate:
    """When and how target networks follow: a hard copy every so often, or a soft step after every update.

    Args:
        mode: ``hard`` or ``soft``.
        every: hard: how many units between copies (PyMARL: 200 episodes).
        unit: hard: ``episodes`` or ``updates``.
        tau: soft: ``target <- target + tau * (online - target)`` (Lillicrap et al. 2016).
    """

    def __init__(self, *, mode: str, every: int, unit: str, tau: float) -> None:
        if mode not in ("hard", "soft"):
            raise ValueError(f"target_update_mode must be 'hard' or 'soft', not '{mode}'")
        if unit not in ("episodes", "updates"):
            raise ValueError(f"target_update_unit must be 'episodes' or 'updates', not '{unit}'")
        if every < 1:
            raise ValueError(f"target_update_every must be at least 1, not {every}")
        if not 0.0 < tau <= 1.0:
            raise ValueError(f"target_update_tau must be in (0, 1], not {tau}")
        self.mode = mode
        self.every = every
        self.unit = unit
        self.tau = tau


class QLearning(nn.Module):
    """Double Q-learning through a mixer, on whole episodes, with target networks (Rashid et al. 2018, eq. 6).

    Args:
        policy: the team's acting network.
        mixer: ``(agent_qs [B, T, N], state [B, T, S]) -> [B, T]`` (or ``[B, T, N]``: one value for each agent).
        gamma: discount.
        double_q: select the successor's action with the online network.
        target_update_mode: see :class:`TargetUpdate`.
        target_update_every: see :class:`TargetUpdate`.
        target_update_unit: see :class:`TargetUpdate`.
        target_update_tau: see :class:`TargetUpdate`.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        mixer: nn.Module,
        gamma: float,
        double_q: bool,
        target_update_mode: Literal["hard", "soft"],
        target_update_every: int,
        target_update_unit: Literal["episodes", "updates"],
        target_update_tau: float,
    ) -> None:
        super().__init__()
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], not {gamma}")
        self.gamma = gamma
        self.double_q = double_q
        self.target_update = TargetUpdate(
            mode=target_update_mode, every=target_update_every, unit=target_update_unit, tau=target_update_tau
        )
        self.policy = policy
        self.mixer = mixer
        self.target_policy = copy.deepcopy(policy).requires_grad_(False)
        self.target_mixer = copy.deepcopy(mixer).requires_grad_(False)
        self.last_copy = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"last_copy": self.last_copy}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.last_copy = int(state["last_copy"])

    def parameter_groups(self) -> list[dict[str, object]]:
        return trainable_groups({"agent": self.policy, "mixer": self.mixer})

    def targets(self, batch: TrajectoryBatch, q_online: Tensor) -> Tensor:
        """``y [B, T]`` (or ``[B, T, N]``) for a sanitised batch; ``q_online [B, T+1, N, A]``.

        The target mixer gets the next state. A dead agent adds nothing to the team's value.
        """
        with torch.no_grad():
            q_target = self.target_policy.unroll(batch)[:, 1:]  # [B, T, N, A]
            q_select = q_online.detach()[:, 1:] if self.double_q else q_target
            values = greedy_values(q_select, q_target, batch.avail_actions[:, 1:])  # [B, T, N]
            values = values.where(batch.agent_mask[:, 1:], values.new_zeros(()))
            value_tp1 = self.target_mixer(values, batch.state[:, 1:]).to(values.dtype)
            return one_step_targets(batch.reward, batch.terminated, value_tp1, self.gamma)

    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        """Squared TD error over filled steps (and, without a mixer, living agents)."""
        batch = batch.sanitized()
        q = self.policy.unroll(batch)  # [B, T+1, N, A]
        alive = batch.agent_mask[:, :-1]  # [B, T, N]
        q_taken = chosen_values(q[:, :-1], batch.actions).where(alive, q.new_zeros(()))  # [B, T, N]
        q_mixed = self.mixer(q_taken, batch.state[:, :-1]).to(q.dtype)  # [B, T] or [B, T, N]
        y = self.targets(batch, q)
        mask = batch.filled if q_mixed.dim() == 2 else batch.filled[..., None] & alive
        error = q_mixed - y
        return LossTerms(
            total=masked_sum(error.square(), mask),
            count=mask.sum(),
            sums={
                "td_error_abs": masked_sum(error.detach().abs(), mask),
                "q_taken": masked_sum(q_mixed.detach(), mask),
                "target": masked_sum(y, mask),
            },
        )

    @torch.no_grad()
    def after_update(self, *, episodes: int, updates: int) -> None:
        rule = self.target_update
        if rule.mode == "soft":
            self._follow(rule.tau)
            return
        now = episodes if rule.unit == "episodes" else updates
        if now - self.last_copy >= rule.every:
            self._follow(1.0)
            self.last_copy = now

    def _follow(self, tau: float) -> None:
        for online, target in ((self.policy, self.target_policy), (self.mixer, self.target_mixer)):
            for source, copied in zip(online.parameters(), target.parameters(), strict=True):
                copied.copy_(source) if tau == 1.0 else copied.lerp_(source, tau)
