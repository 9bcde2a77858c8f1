"""Define QTRAN (Son et al. 2019): an unrestricted joint value, and agents whose sum has its best joint action.

Theorem 1 of the paper: with ``u_bar`` the agents' own greedy actions, the joint value ``Q_jt`` is factorised by the
agents' values ``Q_i`` if some ``V_jt(tau)`` makes ::

    D(tau, u) = sum_i Q_i(tau_i, u_i) - Q_jt(tau, u) + V_jt(tau)

zero at ``u = u_bar`` and not negative elsewhere: then ``Q_jt(u_bar) = sum_i Q_i(u_bar_i) + V_jt`` is
at least ``sum_i Q_i(u_i) + V_jt``, which is at least ``Q_jt(u)``. The sum need not fit ``Q_jt``, only lie above it and
touch it at its top. Both conditions become losses beside the temporal-difference loss of ``Q_jt``::

    L       = L_td + lambda_opt L_opt + lambda_nopt L_nopt
    L_td    = (Q_jt(u) - y)^2,      y = r + gamma Q_jt^-(tau', u_bar')
    L_opt   = D(u_bar)^2,           L_nopt = min(D(u), 0)^2             with Q_jt held constant in D

QTRAN-alt replaces the second by a tighter condition (Theorem 2), for each agent ``min_{u_i} D(u_i, u_{-i}) = 0``,
which needs ``Q_jt`` of all of an agent's actions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from qmix_lightning.action_selection import chosen_values, greedy_actions
from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms.base import LossTerms, masked_sum
from qmix_lightning.algorithms.networks.qtran import CounterfactualValue, JointValue, StateValue, mean_over
from qmix_lightning.algorithms.value_learner import ValueLearner, ValueSettings, actions_tp1, td_errors
from qmix_lightning.mixers.vdn import VDNMixer
from qmix_lightning.types import EnvSpec, TrajectoryBatch

__all__ = ["QTran", "QTranAlt", "QTranBase", "counterfactual_sums", "least_over_own_actions", "summed_values"]


def summed_values(q: Tensor, actions: Tensor, alive: Tensor) -> Tensor:
    """Return the sum of alive agents' values, ``Q'_jt(tau, u) = sum_i Q_i(tau_i, u_i)``.

    Son et al. 2019, below Theorem 1.

    Args:
        q: ``[..., N, A]``.
        actions: ``[..., N]`` int64.
        alive: ``[..., N]`` bool.

    Returns:
        ``[...]``.
    """
    return chosen_values(q, actions).where(alive, q.new_zeros(())).sum(dim=-1)


def counterfactual_sums(q: Tensor, actions: Tensor, alive: Tensor) -> Tensor:
    """Return, for each agent's own actions, the sum of the agents' values (Son et al. 2019, QTRAN-alt).

    ``Q'_jt(tau, . , u_{-i}) = Q_i(tau_i, .) + sum_{j != i} Q_j(tau_j, u_j)``.

    Args:
        q: ``[..., N, A]``.
        actions: ``[..., N]`` int64.
        alive: ``[..., N]`` bool.

    Returns:
        ``[..., N, A]``; a dead agent's mean nothing.
    """
    taken = chosen_values(q, actions).where(alive, q.new_zeros(()))  # [..., N]
    others = taken.sum(dim=-1, keepdim=True) - taken
    return q + others[..., None]


def least_over_own_actions(values: Tensor, avail_actions: Tensor) -> Tensor:
    """Return the least of ``values [..., N, A]`` over own legal actions, ``[..., N]`` (``min_{u_i}``, Theorem 2)."""
    return torch.where(avail_actions, values, float("inf")).amin(dim=-1)


class QTran(ValueLearner):
    """Base of both QTRAN learners: networks, targets and the sum of the losses.

    Args:
        policy: the team's acting network.
        mixer: the plain sum; Theorem 1 is about no other.
        spec: sizes.
        settings: see ``ValueSettings``.
        lambda_opt: weight of the loss at the greedy actions.
        lambda_nopt: weight of the loss elsewhere (base) or of Theorem 2's condition (alt).
        joint_hidden_dim: width of the joint and state-value networks' hidden layers.
        joint_state: give those networks the global state beside the agents' features; the paper does not.
    """

    joint_class: ClassVar[type[JointValue] | type[CounterfactualValue]]

    def __init__(
        self,
        *,
        policy: Policy,
        mixer: nn.Module,
        spec: EnvSpec,
        settings: ValueSettings,
        lambda_opt: float,
        lambda_nopt: float,
        joint_hidden_dim: int,
        joint_state: bool,
    ) -> None:
        super().__init__(settings)
        if not isinstance(mixer, VDNMixer):
            raise ValueError("the agents' values are added up: mixer must be vdn")
        for name, value in (("lambda_opt", lambda_opt), ("lambda_nopt", lambda_nopt)):
            if value < 0.0:
                raise ValueError(f"{name} must not be negative, but is {value}")
        self.lambda_opt = lambda_opt
        self.lambda_nopt = lambda_nopt
        self.policy = policy
        self.mixer = mixer
        sizes = {
            "n_agents": spec.n_agents,
            "feature_dim": policy.agent.feature_dim,
            "state_dim": spec.state_dim if joint_state else 0,
            "hidden_dim": joint_hidden_dim,
        }
        self.joint = self.joint_class(n_actions=spec.n_actions, **sizes)
        self.state_value = StateValue(**sizes)
        self.target_policy = copy.deepcopy(policy).requires_grad_(False)
        self.target_joint = copy.deepcopy(self.joint).requires_grad_(False)

    def target_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        return (self.policy, self.target_policy), (self.joint, self.target_joint)

    @torch.no_grad()
    def targets(self, batch: TrajectoryBatch, q_online: Tensor) -> Tensor:
        """Return the targets ``y [B, T]`` for a masked batch; ``q_online [B, T+1, N, A]``."""
        after = slice(1, None)
        features = self.target_policy.unroll_features(batch)[:, after]  # [B, T, N, F]
        selecting = q_online.detach()[:, after] if self.settings.double_q else self.target_policy.values(features)
        greedy = greedy_actions(selecting, batch.avail_actions[:, after])  # [B, T, N]
        where = batch.agent_mask[:, after], batch.state[:, after]
        greedy_tp1 = self.target_joint.of(features, greedy, *where).to(q_online.dtype)
        taken_tp1 = None
        if self.needs_taken_values:
            taken = actions_tp1(batch)
            taken_tp1 = self.target_joint.of(features, taken, *where).to(q_online.dtype)
        return self.returns(batch, greedy_tp1, taken_tp1)

    def errors(
        self, batch: TrajectoryBatch, features: Tensor, q: Tensor, greedy: Tensor, v: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the squared errors of the temporal difference, of both conditions, and the plain first one.

        Args:
            batch: masked.
            features: ``[B, T, N, F]``.
            q: the agents' values, ``[B, T, N, A]``.
            greedy: the agents' greedy actions, ``[B, T, N]``.
            v: ``V_jt [B, T]``.
            y: targets, ``[B, T]``.

        Returns:
            Three times ``[B, T]``, and ``Q_jt(u) - y`` as ``[B, T]``.
        """
        raise NotImplementedError

    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        """Return the loss ``L_td + lambda_opt L_opt + lambda_nopt L_nopt`` over filled steps."""
        batch = self.masked(batch)
        unrolled = self.policy.unroll_features(batch)  # [B, T+1, N, F]
        values = self.policy.values(unrolled)  # [B, T+1, N, A]
        before = slice(0, -1)
        features, q = unrolled[:, before], values[:, before]
        greedy = greedy_actions(q.detach(), batch.avail_actions[:, before])  # [B, T, N]
        v = self.state_value(features, batch.agent_mask[:, before], batch.state[:, before]).to(q.dtype)  # [B, T]
        y = self.targets(batch, values)
        td, opt, nopt, error = self.errors(batch, features, q, greedy, v, y)
        total = td + self.lambda_opt * opt + self.lambda_nopt * nopt
        if "weight" in batch.extras:  # importance weights of prioritised replay, [B]
            total = total * batch.extras["weight"][:, None]
        mask = batch.filled
        error = error.detach()
        return LossTerms(
            total=masked_sum(total, mask),
            count=mask.sum(),
            sums={
                "td_error_abs": masked_sum(error.abs(), mask),
                "q_taken": masked_sum(self.unscaled(y + error), mask),
                "target": masked_sum(self.unscaled(y), mask),
                "loss_td": masked_sum(td.detach(), mask),
                "loss_opt": masked_sum(opt.detach(), mask),
                "loss_nopt": masked_sum(nopt.detach(), mask),
            },
            td_errors=td_errors(error, mask),
        )


