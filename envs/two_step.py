"""Define the two-step game (Rashid et al., 2018, section 5), the smallest task where monotonic mixing beats a sum."""

from __future__ import annotations

import torch

from qmix_lightning.envs.tabular import TabularEnv

__all__ = ["TwoStep"]


class TwoStep(TabularEnv):
    """The two-step game: two agents, two actions, two steps.

    In state 1 agent 1's action picks state 2A (action 0) or 2B (action 1) and nothing is paid. 2A pays 7
    whatever is done; 2B pays ``[[0, 1], [1, 8]]``. Each agent observes the state, one-hot of (1, 2A, 2B).
    The best return is 8; a sum of individual values settles for 7.

    Args:
        num_envs: games that step together, ``E``.
    """

    def __init__(self, *, num_envs: int) -> None:
        over = 3
        super().__init__(
            num_envs=num_envs,
            labels=("1", "2A", "2B"),
            payoff=torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[7.0, 7.0], [7.0, 7.0]], [[0.0, 1.0], [1.0, 8.0]]]),
            successor=torch.tensor([[[1, 1], [2, 2]], [[over, over], [over, over]], [[over, over], [over, over]]]),
        )
