"""Define layers whose parameters are shared by groups of agents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AgentLayerNorm", "AgentLinear", "ShareParameters", "orthogonal_", "packing_columns", "parameter_sets"]


ShareParameters = Literal[True, False, "group"]
"""Whether agents share their parameters: all, none, or those of one unit type."""


def parameter_sets(share_parameters: ShareParameters, group_of_agent: Sequence[int]) -> list[int]:
    """Return which set of parameters each agent uses: one for all, one for each group, or one for each agent.

    Args:
        share_parameters: true, false or ``"group"`` (agents of one unit type share).
        group_of_agent: ``[N]``, from ``EnvSpec``.
    """
    if share_parameters == "group":
        order = {group: index for index, group in enumerate(dict.fromkeys(group_of_agent))}
        return [order[group] for group in group_of_agent]
    if share_parameters is True:
        return [0] * len(group_of_agent)
    if share_parameters is False:
        return list(range(len(group_of_agent)))
    raise ValueError(f"share_parameters must be true, false or 'group', not {share_parameters!r}")


def packing_columns(sets: Sequence[int]) -> int:
    """Return in how many columns agents with these sets of parameters are packed: 1 if they share one, else ``N``."""
    return 1 if len(set(sets)) == 1 else len(sets)


class AgentLinear(nn.Module):
    """Linear layer, ``torch.nn.Linear`` on ``[..., N, in]`` with one weight matrix for each parameter set.

    With a single set it is exactly ``F.linear``. Initialised as ``torch.nn.Linear`` is.

    Args:
        sets: the parameter set of each agent, from :func:`parameter_sets`.
        in_features: last axis of the input.
        out_features: last axis of the output.
    """

    sets: Tensor

    def __init__(self, sets: Sequence[int], in_features: int, out_features: int) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"a layer needs at least one input and one output; check hidden_dim: {out_features}")
        self.n_sets = max(sets) + 1
        self.register_buffer("sets", torch.tensor(sets), persistent=False)
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(self.n_sets, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(self.n_sets, out_features).uniform_(-bound, bound))

    @torch.no_grad()
    def orthogonal_(self, gain: float = 1.0, blocks: int = 1) -> None:
        """Set orthogonal weights and zero biases (Saxe et al. 2014), each parameter set and block of outputs by itself.

        Args:
            gain: the size of the singular values; sqrt(2) before a ReLU.
            blocks: parts along the outputs that are matrices of their own, as a GRU's three gates are.
        """
        for weight in self.weight:
            for block in weight.chunk(blocks):
                nn.init.orthogonal_(block, gain)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.n_sets == 1:
            # A view and not an element: the gradient of an element is copied into zeros of the whole.
            return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
        flat = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)  # [N, M, in]
        weight = self.weight[self.sets].transpose(1, 2)  # [N, in, out]
        out = torch.matmul(flat, weight) + self.bias[self.sets][:, None]  # [N, M, out]
        return out.transpose(0, 1).reshape(*x.shape[:-1], out.shape[-1])  # [..., N, out]; of no rows -1 is refused


def orthogonal_(agent: nn.Module, **gates: int) -> None:
    """Initialise every :class:`AgentLinear` of ``agent`` orthogonally: gain sqrt(2) before a ReLU, 1 in the head.

    Args:
        agent: one, or a part of one; changed in place.
        gates: for layers that feed gates instead of a ReLU, by name: how many; their gain is 1.
    """
    for name, module in agent.named_modules():
        if isinstance(module, AgentLinear):
            plain = name in gates or name.startswith("head")
            module.orthogonal_(1.0 if plain else math.sqrt(2.0), gates.get(name, 1))


class AgentLayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of ``[..., N, F]`` with one scale and shift for each parameter set.

    Args:
        sets: the parameter set of each agent, from :func:`parameter_sets`.
        features: last axis.
    """

    sets: Tensor

    def __init__(self, sets: Sequence[int], features: int) -> None:
        super().__init__()
        self.register_buffer("sets", torch.tensor(sets), persistent=False)
        self.weight = nn.Parameter(torch.ones(max(sets) + 1, features))
        self.bias = nn.Parameter(torch.zeros(max(sets) + 1, features))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.shape[0] == 1:
            return F.layer_norm(x, x.shape[-1:], self.weight[0], self.bias[0])
        return F.layer_norm(x, x.shape[-1:]) * self.weight[self.sets] + self.bias[self.sets]
