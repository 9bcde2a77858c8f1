"""Compute targets as pure functions.

Index convention: ``[:, t]`` of a value named ``*_t`` belongs to the observation before step ``t``, of one named
``*_tp1`` to the true observation after it. ``reward`` and ``terminated`` at ``t`` are outcomes of step ``t``.

Every target is an instance of one recursion (Sutton & Barto 2018, eq. 12.18), with ``c_t = 1`` while the row continues
after step ``t`` and 0 at its last step, whatever ended it::

    G_t = r_t + gamma * (1 - terminated_t) * ((1 - lambda c_t) V(s_{t+1}) + lambda c_t G_{t+1})

so a terminated step is worth its reward, and a truncated one bootstraps. Lambda 0 is the one-step target, lambda 1 the
discounted sum of rewards, with the bootstrap of a row that did not terminate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qmix_lightning.runtime.moved import look_up_renamed

__all__ = ["continuation_mask", "lambda_returns", "n_step_returns", "one_step_targets"]

__getattr__ = look_up_renamed(
    __name__,
    {
        "goes_on": "qmix_lightning.algorithms.returns:continuation_mask",
        "greedy_values": "qmix_lightning.action_selection:greedy_values",
    },
)


def one_step_targets(reward: Tensor, terminated: Tensor, value_tp1: Tensor, gamma: float) -> Tensor:
    """Return one-step targets ``y_t = r_t + gamma * V(s_{t+1})`` (Rashid et al. 2018, eq. 6).

    There is no bootstrap where the task ended. A truncated step is not a terminated one: the limit is not the task's
    end, so its successor is bootstrapped.

    Args:
        reward: ``[B, T]``.
        terminated: ``[B, T]`` bool.
        value_tp1: ``[B, T]`` or, one value for each agent, ``[B, T, N]``.
        gamma: discount.

    Returns:
        The shape of ``value_tp1``.
    """
    reward, terminated = _aligned(value_tp1, reward, terminated)
    return reward + gamma * torch.where(terminated, torch.zeros_like(value_tp1), value_tp1)


def continuation_mask(filled: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
    """Return after which steps the row continues, ``[B, T]`` bool (``c_t`` of the module).

    Step ``t + 1`` of the row exists, and step ``t`` neither terminated nor truncated.

    Args:
        filled: ``[B, T]`` bool.
        terminated: ``[B, T]`` bool.
        truncated: ``[B, T]`` bool.
    """
    following = torch.cat([filled[:, 1:], torch.zeros_like(filled[:, :1])], dim=1)
    return filled & following & ~terminated & ~truncated


def n_step_returns(
    reward: Tensor, terminated: Tensor, continues: Tensor, value_tp1: Tensor, gamma: float, n: int
) -> Tensor:
    """Return n-step returns, shorter at a row's end (Sutton & Barto 2018, eq. 7.1).

    ``sum_{k<n} gamma^k r_{t+k} + gamma^n V(s_{t+n})``.

    Args:
        reward: ``[B, T]``.
        terminated: ``[B, T]`` bool.
        continues: ``[B, T]`` bool, from :func:`continuation_mask`.
        value_tp1: ``[B, T]`` or ``[B, T, N]``.
        gamma: discount.
        n: steps, at least 1.

    Returns:
        The shape of ``value_tp1``.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    one_step = one_step_targets(reward, terminated, value_tp1, gamma)
    reward, continues = _aligned(value_tp1, reward, continues)
    target = one_step
    for _ in range(min(n, reward.shape[1]) - 1):  # no row has more steps
        target_tp1 = torch.cat([target[:, 1:], torch.zeros_like(target[:, :1])], dim=1)
        target = torch.where(continues, reward + gamma * target_tp1, one_step)
    return target


def lambda_returns(
    reward: Tensor, terminated: Tensor, continues: Tensor, value_tp1: Tensor, gamma: float, lambda_: float
) -> Tensor:
    """Return the lambda return: the recursion at the top of this module.

    With ``V`` the value of the greedy actions it is Peng's Q(lambda) (Peng & Williams 1996), what Hu et al. 2021 tune
    QMIX with; with ``V`` the value of the actions that were taken it is TD(lambda) of the policy that took them
    (Sarsa(lambda) in Sutton & Barto 2018, section 12.7).

    Args:
        reward: ``[B, T]``.
        terminated: ``[B, T]`` bool.
        continues: ``[B, T]`` bool, from :func:`continuation_mask`.
        value_tp1: ``[B, T]`` or ``[B, T, N]``.
        gamma: discount.
        lambda_: in [0, 1].

    Returns:
        The shape of ``value_tp1``.
    """
    one_step = one_step_targets(reward, terminated, value_tp1, gamma)
    reward, continues = _aligned(value_tp1, reward, continues)
    # What a step says by itself: r + gamma (1 - lambda) V, or where the row ends the one-step target.
    target = torch.where(continues, reward + gamma * (1.0 - lambda_) * value_tp1, one_step)  # [B, T] or [B, T, N]
    # The recursion in log2(T) rounds: what a step adds up reaches over a span of steps, and each round doubles it.
    span, decay = 1, gamma * lambda_  # decay: (gamma lambda)^span
    reaches = continues  # whether the row goes on for a whole span after the step
    while span < target.shape[1]:
        near, far = target[:, :-span], target[:, span:]
        # A choice and not a product with 0: behind a row's end stands padding.
        added = torch.where(reaches[:, :-span], torch.add(near, far, alpha=decay), near)
        target = torch.cat([added, target[:, -span:]], dim=1)
        reaches = torch.cat([reaches[:, :-span] & reaches[:, span:], reaches[:, -span:]], dim=1)
        span, decay = 2 * span, decay * decay
    return target


def _aligned(value_tp1: Tensor, *per_step: Tensor) -> list[Tensor]:
    """Return ``[B, T]`` tensors with as many trailing axes as ``value_tp1`` has."""
    for tensor in per_step:
        if tensor.shape != value_tp1.shape[:2]:
            raise ValueError(
                f"expected reward, terminated and continues {tuple(value_tp1.shape[:2])}, got {tuple(tensor.shape)}"
            )
    extra = (1,) * (value_tp1.dim() - 2)
    return [tensor.reshape(*tensor.shape, *extra) for tensor in per_step]
