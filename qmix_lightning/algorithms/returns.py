"""Targets as pure functions.

Index convention: ``[:, t]`` of a value named ``*_t`` belongs to the observation before step ``t``, of one named
``*_tp1`` to the true observation after it. ``reward`` and ``terminated`` at ``t`` are outcomes of step ``t``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["greedy_values", "one_step_targets"]


def greedy_values(q_select: Tensor, q_evaluate: Tensor, avail_actions: Tensor) -> Tensor:
    """The value of each agent's greedy legal action: chosen by one network, valued by another.

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
    best = torch.where(avail_actions, q_select, float("-inf")).argmax(dim=-1, keepdim=True)
    return q_evaluate.gather(-1, best).squeeze(-1)


def one_step_targets(reward: Tensor, terminated: Tensor, value_tp1: Tensor, gamma: float) -> Tensor:
    """``y_t = r_t + gamma * V(s_{t+1})``, without the bootstrap where the task ended (Rashid et al. 2018, eq. 6).

    A truncated step is not a terminated one: the limit is not the task's end, so its successor is bootstrapped.

    Args:
        reward: ``[B, T]``.
        terminated: ``[B, T]`` bool.
        value_tp1: ``[B, T]`` or, one value for each agent, ``[B, T, N]``.
        gamma: discount.

    Returns:
        The shape of ``value_tp1``.
    """
    if reward.shape != value_tp1.shape[:2] or terminated.shape != reward.shape:
        raise ValueError(
            f"expected reward and terminated {tuple(value_tp1.shape[:2])}, "
            f"got {tuple(reward.shape)} and {tuple(terminated.shape)}"
        )
    extra = (1,) * (value_tp1.dim() - 2)
    reward = reward.reshape(*reward.shape, *extra)
    terminated = terminated.reshape(*terminated.shape, *extra)
    return reward + gamma * torch.where(terminated, torch.zeros_like(value_tp1), value_tp1)
