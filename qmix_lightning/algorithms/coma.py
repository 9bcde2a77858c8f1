"""Define the COMA learner: counterfactual multi-agent policy gradients (Foerster et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from qmix_lightning.action_selection import chosen_values
from qmix_lightning.agents.stochastic_policy import StochasticPolicy, sample_actions
from qmix_lightning.algorithms.base import LossTerms, masked_sum
from qmix_lightning.algorithms.networks.coma import CounterfactualCritic, counterfactual_advantage, expected_values
from qmix_lightning.algorithms.value_learner import (
    RewardNormalization,
    TargetUpdateMode,
    TargetUpdateUnit,
    ValueLearner,
    ValueSettings,
)
from qmix_lightning.types import EnvSpec, TrajectoryBatch

__all__ = ["COMA"]


class COMA(ValueLearner):
    """COMA learner: decentralised actors, one centralised critic, and a baseline for each agent.

    An agent's baseline leaves only its own action out.

    The loss of a step, averaged over the agents' slots, is

    ``- log pi^a(u^a) A^a + critic_coef (Q(s, u) - y)^2 - entropy_coef H(pi^a)``

    with ``A^a`` of eq. 4 held constant and ``y`` the TD(lambda) return over the target critic's values of the actions
    taken (eq. 2). ``pi`` is the floored policy that collected the data: with the epsilon of its
    round, so that the gradient is that of the policy that acted. After an episode's last step, if it was truncated,
    the value is the target critic's: the mean over an agent's own action under its policy, for actions of the others
    that their policies would have taken.

    A dead agent has nothing to choose: its advantage is zero. The critic learns in its slot too, since it values the
    team's action, and the values of that slot are what is bootstrapped when an agent dies.

    Args:
        policy: the actors.
        spec: sizes of the environment.
        gamma: discount.
        td_lambda: of the critic's targets, in [0, 1].
        normalize_rewards: see :class:`ValueSettings`.
        normalize_values: see :class:`ValueSettings`.
        critic_hidden_dim: width of the critic.
        critic_coef: weight of the critic's loss.
        critic_lr: the critic's own learning rate; ``None``: the optimiser's.
        entropy_coef: weight of the policies' entropy; 0 is off, as published.
        target_update_mode: of the target critic, as the next three; see :class:`ValueSettings`.
        target_update_every: hard: how many units between copies.
        target_update_unit: hard: ``episodes`` or ``updates``.
        target_update_tau: soft.
        mask_before_softmax: whether illegal actions are left out of the policies' softmax and floor or masked after
            both, see :func:`~qmix_lightning.agents.stochastic_policy.floored_log_policy`.
        critic_max_grad_norm: the critic's gradient is clipped by its own norm to this, and the actors' by theirs to the
            optimiser's; ``None``: both together, by their joint norm, so that a large gradient of the critic shortens
            the actors' step.
    """

    policy_class = StochasticPolicy
    on_policy = True

    def __init__(
        self,
        *,
        policy: StochasticPolicy,
        spec: EnvSpec,
        gamma: float,
        td_lambda: float,
        normalize_rewards: RewardNormalization,
        normalize_values: bool,
        critic_hidden_dim: int,
        critic_coef: float,
        critic_lr: float | None,
        entropy_coef: float,
        target_update_mode: TargetUpdateMode,
        target_update_every: int,
        target_update_unit: TargetUpdateUnit,
        target_update_tau: float,
        mask_before_softmax: bool,
        critic_max_grad_norm: float | None,
    ) -> None:
        super().__init__(
            ValueSettings(
                gamma=gamma,
                double_q=False,
                returns="td_lambda",
                n_steps=1,
                td_lambda=td_lambda,
                normalize_rewards=normalize_rewards,
                normalize_values=normalize_values,
                target_update_mode=target_update_mode,
                target_update_every=target_update_every,
                target_update_unit=target_update_unit,
                target_update_tau=target_update_tau,
            )
        )
        above_zero = {"critic_coef": critic_coef, "critic_lr": critic_lr, "critic_max_grad_norm": critic_max_grad_norm}
        for name, value in above_zero.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if entropy_coef < 0:
            raise ValueError(f"entropy_coef must not be negative, but is {entropy_coef}")
        self.critic_coef = critic_coef
        self.critic_lr = critic_lr
        self.critic_max_grad_norm = critic_max_grad_norm
        self.entropy_coef = entropy_coef
        self.policy = policy
        policy.mask_before_softmax = mask_before_softmax
        self.critic = CounterfactualCritic(
            n_agents=spec.n_agents,
            n_actions=spec.n_actions,
            obs_dim=spec.obs_dim,
            state_dim=spec.state_dim,
            hidden_dim=critic_hidden_dim,
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def target_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        return ((self.critic, self.target_critic),)

    def parameter_groups(self) -> list[dict[str, object]]:
        groups = super().parameter_groups()
        critic = next(group for group in groups if group["name"] == "critic")
        if self.critic_lr is not None:
            critic["lr"] = self.critic_lr
        if self.critic_max_grad_norm is not None:
            critic |= {"max_grad_norm": self.critic_max_grad_norm, "clip_group": "critic"}
        return groups

    @torch.no_grad()
    def targets(self, batch: TrajectoryBatch, actions: Tensor, probabilities: Tensor) -> Tensor:
        """Return the critic's targets ``y [B, T, N]`` for a masked batch.

        Args:
            batch: ``[B, T]`` steps.
            actions: ``[B, T+1, N]``, from :func:`followed_by`.
            probabilities: ``[B, T+1, N, A]``, the policies.
        """
        after = slice(1, None)
        last = batch.last_actions()[:, after]
        q_tp1 = self.target_critic(batch.state[:, after], batch.obs[:, after], actions[:, after], last)  # [B, T, N, A]
        # Where no action was taken, the mean over the own action is no worse an estimate than one sample of it.
        mean_tp1 = expected_values(q_tp1, probabilities[:, after])
        return self.returns(batch, mean_tp1, chosen_values(q_tp1, actions[:, after]))

    def loss(self, batch: TrajectoryBatch) -> LossTerms:
        """Return actor's, critic's and entropy's loss over every agent's slot of every filled step.

        Raises:
            ValueError: the batch was not collected on-policy.
        """
        if not {"epsilon", "draws"} <= batch.extras.keys():
            raise ValueError("COMA needs the epsilon and the draws of an on-policy round: use replay=on_policy")
        batch = batch.mask_invalid()
        before = slice(0, -1)
        actors = cast(StochasticPolicy, self.policy)
        logits = actors.unroll(batch)  # [B, T+1, N, A]
        log_pi = actors.log_policy(logits, batch.avail_actions, batch.extras["epsilon"][:, None, None])
        pi = log_pi.detach().exp()
        actions = followed_by(batch, pi, batch.extras["draws"])  # [B, T+1, N]
        q = self.critic(batch.state[:, before], batch.obs[:, before], batch.actions, batch.last_actions()[:, before])
        error = chosen_values(q, batch.actions) - self.targets(batch, actions, pi)  # [B, T, N]
        advantage = counterfactual_advantage(q.detach(), pi[:, before], batch.actions)

        mask = batch.filled[..., None].expand_as(error)
        actor_loss = masked_sum(-chosen_values(log_pi[:, before], batch.actions) * advantage, mask)
        critic_loss = masked_sum(error.square(), mask)
        legal = batch.avail_actions[:, before]
        finite = log_pi[:, before].where(legal, log_pi.new_zeros(()))
        entropy = masked_sum(-(finite.exp() * finite).where(legal, finite.new_zeros(())).sum(dim=-1), mask)
        taken = chosen_values(q.detach(), batch.actions)
        return LossTerms(
            total=actor_loss + self.critic_coef * critic_loss - self.entropy_coef * entropy,
            count=mask.sum(),
            sums={
                "actor_loss": actor_loss.detach(),
                "critic_loss": critic_loss.detach(),
                "entropy": entropy.detach(),
                "advantage_abs": masked_sum(advantage.abs(), mask),
                "q_taken": masked_sum(self.unscaled(taken), mask),
                "target": masked_sum(self.unscaled(taken - error.detach()), mask),
            },
        )


def followed_by(batch: TrajectoryBatch, probabilities: Tensor, draws: Tensor) -> Tensor:
    """Return the actions of each row, and after its last step those that ``draws`` make of the policies.

    An episode that was truncated shows one more observation, whose value needs the other agents' actions there; a
    sample of the policy is right on average.

    Args:
        batch: masked; each row's filled steps are its first.
        probabilities: ``[B, T+1, N, A]``, zero for illegal actions.
        draws: ``[B, N]`` in [0, 1).

    Returns:
        ``[B, T+1, N]``.
    """
    rows = torch.arange(batch.batch_size, device=draws.device)
    ends = batch.filled.sum(dim=1)  # [B]
    actions = torch.cat([batch.actions, torch.zeros_like(batch.actions[:, :1])], dim=1)
    # In half precision, which a batch may have been moved to, the largest draws are 1.
    draws = draws.to(probabilities.dtype).clamp(max=1.0 - 2.0**-24)
    actions[rows, ends] = sample_actions(probabilities[rows, ends], draws)
    return actions
