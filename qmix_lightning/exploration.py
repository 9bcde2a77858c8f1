"""How agents try things: epsilon-greedy over legal actions, with epsilon scheduled over environment steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["EpsilonSchedule", "epsilon_greedy", "greedy_actions"]


class EpsilonSchedule:
    """Linear from ``start`` to ``finish`` over the first ``anneal_steps`` environment steps, then constant.

    PyMARL's default is 1 to 0.05 over 50,000. Environment steps are joint steps summed over ranks.
    """

    def __init__(self, start: float, finish: float, anneal_steps: int) -> None:
        self.start = start
        self.finish = finish
        self.anneal_steps = anneal_steps

    def __call__(self, env_steps: int) -> float:
        if self.anneal_steps <= 0:
            return self.finish
        fraction = min(1.0, env_steps / self.anneal_steps)
        return self.start + (self.finish - self.start) * fraction


def greedy_actions(q: Tensor, avail_actions: Tensor) -> Tensor:
    """The legal action of the highest value; the lowest index wins a tie.

    Args:
        q: ``[..., A]``; an illegal action's value is never read, NaN included.
        avail_actions: ``[..., A]`` bool with at least one legal action.

    Returns:
        ``[...]`` int64.
    """
    return torch.where(avail_actions, q, float("-inf")).argmax(dim=-1)


def epsilon_greedy(q: Tensor, avail_actions: Tensor, epsilon: float | Tensor, draws: Tensor) -> Tensor:
    """With probability ``epsilon`` a uniformly chosen legal action, otherwise the greedy one, for each agent.

    Args:
        q: ``[..., A]``.
        avail_actions: ``[..., A]`` bool with at least one legal action.
        epsilon: probability of exploring; a scalar tensor is not looked at, only computed with.
        draws: ``[..., 2]`` in [0, 1): whether to explore, and which legal action.

    Returns:
        ``[...]`` int64, always legal.
    """
    if not isinstance(epsilon, Tensor) and epsilon <= 0.0:
        return greedy_actions(q, avail_actions)
    if not isinstance(epsilon, Tensor) and q.device.type == "cpu":
        # Few explore, and numpy's calls cost a third of torch's.
        numbers, legal = draws.numpy().reshape(-1, 2), avail_actions.numpy().reshape(-1, avail_actions.shape[-1])
        chosen = np.where(legal, q.numpy().reshape(legal.shape), -np.inf).argmax(-1)
        (who,) = (numbers[:, 0] < epsilon).nonzero()
        if len(who):
            chosen[who] = _nth_legal(legal[who], numbers[who, 1])
        return torch.from_numpy(chosen.reshape(q.shape[:-1]))
    greedy = greedy_actions(q, avail_actions)
    return torch.where(draws[..., 0] < epsilon, _nth_legal(avail_actions, draws[..., 1]), greedy)


def _nth_legal(avail: Any, place: Any) -> Any:
    """The legal action of ``avail [..., A]`` at ``place [...]`` in [0, 1) of their order: ``[...]`` int64.

    Tensors or arrays. In float32 too, the largest ``place`` below 1 times a number stays below that number.
    """
    cumulative = avail.cumsum(-1, dtype=place.dtype)  # [..., A]
    return (cumulative <= (place * cumulative[..., -1])[..., None]).sum(-1)
