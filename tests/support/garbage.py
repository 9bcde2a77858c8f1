"""Garbage where values have no meaning, and the check that a learner takes no notice of it."""

from dataclasses import replace

import torch

from qmix_lightning.types import TrajectoryBatch

INF, NAN = float("inf"), float("nan")
GARBAGE = [INF, -INF, NAN, 1e30, "random"]


def garbage_like(garbage, like: torch.Tensor) -> torch.Tensor:
    g = torch.Generator().manual_seed(99)
    if like.dtype == torch.bool:
        return (
            torch.rand(like.shape, generator=g) > 0.5 if garbage == "random" else torch.full_like(like, garbage == INF)
        )
    if like.dtype == torch.int64:
        return torch.full_like(like, {"random": 3, INF: 10**9, -INF: -(10**9)}.get(garbage, -1))
    if garbage == "random":
        return 1e4 * torch.randn(like.shape, generator=g, dtype=like.dtype)
    return torch.full_like(like, garbage)


def outcome(learner, data):
    """The terms of the loss, and every gradient."""
    learner.zero_grad()
    terms = learner.loss(data)
    terms.total.backward()
    gradients = {n: p.grad for n, p in learner.named_parameters() if p.requires_grad}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    assert any(g.abs().max() > 0 for g in gradients.values())
    assert torch.isfinite(terms.total)
    return terms, {n: g.clone() for n, g in gradients.items()}


def assert_unchanged(learner, clean, *dirty):
    """Loss, logged sums and gradients of each dirty batch are those of the clean one, bit for bit."""
    terms, gradients = outcome(learner, clean)
    for other, other_gradients in (outcome(learner, batch) for batch in dirty):
        assert other.total.item() == terms.total.item()
        assert other.count.item() == terms.count.item()
        for name, value in terms.sums.items():
            assert other.sums[name].item() == value.item(), name
        for name, gradient in gradients.items():
            assert torch.equal(other_gradients[name], gradient), name


def dirty_padding(data: TrajectoryBatch, garbage) -> TrajectoryBatch:
    filled, valid = data.filled, data.row_valid()

    def put(value: torch.Tensor) -> torch.Tensor:
        keep = valid if value.shape[1] == valid.shape[1] else filled
        return torch.where(keep.reshape(*keep.shape, *(1,) * (value.dim() - 2)), value, garbage_like(garbage, value))

    names = ("obs", "state", "avail_actions", "agent_mask", "actions", "reward", "terminated", "truncated")
    return replace(data, **{n: put(getattr(data, n)) for n in names})


def dirty_dead(data: TrajectoryBatch, garbage) -> TrajectoryBatch:
    alive = data.agent_mask
    return replace(
        data,
        obs=torch.where(alive[..., None], data.obs, garbage_like(garbage, data.obs)),
        avail_actions=torch.where(alive[..., None], data.avail_actions, garbage_like(garbage, data.avail_actions)),
        actions=torch.where(alive[:, :-1], data.actions, garbage_like(garbage, data.actions)),
    )
