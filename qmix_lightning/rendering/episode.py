"""Hold one episode as it was played: what was seen, valued, done and earned in every step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qmix_lightning.types import EnvSpec

__all__ = ["RecordedEpisode", "discounted_returns"]


@dataclass
class RecordedEpisode:
    """One episode of ``T`` joint steps.

    Attributes:
        spec: of the environment.
        action_names: a word for each action of each agent.
        seed: of the reset.
        probabilities: ``values`` are the chances of a stochastic policy, not values of actions.
        values: ``[T, N, A]`` float64; NaN where an action was illegal or the agent was not alive.
        actions: ``[T, N]``; the no-op of those not alive.
        alive: ``[T+1, N]``, before each step and after the last.
        rewards: the team's, ``[T]``.
        returns: the discounted return that followed, ``[T]``, of what was played: nothing stands for what came after.
        q_tot: the mixer's value of the joint action, ``[T]``, in the scale of returns; ``None`` without a mixer.
        sensitivities: the derivative of the mixer's output by the value of each agent's action, ``[T, N]``; 0 for those
            not alive; ``None`` without a mixer.
        metrics: what the environment reports at the end.
        ending: how it ended: ``terminated``, ``truncated``, or ``not ended`` where recording stopped before.
    """

    spec: EnvSpec
    action_names: list[list[str]]
    seed: int
    probabilities: bool
    values: NDArray[np.float64]
    actions: NDArray[np.int64]
    alive: NDArray[np.bool_]
    rewards: NDArray[np.float64]
    returns: NDArray[np.float64]
    q_tot: NDArray[np.float64] | None = None
    sensitivities: NDArray[np.float64] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    ending: str = "not ended"

    @property
    def length(self) -> int:
        """Joint steps, ``T``."""
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """The sum of rewards, not discounted: what evaluations report."""
        return float(self.rewards.sum())

    @property
    def deaths(self) -> list[tuple[int, int]]:
        """``(t, agent)`` for each agent that was alive before step ``t`` and not after it, if the episode went on."""
        last = self.length - 1
        fell = self.alive[:-1] & ~self.alive[1:]  # [T, N]
        # Where a task has ended, nobody is there any more, and nobody died of it.
        ended_at_once = fell[last].sum() == self.alive[last].sum() if self.length else False
        return [(int(t), int(i)) for t, i in np.argwhere(fell) if not (t == last and ended_at_once)]


def discounted_returns(rewards: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """Return ``G_t = r_t + gamma G_{t+1}`` for ``rewards [T]``, with nothing behind the last."""
    returns = np.zeros_like(rewards)
    following = 0.0
    for t in reversed(range(len(rewards))):
        following = float(rewards[t]) + gamma * following
        returns[t] = following
    return returns
