"""Choose actions, greedily or epsilon-greedily, and gather their values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["chosen_values", "epsilon_greedy", "greedy_actions", "greedy_values"]


def greedy_actions(q: Tensor, avail_actions: Tensor) -> Tensor:
    """Return the legal action of the highest value; the lowest index wins a tie.

    Args:
        q: ``[..., A]``; an illegal action's value is never read, NaN included.
        avail_actions: ``[..., A]`` bool with at least one legal action.

    Returns:
        ``[...]`` int64.
    """
    return torch.where(avail_actions, q, float("-inf")).argmax(dim=-1)


def epsilon_greedy(q: Tensor, avail_actions: Tensor, epsilon: float | Tensor, draws: Tensor) -> Tensor:
    """Choose, with probability ``epsilon``, a uniformly drawn legal action, otherwise the greedy one, for each agent.

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
    """Return the legal action of ``avail [..., A]`` at ``place [...]`` in [0, 1) of their order: ``[...]`` int64.

    Tensors or arrays. In float32 too, the largest ``place`` below 1 times a number stays below that number.
    """
    cumulative = avail.cumsum(-1, dtype=place.dtype)  # [..., A]
    return (cumulative <= (place * cumulative[..., -1])[..., None]).sum(-1)


def greedy_values(q_select: Tensor, q_evaluate: Tensor, avail_actions: Tensor) -> Tensor:
    """Return the value of each agent's greedy legal action: chosen by one network, valued by another.

    Double Q-learning (van Hasselt et al. 2016, eq. 4) selects with the online network and evaluates with the target
    network; passing the target network twice gives the ordinary maximum.

    Args:
        q_select: ``[..., A]``.
        q_evaluate: ``[..., A]``.
        avail_actions: ``[..., A]`` bool with at least one legal action; values of illegal actions are never used.

    Returns:
        ``[...]``.
    """
    if q_select.shape != q_evaluate.shape or avail_actions.shape != q_select.shape:
        raise ValueError(
            f"q_select, q_evaluate and avail_actions must have one shape, got {tuple(q_select.shape)}, "
            f"{tuple(q_evaluate.shape)}, {tuple(avail_actions.shape)}"
        )
    return chosen_values(q_evaluate, greedy_actions(q_select, avail_actions))


def chosen_values(q: Tensor, actions: Tensor) -> Tensor:
    """Return the value of each action taken, ``[...]``, from ``q [..., A]`` and ``actions [...]`` int64."""
    return q.gather(-1, actions[..., None]).squeeze(-1)
