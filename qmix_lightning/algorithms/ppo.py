"""Define the PPO learners: independent (IPPO) and with a centralised critic (MAPPO).

Index convention: as in :mod:`qmix_lightning.algorithms.returns`; ``*_t`` belongs to the observation before step ``t``,
``*_tp1`` to the true observation after it. A value named ``old_*`` is one of the policy, or of the critic, from before
the round's first update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qmix_lightning.action_selection import chosen_values
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.stochastic_policy import StochasticPolicy, floored_log_policy
from qmix_lightning.algorithms.base import Learner, LossTerms, masked_sum
from qmix_lightning.algorithms.networks.ppo import HistoryCritic, critic_spec
from qmix_lightning.algorithms.returns import continuation_mask, lambda_returns
from qmix_lightning.nn.running_moments import RunningMoments
from qmix_lightning.types import EnvSpec, TrajectoryBatch

__all__ = ["IPPO", "MAPPO", "PPO", "PPOSettings", "clipped_surrogate", "clipped_value_error", "generalized_advantages"]

_VALUE_HORIZON = 100
"""Rounds over which the statistics of returns are remembered: returns grow while learning."""


def generalized_advantages(
    reward: Tensor, terminated: Tensor, continues: Tensor, value: Tensor, gamma: float, lambda_: float
) -> Tensor:
    """Return generalised advantage estimates (GAE, after Schulman et al. 2016).

    With ``c_t = 1`` while the row continues after step ``t`` and 0 at its last step, whatever ended it::

        delta_t = r_t + gamma * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
        A_t = delta_t + gamma * lambda * c_t * A_{t+1}

    so a terminated step bootstraps nothing, and a truncated one from the true last observation. ``A_t + V(s_t)`` is the
    lambda return, and that is how it is computed. Lambda 0 is the one-step error, lambda 1 what was earned from here on
    less the value.

    Args:
        reward: ``[B, T]``.
        terminated: ``[B, T]`` bool.
        continues: ``[B, T]`` bool, from :func:`~qmix_lightning.algorithms.returns.continuation_mask`.
        value: ``[B, T+1]`` or, one value for each agent, ``[B, T+1, N]``; of the last observation too.
        gamma: discount.
        lambda_: in [0, 1].

    Returns:
        ``[B, T]`` or ``[B, T, N]``.
    """
    value_t, value_tp1 = value[:, :-1], value[:, 1:]
    return lambda_returns(reward, terminated, continues, value_tp1, gamma, lambda_) - value_t


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip_epsilon: float) -> Tensor:
    """Return the clipped surrogate ``min(w A, clip(w, 1 - epsilon, 1 + epsilon) A)`` (Schulman et al. 2017, L^CLIP).

    It stops rewarding a change of the policy once the probability of the action has moved by ``epsilon`` in the
    direction that its advantage asks for; it never stops the way back.

    Args:
        log_ratio: ``log w``, the logarithm of ``pi(u) / pi_old(u)``, any shape.
        advantage: the same shape.
        clip_epsilon: above 0.

    Returns:
        The same shape, to be maximised.
    """
    if advantage.shape != log_ratio.shape:
        raise ValueError(f"advantage must be {tuple(log_ratio.shape)}, got {tuple(advantage.shape)}")
    ratio = log_ratio.exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip_epsilon, 1.0 + clip_epsilon) * advantage)


def clipped_value_error(value: Tensor, old_value: Tensor, target: Tensor, value_clip: float | None) -> Tensor:
    """Return the squared error of values, the larger one of the value and of its clipped move from ``old_value``.

    Args:
        value: any shape.
        old_value: the same shape, as does ``target``.
        target: what is learned.
        value_clip: how far a value may move in a round before it stops learning; ``None``: as far as it likes.
    """
    error = (value - target).square()
    if value_clip is None:
        return error
    moved = old_value + (value - old_value).clamp(-value_clip, value_clip)
    return torch.maximum(error, (moved - target).square())


@dataclass(frozen=True)
class PPOSettings:
    """Settings of a PPO learner.

    Attributes:
        gamma: discount.
        gae_lambda: of the advantages and of the critic's targets, in [0, 1].
        clip_epsilon: how far the probability ratio of an action pays, see :func:`clipped_surrogate`.
        value_clip: the same for values, in the scale that the critic learns; ``None`` is off.
        value_coef: weight of the critic's loss.
        entropy_coef: weight of the policies' entropy; 0 is off.
        critic_lr: the critic's own learning rate; ``None``: the optimiser's.
        normalize_values: learn values from the running mean of the discounted returns played, in units of their
            deviation.
        normalize_advantages: give the advantages of a round mean 0 and deviation 1, over the agents that are alive, on
            all ranks.
    """

    gamma: float
    gae_lambda: float
    clip_epsilon: float
    value_clip: float | None
    value_coef: float
    entropy_coef: float
    critic_lr: float | None
    normalize_values: bool
    normalize_advantages: bool

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("clip_epsilon", "value_clip", "value_coef", "critic_lr"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.entropy_coef < 0:
            raise ValueError(f"entropy_coef must not be negative, but is {self.entropy_coef}")


class PPO(Learner):
    """Proximal policy optimisation of a team's shared stochastic policy (Schulman et al. 2017; Yu et al. 2022).

    The loss is

    ``- mean min(w A, clip(w) A) - entropy_coef mean H(pi) + value_coef mean (V - y)^2``

    with ``w`` the probability of the action taken over what it was when the round was played, ``A`` the generalised
    advantage and ``y = A + V`` the lambda return, both by the critic from before the round. The first two means are
    over the agents that are alive, the last over all slots of filled steps.

    The reward is the team's and goes on when an agent dies. So does the critic in its slot, and the advantages with it:
    what an agent did before its death is credited with what the team earns after it. A dead agent chooses nothing, and
    neither policy, nor entropy, nor the normalisation of the advantages looks at its slot.

    Args:
        policy: the actors.
        critic: one value for each slot.
        settings: see :class:`PPOSettings`.
    """

    policy_class = StochasticPolicy
    on_policy = True
    round_extras = ("old_log_pi", "old_value", "advantage", "target")

    def __init__(self, *, policy: StochasticPolicy, critic: HistoryCritic, settings: PPOSettings) -> None:
        super().__init__()
        self.settings = settings
        self.policy = policy
        self.critic = critic
        self.value_moments = RunningMoments(horizon=_VALUE_HORIZON) if settings.normalize_values else None

    def parameter_groups(self) -> list[dict[str, object]]:
        groups = super().parameter_groups()
        if self.settings.critic_lr is not None:
            for group in groups:
                if group["name"] == "critic":
                    group["lr"] = self.settings.critic_lr
        return groups

    # -- once a round --------------------------------------------------------------------------------------------

    def observe(self, batch: TrajectoryBatch) -> None:
        """Do nothing: statistics move once a round, in :meth:`prepare_round`, and its epochs see one scale."""

    @torch.no_grad()
    def prepare_round(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Return what all updates of a round need of the policy and the critic from before it.

        Args:
            batch: this rank's whole share of the round.

        Returns:
            ``old_log_pi``, of the actions taken, ``old_value``, ``advantage`` and ``target``, ``[B, T, N]`` each;
            values are in the scale of returns. Zero in padding.
        """
        batch = batch.mask_invalid()
        # Before the statistics of its inputs move: as it acted.
        old_log_pi = chosen_values(self._log_policy(batch), batch.actions)
        self.policy.inputs.observe(batch, self.all_reduce)
        self.critic.observe(batch, self.all_reduce)
        self._observe_returns(batch)
        value = self.critic(batch)  # [B, T+1, N]
        if self.value_moments is not None:
            value = self.value_moments.restore(value)
        continues = continuation_mask(batch.filled, batch.terminated, batch.truncated)
        advantage = generalized_advantages(
            batch.reward, batch.terminated, continues, value, self.settings.gamma, self.settings.gae_lambda
        )
        old_value = value[:, :-1]
        target = old_value + advantage
        slots, acting = _masks(batch)
        if self.settings.normalize_advantages:
            moments = RunningMoments().to(advantage.device)
            moments.update(advantage, acting, self.all_reduce)
            advantage = moments.normalize(advantage)
        made = (old_log_pi, old_value, advantage, target)
        return {
            name: values.where(slots, values.new_zeros(()))
            for name, values in zip(self.round_extras, made, strict=True)
        }

    def _observe_returns(self, batch: TrajectoryBatch) -> None:
        """Move the scale of values to that of the returns played; what the critic says goes on meaning the same."""
        moments = self.value_moments
        if moments is None:
            return
        before = moments.mean.clone(), moments.deviation(moments.mean)
        began = bool(moments.count > 0)
        # Of what was played, never of targets: those are made in this scale, and could raise it without bound.
        nothing = torch.zeros_like(batch.reward)
        continues = continuation_mask(batch.filled, batch.terminated, batch.truncated)
        played = lambda_returns(batch.reward, batch.terminated, continues, nothing, self.settings.gamma, lambda_=1.0)
        moments.update(played, batch.filled, self.all_reduce)
        if began:  # a critic that has learned nothing begins at the mean
            self.critic.rescale(*before, moments.mean, moments.deviation(moments.mean))

    # -- every update --------------------------------------------------------------------------------------------

    def _log_policy(self, batch: TrajectoryBatch) -> Tensor:
        """Return ``log pi [B, T, N, A]`` of a masked batch, with the floor of its round's epsilon if that is not 0."""
        before = slice(0, -1)
        logits = self.policy.unroll(batch)[:, before]
        return floored_log_policy(logits, batch.avail_actions[:, before], batch.extras["epsilon"][:, None, None])

    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        """Return the loss of a minibatch of a round that was prepared.

        Raises:
            ValueError: it was not.
        """
        if not {"epsilon", *self.round_extras} <= batch.extras.keys():
            raise ValueError("PPO needs what prepare_round makes of an on-policy round: use replay=on_policy")
        batch, settings = batch.mask_invalid(), self.settings
        slots, acting = _masks(batch)
        zero = batch.reward.new_zeros(())
        old_log_pi, old_value, advantage, target = (batch.extras[n].where(slots, zero) for n in self.round_extras)

        log_pi = self._log_policy(batch)  # [B, T, N, A]
        log_ratio = chosen_values(log_pi, batch.actions) - old_log_pi  # [B, T, N]
        surrogate = masked_sum(clipped_surrogate(log_ratio, advantage, settings.clip_epsilon), acting)
        legal = batch.avail_actions[:, :-1]
        finite = log_pi.where(legal, log_pi.new_zeros(()))
        entropy = masked_sum(-(finite.exp() * finite).where(legal, finite.new_zeros(())).sum(dim=-1), acting)

        value = self.critic(batch)[:, :-1]  # [B, T, N]
        unscaled = value.detach() if self.value_moments is None else self.value_moments.restore(value.detach())
        if self.value_moments is not None:
            old_value, target = self.value_moments.normalize(old_value), self.value_moments.normalize(target)
        value_error = masked_sum(clipped_value_error(value, old_value, target, settings.value_clip), slots)
        # The one count of a loss is that of the policy's terms; the critic's mean is over more slots, on all ranks.
        counts = self.all_reduce(torch.stack([acting.sum(), slots.sum()]).to(value.dtype))
        value_error = value_error * (counts[0] / counts[1].clamp(min=1.0))

        def sums() -> dict[str, Tensor]:
            change = log_ratio.detach()
            return {
                "policy_loss": -surrogate.detach(),
                "value_loss": value_error.detach(),
                "entropy": entropy.detach(),
                # An estimate of KL(pi_old, pi) that is never negative: w - 1 - log w.
                "kl": masked_sum(torch.expm1(change) - change, acting),
                "clipped": masked_sum((torch.expm1(change).abs() > settings.clip_epsilon).to(change.dtype), acting),
                "value": masked_sum(unscaled, acting),
                "target": masked_sum(batch.extras["target"], acting),
            }

        return LossTerms(
            total=settings.value_coef * value_error - surrogate - settings.entropy_coef * entropy,
            count=acting.sum(),
            sums=sums,
        )


