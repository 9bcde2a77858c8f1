"""Define a team's stochastic policies: a softmax, and a floor under each legal action."""

from __future__ import annotations

import torch
from torch import Tensor

from qmix_lightning.action_selection import greedy_actions
from qmix_lightning.agents.policy import Policy

__all__ = ["StochasticPolicy", "floored_log_policy", "sample_actions"]


def floored_log_policy(
    logits: Tensor, avail_actions: Tensor, epsilon: Tensor, *, mask_before_softmax: bool = True
) -> Tensor:
    """Return ``log pi`` of a softmax with a floor, which keeps every action tried (Foerster et al. 2018, section 5).

    ``pi = (1 - eps) softmax(logits over the legal actions) + eps / n_legal``; or, masked after the softmax,
    ``(1 - eps) softmax(logits over all actions) + eps / A`` where the action is legal, divided by its sum: then the
    chance to explore shrinks with the share that the softmax leaves to illegal actions.

    Computed in logarithms, so that neither a probability that underflows nor an illegal action gives a gradient that is
    not finite.

    Args:
        logits: ``[..., A]``; those of illegal actions are not read if they are masked before the softmax.
        avail_actions: ``[..., A]`` bool with at least one legal action.
        epsilon: broadcasts to ``[...]``, in [0, 1].
        mask_before_softmax: leave illegal actions out of the softmax and the floor (PyMARL's setting of this name).

    Returns:
        ``[..., A]``, ``-inf`` for illegal actions.
    """
    if avail_actions.shape != logits.shape:
        raise ValueError(f"avail_actions must be {tuple(logits.shape)}, got {tuple(avail_actions.shape)}")
    epsilon = epsilon.to(logits.dtype)[..., None]
    if not mask_before_softmax:
        floor = torch.log(epsilon / logits.shape[-1])
        floored = torch.logaddexp(torch.log_softmax(logits, dim=-1) + torch.log1p(-epsilon), floor)
        floored = torch.where(avail_actions, floored, float("-inf"))
        return floored - floored.logsumexp(dim=-1, keepdim=True)
    soft = torch.log_softmax(torch.where(avail_actions, logits, float("-inf")), dim=-1)
    # logaddexp of two infinities has a NaN for a gradient, which log_softmax would spread to the legal actions.
    soft = torch.where(avail_actions, soft, torch.zeros_like(soft))
    n_legal = avail_actions.sum(dim=-1, keepdim=True)
    floored = torch.logaddexp(soft + torch.log1p(-epsilon), torch.log(epsilon / n_legal))
    return torch.where(avail_actions, floored, float("-inf"))


def sample_actions(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Sample one action for each draw, by the inverse of the cumulative distribution.

    Args:
        probabilities: ``[..., A]``, exactly zero for illegal actions; need not add up to one exactly.
        draws: ``[...]`` in [0, 1).

    Returns:
        ``[...]`` int64, never an action of probability zero.
    """
    cumulative = probabilities.cumsum(dim=-1)
    # Divided by itself the last entry is exactly 1, above any draw; multiplying the draw could round up to it.
    return (cumulative / cumulative[..., -1:] > draws[..., None]).to(torch.uint8).argmax(dim=-1)


class StochasticPolicy(Policy):
    """Stochastic policy, an actor: the agents' outputs are logits, and actions are sampled.

    In evaluation the likeliest are taken.

    Attributes:
        mask_before_softmax: see :func:`floored_log_policy`; the learner sets it.
    """

    stochastic = True
    mask_before_softmax: bool = True

    def log_policy(self, logits: Tensor, avail_actions: Tensor, epsilon: Tensor) -> Tensor:
        """Return the logarithm of what actions are sampled from in training, ``[..., A]``."""
        return floored_log_policy(logits, avail_actions, epsilon, mask_before_softmax=self.mask_before_softmax)

    def select(self, q: Tensor, avail_actions: Tensor, epsilon: float | Tensor, draws: Tensor | None) -> Tensor:
        """Return legal actions ``[B, N]``: sampled by ``draws[..., 1]``, the likeliest without ``draws [B, N, 2]``."""
        if draws is None:
            return greedy_actions(q, avail_actions)
        return sample_actions(self.log_policy(q, avail_actions, q.new_ones(()) * epsilon).exp(), draws[..., 1])
