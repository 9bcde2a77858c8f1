"""Define the PQN learner: Q-learning without replay and without target networks, held stable by layer normalisation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qmix_lightning.action_selection import greedy_actions
from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.algorithms.value_learner import RewardNormalization, ValueSettings
from qmix_lightning.types import TrajectoryBatch

__all__ = ["PQN"]


class PQN(QLearning):
    """PQN learner: parallelised Q-network through a mixer (Gallici et al. 2024, section 4 and their PQN-VDN).

    The squared error to Peng's lambda return over greedy values,
    ``G_t = r_t + gamma ((1 - lambda) max_a Q(s_{t+1}, a) + lambda G_{t+1})``, where ``Q`` is the network that learns,
    held constant. What target networks do elsewhere is done by normalised layers (``agent.layer_norm``) and by the
    many environments that a round comes from.

    Args:
        policy: the team's acting network.
        mixer: as for :class:`QLearning`.
        gamma: discount.
        td_lambda: in [0, 1].
        normalize_rewards: see :class:`ValueSettings`.
        normalize_values: see :class:`ValueSettings`.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        mixer: nn.Module,
        gamma: float,
        td_lambda: float,
        normalize_rewards: RewardNormalization,
        normalize_values: bool,
    ) -> None:
        settings = ValueSettings(
            gamma=gamma,
            double_q=False,
            returns="peng_lambda",
            n_steps=1,
            td_lambda=td_lambda,
            normalize_rewards=normalize_rewards,
            normalize_values=normalize_values,
            # Not used: there are no target networks.
            target_update_mode="hard",
            target_update_every=1,
            target_update_unit="updates",
            target_update_tau=1.0,
        )
        super().__init__(policy=policy, mixer=mixer, settings=settings)
        del self.target_policy, self.target_mixer

    def target_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        return ()

    def unroll(self, batch: TrajectoryBatch) -> tuple[Tensor, None]:
        """Return the network's ``q [B, T+1, N, A]``; there is no target network."""
        return self.policy.unroll(batch), None

    @torch.no_grad()
    def targets(self, batch: TrajectoryBatch, q_online: Tensor, q_target: Tensor | None = None) -> Tensor:
        """Return the targets ``G [B, T]`` (or ``[B, T, N]``) for a masked batch; ``q_online [B, T+1, N, A]``."""
        after = slice(1, None)
        q = q_online.detach()[:, after]
        greedy = greedy_actions(q, batch.avail_actions[:, after])  # [B, T, N]
        return self.returns(batch, self.mix(self.mixer, q, greedy, batch, after))
