"""Define weighted QMIX (Rashid et al. 2020): a monotonic value that is fitted best where the joint action is good.

Two values are learned from the same targets ``y``: the monotonic ``Q_tot`` by which the agents act, and
the unrestricted ``Q*``, with agents of its own, that values what they would do next::

    y_t = r_t + gamma Q*(s_{t+1}, argmax_u' Q_tot(s_{t+1}, u'))
    L   = w (Q_tot - y)^2 + (Q* - y)^2

``w`` is 1 for joint actions that may be the best and ``alpha`` for all others. With equal weights QMIX gives up a good
joint action whose neighbours are bad; with small ``alpha`` it gives up the neighbours' values instead, which nobody
needs. ``alpha = 1`` is QMIX with the targets of ``Q*``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from qmix_lightning.action_selection import greedy_actions
from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms.base import LossTerms, masked_sum
from qmix_lightning.algorithms.networks.weighted_qmix import CentralMixer
from qmix_lightning.algorithms.value_learner import ValueLearner, ValueSettings, actions_tp1, td_errors
from qmix_lightning.mixers.base import MixerCall
from qmix_lightning.mixers.none import NoMixer
from qmix_lightning.types import EnvSpec, TrajectoryBatch

__all__ = ["CWQMIX", "OWQMIX", "WeightedQMIX", "central_weights", "optimistic_weights"]


def central_weights(y: Tensor, q_star_greedy: Tensor, is_greedy: Tensor, alpha: float) -> Tensor:
    """Return the central weighting (Rashid et al. 2020, the practical form of their centrally-weighted operator).

    The paper compares with ``Q*`` and leaves open of which network; the authors' code with the target networks' value,
    of which ``y`` is made too.

    1 where the joint action is the greedy one, or its target is better than the greedy one's value; else ``alpha``.

    Args:
        y: targets ``[...]``.
        q_star_greedy: the target networks' ``Q*`` of the joint action that is greedy for ``Q_tot``, ``[...]``.
        is_greedy: the action taken is that one, ``[...]`` bool.
        alpha: weight of the rest.

    Returns:
        ``[...]``.
    """
    return torch.where((y > q_star_greedy) | is_greedy, torch.ones_like(y), alpha)


def optimistic_weights(y: Tensor, q_tot: Tensor, alpha: float) -> Tensor:
    """Return the optimistic weighting (Rashid et al. 2020): 1 where ``Q_tot`` is below its target; else ``alpha``.

    Args:
        y: targets ``[...]``.
        q_tot: ``[...]``.
        alpha: weight of the rest.

    Returns:
        ``[...]``.
    """
    return torch.where(q_tot < y, torch.ones_like(y), alpha)


class WeightedQMIX(ValueLearner):
    """Base of both weighted QMIX learners: everything but the weighting.

    Args:
        policy: the team's acting network.
        make_policy: makes the agents of ``Q*``, like the acting ones and with weights of their own.
        mixer: mixes the acting network's values monotonically into ``Q_tot``.
        spec: sizes.
        settings: see ``ValueSettings``.
        alpha: weight of joint actions that are not promising, in (0, 1].
        central_hidden_dim: width of the hidden layers that make ``Q*`` of its agents' values and the state.
        central_hidden_layers: how many.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        make_policy: Callable[[], Policy],
        mixer: nn.Module,
        spec: EnvSpec,
        settings: ValueSettings,
        alpha: float,
        central_hidden_dim: int,
        central_hidden_layers: int,
    ) -> None:
        super().__init__(settings)
        if not 0.0 < alpha <= 1.0:
            raise ValueError(f"alpha must be in (0, 1], not {alpha}")
        if isinstance(mixer, NoMixer):
            raise ValueError("it weights the error of one team value: mixer must not be none")
        self.alpha = alpha
        self.policy = policy
        self.mixer = mixer
        self.mix = MixerCall(mixer)
        self.central_policy = make_policy()
        self.central_mixer = CentralMixer(
            n_agents=spec.n_agents,
            state_dim=spec.state_dim,
            central_hidden_dim=central_hidden_dim,
            central_hidden_layers=central_hidden_layers,
        )
        self.mix_central = MixerCall(self.central_mixer)
        # Targets are values of Q*; of the acting network they need only which action is greedy.
        self.target_policy = None if settings.double_q else copy.deepcopy(policy).requires_grad_(False)
        self.target_central_policy = copy.deepcopy(self.central_policy).requires_grad_(False)
        self.target_central_mixer = copy.deepcopy(self.central_mixer).requires_grad_(False)

    def weights(self, batch: TrajectoryBatch, q: Tensor, q_tot: Tensor, q_target: Tensor, y: Tensor) -> Tensor:
        """Return the weights ``w [B, T]``, without a gradient.

        Args:
            batch: masked.
            q: values of the acting agents, ``[B, T, N, A]``.
            q_tot: of the actions taken, ``[B, T]``.
            q_target: values of the target agents of ``Q*``, ``[B, T, N, A]``.
            y: targets, ``[B, T]``.
        """
        raise NotImplementedError

    def target_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        yield self.central_policy, self.target_central_policy
        yield self.central_mixer, self.target_central_mixer
        if self.target_policy is not None:
            yield self.policy, self.target_policy

    def observe(self, batch: TrajectoryBatch) -> None:
        super().observe(batch)
        self.central_policy.inputs.observe(batch, self.all_reduce)

    @torch.no_grad()
    def targets(self, batch: TrajectoryBatch, q_online: Tensor, q_target: Tensor) -> Tensor:
        """Return the targets ``y [B, T]`` for a masked batch.

        Args:
            batch: ``[B, T]`` steps.
            q_online: of the acting network, ``[B, T+1, N, A]``.
            q_target: of the target agents of ``Q*``, ``[B, T+1, N, A]``.
        """
        after = slice(1, None)
        selecting = q_online.detach() if self.target_policy is None else self.target_policy.unroll(batch)
        greedy = greedy_actions(selecting[:, after], batch.avail_actions[:, after])  # [B, T, N]
        greedy_tp1 = self.mix_central(self.target_central_mixer, q_target, greedy, batch, after)
        taken_tp1 = None
        if self.needs_taken_values:
            taken = actions_tp1(batch)
            taken_tp1 = self.mix_central(self.target_central_mixer, q_target, taken, batch, after)
        return self.returns(batch, greedy_tp1, taken_tp1)

    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        """Return weighted squared errors of ``Q_tot`` and plain ones of ``Q*``, over filled steps."""
        batch = self.masked(batch)
        before = slice(0, -1)
        q = self.policy.unroll(batch)  # [B, T+1, N, A]
        q_central = self.central_policy.unroll(batch)[:, before]  # [B, T, N, A]
        q_tot = self.mix(self.mixer, q[:, before], batch.actions, batch, before)  # [B, T]
        q_star = self.mix_central(self.central_mixer, q_central, batch.actions, batch, before)  # [B, T]
        with torch.no_grad():
            q_target = self.target_central_policy.unroll(batch)  # [B, T+1, N, A]
            y = self.targets(batch, q, q_target)
            weights = self.weights(batch, q[:, before], q_tot, q_target[:, before], y)
        error, central_error = q_tot - y, q_star - y
        loss_qmix, loss_central = weights * error.square(), central_error.square()
        total = loss_qmix + loss_central
        if "weight" in batch.extras:  # importance weights of prioritised replay, [B]
            total = total * batch.extras["weight"][:, None]
        mask = batch.filled
        return LossTerms(
            total=masked_sum(total, mask),
            count=mask.sum(),
            sums={
                "td_error_abs": masked_sum(error.detach().abs(), mask),
                "central_td_error_abs": masked_sum(central_error.detach().abs(), mask),
                "q_taken": masked_sum(self.unscaled(q_tot.detach()), mask),
                "q_central": masked_sum(self.unscaled(q_star.detach()), mask),
                "target": masked_sum(self.unscaled(y), mask),
                "weight": masked_sum(weights, mask),
            },
            td_errors=td_errors(error, mask),
        )


class CWQMIX(WeightedQMIX):
    """Centrally-weighted QMIX learner: full weight for the greedy joint action and for what beats it by ``Q*``."""

    def weights(self, batch: TrajectoryBatch, q: Tensor, q_tot: Tensor, q_target: Tensor, y: Tensor) -> Tensor:
        before = slice(0, -1)
        greedy = greedy_actions(q, batch.avail_actions[:, before])  # [B, T, N]
        # Like with like: the online Q* has moved on since the networks that y is made of were copied.
        q_star_greedy = self.mix_central(self.target_central_mixer, q_target, greedy, batch, before)
        return central_weights(y, q_star_greedy, (greedy == batch.actions).all(dim=-1), self.alpha)


class OWQMIX(WeightedQMIX):
    """Optimistically-weighted QMIX learner: full weight for joint actions that ``Q_tot`` underestimates."""

    def weights(self, batch: TrajectoryBatch, q: Tensor, q_tot: Tensor, q_target: Tensor, y: Tensor) -> Tensor:
        return optimistic_weights(y, q_tot, self.alpha)
