"""Value-decomposition Q-learning on whole episodes: one learner, of which the mixer makes IQL, VDN, QMIX or QPLEX."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms.base import LossTerms, masked_sum
from qmix_lightning.algorithms.returns import greedy_values
from qmix_lightning.algorithms.value_learner import ValueLearner, ValueSettings, actions_tp1, chosen_values, row_errors
from qmix_lightning.exploration import greedy_actions
from qmix_lightning.transfer import sent
from qmix_lightning.types import TrajectoryBatch, true_positions

__all__ = ["MixerCall", "QLearning"]


class MixerCall:
    """Calls a mixer with what it asks for: ``agent_qs`` and ``state``, and by keyword any of

    * ``greedy_qs [B, T, N]``: the value of each agent's greedy legal action by the same network,
    * ``actions [B, T, N]`` int64,
    * ``obs [B, T, N, O]``,
    * ``agent_mask [B, T, N]`` bool.

    A dead agent's values are zero: it adds nothing to the team's value.
    """

    OPTIONAL = ("greedy_qs", "actions", "obs", "agent_mask")

    def __init__(self, mixer: nn.Module) -> None:
        names = inspect.signature(mixer.forward).parameters
        self.wants = tuple(name for name in self.OPTIONAL if name in names)

    def __call__(self, mixer: nn.Module, q: Tensor, actions: Tensor, batch: TrajectoryBatch, rows: slice) -> Tensor:
        """``q [B, T+1, N, A]`` and ``actions [B, T, N]`` of the observation rows ``rows`` of ``batch`` to ``[B, T]``.

        Zero at steps that did not happen. ``q`` may also be that of ``rows`` alone, ``[B, T, N, A]``.
        """
        alive = batch.agent_mask[:, rows]
        picked = _picked(q, actions, rows)
        q = q if q.shape[1] == actions.shape[1] else q[:, rows]
        zero = q.new_zeros(())
        given = {"actions": actions, "agent_mask": alive}
        if "greedy_qs" in self.wants:
            given["greedy_qs"] = greedy_values(q, q, batch.avail_actions[:, rows]).where(alive, zero)
        if "obs" in self.wants:
            given["obs"] = batch.obs[:, rows]
        given["agent_qs"] = picked.where(alive, zero)  # [B, T, N]
        # Mixing knows no time: the steps that happened are given as the steps of one long row.
        steps = _filled_steps(batch)  # [F]
        observed = steps + steps.div(batch.length, rounding_mode="floor") + (rows.start or 0)  # rows of [B, T+1]
        names = ("agent_qs", *self.wants)
        packed = {name: given[name].flatten(0, 1).index_select(0, steps)[None] for name in names}  # [1, F, N, ...]
        state = batch.state.flatten(0, 1).index_select(0, observed)[None]  # [1, F, S]
        mixed = mixer(packed.pop("agent_qs"), state, **packed).to(q.dtype)[0]  # [F] or [F, N]
        b, t = batch.filled.shape
        return mixed.new_zeros(b * t, *mixed.shape[1:]).index_copy(0, steps, mixed).unflatten(0, (b, t))


def _picked(q: Tensor, actions: Tensor, rows: slice) -> Tensor:
    """The values of ``actions [B, T, N]`` in the observation rows ``rows`` of ``q``, or in a ``q`` of those rows alone.

    Taken from the whole: the gradient of a part of ``q`` is copied once more, into zeros of the whole's size.
    """
    if q.shape[1] == actions.shape[1]:
        return chosen_values(q, actions)
    before = rows.start or 0
    padded = F.pad(actions, (0, 0, before, q.shape[1] - actions.shape[1] - before))  # [B, T+1, N]
    return chosen_values(q, padded)[:, rows]


def _filled_steps(batch: TrajectoryBatch) -> Tensor:
    """``[F]``: the steps that happened, as positions in the flattened ``[B, T]``."""
    if "filled_steps" not in batch.memo:
        steps = true_positions(batch.filled if batch.host is None else batch.host.filled)
        batch.memo["filled_steps"] = sent(steps, batch.filled.device)
    return batch.memo["filled_steps"]


class QLearning(ValueLearner):
    """Q-learning through a mixer, on whole episodes, with target networks (Rashid et al. 2018, eq. 6).

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
        obs_too = policy.reads_living_only and "obs" not in self.mix.wants
        self._read_where_meaningful = ("state", "obs") if obs_too else ("state",)
        self.target_policy = copy.deepcopy(policy).requires_grad_(False)
        self.target_mixer = copy.deepcopy(mixer).requires_grad_(False)

    def target_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        return (self.policy, self.target_policy), (self.mixer, self.target_mixer)

    @torch.no_grad()
    def targets(self, batch: TrajectoryBatch, q_online: Tensor) -> Tensor:
        """``y [B, T]`` (or ``[B, T, N]``) for a sanitised batch; ``q_online [B, T+1, N, A]``.

        The target mixer gets the next state. Double Q-learning (van Hasselt et al. 2016, eq. 4) selects the greedy
        action with the online network and values it with the target network.
        """
        after = slice(1, None)
        q_target = batch.memo.pop("target values", None)  # [B, T+1, N, A]
        if q_target is None:
            q_target = self.target_policy.unroll(batch)
        q_target = q_target[:, after]  # [B, T, N, A]
        q_select = q_online.detach()[:, after] if self.settings.double_q else q_target
        greedy = greedy_actions(q_select, batch.avail_actions[:, after])  # [B, T, N]
        greedy_tp1 = self.mix(self.target_mixer, q_target, greedy, batch, after)
        taken_tp1 = None
        if self.needs_taken_values:
            taken = actions_tp1(batch)
            taken_tp1 = self.mix(self.target_mixer, q_target, taken, batch, after)
        return self.returns(batch, greedy_tp1, taken_tp1)

    def unroll(self, batch: TrajectoryBatch) -> Tensor:
        """The online network's ``q [B, T+1, N, A]``; leaves the target network's to :meth:`targets` where both at once
        are faster."""
        # A policy with an unroll of its own is unrolled by that, and by nothing else.
        plain = all(type(p).unroll is Policy.unroll for p in (self.policy, self.target_policy))
        if not (plain and self.policy.reads_living_only):
            return self.policy.unroll(batch)
        q, batch.memo["target values"] = self.policy.unroll_beside(self.target_policy, batch)
        return q

    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        """Squared TD error over filled steps (and, without a mixer, living agents)."""
        batch = batch.sanitized(leave=self._read_where_meaningful)
        q = self.unroll(batch)  # [B, T+1, N, A]
        before = slice(0, -1)
        q_mixed = self.mix(self.mixer, q, batch.actions, batch, before)  # [B, T] or [B, T, N]
        y = self.targets(batch, q)
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
            row_errors=lambda: row_errors(error, mask),
        )