class QTranBase(QTran):
    """QTRAN-base learner: the conditions of Theorem 1 as they stand, with one joint value for each joint action."""

    joint_class = JointValue

    def errors(
        self, batch: TrajectoryBatch, features: Tensor, q: Tensor, greedy: Tensor, v: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alive, state = batch.agent_mask[:, :-1], batch.state[:, :-1]
        joint = self.joint(features, batch.actions, alive, state).to(q.dtype)  # [B, T]
        with torch.no_grad():
            joint_greedy = self.joint(features, greedy, alive, state).to(q.dtype)  # [B, T]
        error = joint - y
        at_greedy = summed_values(q, greedy, alive) - joint_greedy + v
        at_taken = summed_values(q, batch.actions, alive) - joint.detach() + v
        return error.square(), at_greedy.square(), at_taken.clamp(max=0.0).square(), error


class QTranAlt(QTran):
    """QTRAN-alt learner: Theorem 2, with every alive agent's counterfactual values; losses are their means.

    An agent that can do one thing only is left out of its condition, which would ask the sum to equal the joint
    value at every joint action of the others.
    """

    joint_class = CounterfactualValue

    def errors(
        self, batch: TrajectoryBatch, features: Tensor, q: Tensor, greedy: Tensor, v: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alive, state, legal = batch.agent_mask[:, :-1], batch.state[:, :-1], batch.avail_actions[:, :-1]
        joint = self.joint(features, batch.actions, alive, state).to(q.dtype)  # [B, T, N, A]
        with torch.no_grad():
            joint_greedy = chosen_values(self.joint(features, greedy, alive, state).to(q.dtype), greedy)  # [B, T, N]
        error = chosen_values(joint, batch.actions) - y[..., None]  # [B, T, N]
        at_greedy = (summed_values(q, greedy, alive) + v)[..., None] - joint_greedy  # [B, T, N]
        gaps = counterfactual_sums(q, batch.actions, alive) - joint.detach() + v[..., None, None]  # [B, T, N, A]
        least = least_over_own_actions(gaps, legal)  # [B, T, N]
        choosing = alive & (legal.sum(dim=-1) > 1)
        return (
            mean_over(error.square(), alive),
            mean_over(at_greedy.square(), alive),
            mean_over(least.square(), choosing),
            mean_over(error, alive),
        )