class IPPO(PPO):
    """Independent PPO (de Witt et al. 2020): each agent's critic sees what the agent sees, its own history.

    Args:
        policy: the actors.
        make_policy: makes the critic's network, like the actors' and with weights of its own.
        settings: see :class:`PPOSettings`.
    """

    def __init__(self, *, policy: StochasticPolicy, make_policy: Callable[[], Policy], settings: PPOSettings) -> None:
        critic = HistoryCritic(make_policy(), obs=True, state=False)
        super().__init__(policy=policy, critic=critic, settings=settings)


class MAPPO(PPO):
    """Multi-agent PPO (Yu et al. 2022): the critic sees the global state.

    Args:
        policy: the actors.
        make_policy: makes the critic's network, like the actors' and with weights of its own.
        spec: sizes of the environment.
        settings: see :class:`PPOSettings`.
        critic_obs: the critic sees the agent's own observation too.
    """

    def __init__(
        self,
        *,
        policy: StochasticPolicy,
        make_policy: Callable[..., Policy],
        spec: EnvSpec,
        settings: PPOSettings,
        critic_obs: bool,
    ) -> None:
        network = make_policy(spec=critic_spec(spec, obs=critic_obs, state=True))
        super().__init__(policy=policy, critic=HistoryCritic(network, obs=critic_obs, state=True), settings=settings)


def _masks(batch: TrajectoryBatch) -> tuple[Tensor, Tensor]:
    """Return the slots of a masked batch's filled steps, and those of them whose agents choose: ``[B, T, N]`` each."""
    alive = batch.agent_mask[:, :-1]
    slots = batch.filled[..., None].expand_as(alive)
    return slots, alive & slots
