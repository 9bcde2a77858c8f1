"""Compute linear layers of small networks as single operations.

Where products are small, autograd's steps are the cost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["product_over_rows", "rectified_linear", "weight_and_table"]


def rectified_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``relu(x W^T + b)`` of ``x [M, in]`` with ``weight [out, in]`` and ``bias [out]``: ``[M, out]``."""
    return _RectifiedLinear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]


def product_over_rows(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left^T right`` of ``left [..., M, a]`` and ``right [..., M, b]``: ``[..., a, b]``.

    The wider one is on the right: a product with few columns is up to three times slower on a CPU.
    """
    if right.shape[-1] < left.shape[-1]:
        return (right.mT @ left).mT
    return left.mT @ right


def weight_and_table(
    weight: Tensor, bias: Tensor, *, obs_dim: int, n_agents: int, n_actions: int, last_action: bool, agent_id: bool
) -> tuple[Tensor, Tensor]:
    """Split a first layer that all agents share into what multiplies observations, and a table.

    Args:
        weight: ``[1, H, I]``; ``I`` joins observation, last action and agent.
        bias: ``[1, H]``.
        obs_dim: ``O``, 0 if the observation is not seen.
        n_agents: ``N``.
        n_actions: ``A``.
        last_action: ``I`` has the last action.
        agent_id: ``I`` has the agent.

    Returns:
        ``[1, H, O]``, and what is added for each agent and action before (none, 0, 1, ...), ``[N * (1 + A), H]``.
    """
    sizes = obs_dim, last_action * n_actions, agent_id * n_agents
    return _WeightAndTable.apply(weight, bias, sizes, n_agents, n_actions)  # pyright: ignore[reportReturnType]


class _RectifiedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        out = torch.addmm(bias, x, weight.t()).relu_()
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, out = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        of_x = gradient @ weight if ctx.needs_input_grad[0] else None
        return of_x, product_over_rows(gradient, x), gradient.sum(0)


class _WeightAndTable(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, weight: Tensor, bias: Tensor, sizes: tuple[int, int, int], n_agents: int, n_actions: int
    ) -> tuple[Tensor, Tensor]:
        ctx.sizes, ctx.n_agents = sizes, n_agents
        of_obs, of_action, of_agent = weight[0].split(sizes, dim=-1)  # [H, ...]
        table = bias.new_empty(n_agents, 1 + n_actions, bias.shape[-1]).copy_(bias)
        if sizes[1]:
            table[:, 1:] += of_action.t()
        if sizes[2]:
            table += of_agent.t()[:, None]
        return of_obs[None].clone(), table.flatten(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_obs: Tensor, of_table: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, action, agent = ctx.sizes
        grid = of_table.unflatten(0, (ctx.n_agents, -1))  # [N, 1 + A, H]
        for_action, for_agent = grid.sum(0), grid.sum(1)  # [1 + A, H], [N, H]
        parts = [of_obs[0]]
        if action:
            parts.append(for_action[1:].t())
        if agent:
            parts.append(for_agent.t())
        return torch.cat(parts, dim=1)[None], for_agent.sum(0)[None], None, None, None
