"""Define convolutions whose parameters are shared by groups of agents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AgentConv", "strides_for"]


class AgentConv(nn.Module):
    """Convolution on ``[M, C, channels, height, width]`` with one filter bank for each parameter set.

    Initialised as ``torch.nn.Conv2d`` is; padded so that stride 1 keeps the size.

    Args:
        sets: the parameter set of each agent, from :func:`~qmix_lightning.nn.layers.parameter_sets`.
        in_channels: of the input.
        out_channels: of the output.
        kernel: height and width of a filter, odd.
        stride: along both axes.
    """

    sets: Tensor

    def __init__(self, sets: Sequence[int], in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.n_sets = max(sets) + 1
        self.kernel, self.stride = kernel, stride
        self.register_buffer("sets", torch.tensor(sets), persistent=False)
        bound = 1.0 / math.sqrt(in_channels * kernel * kernel)
        shape = self.n_sets, out_channels, in_channels, kernel, kernel
        self.weight = nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(self.n_sets, out_channels).uniform_(-bound, bound))

    def size_after(self, side: int) -> int:
        """Return the height or width of what it makes of one of ``side``."""
        return (side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[M, C, in, height, width]`` to ``[M, C, out, height', width']``."""
        given = {"stride": self.stride, "padding": self.kernel // 2}
        if self.n_sets == 1:
            out = F.conv2d(x.flatten(0, 1), self.weight.flatten(0, 1), self.bias.flatten(), **given)
            return out.unflatten(0, x.shape[:2])
        weight, bias = self.weight[self.sets].flatten(0, 1), self.bias[self.sets].flatten()  # [C * out, in, k, k]
        out = F.conv2d(x.flatten(1, 2), weight, bias, **given, groups=x.shape[1])
        return out.unflatten(1, (x.shape[1], -1))


def strides_for(side: int, layers: int) -> list[int]:
    """Return the stride of each layer for pictures of so many pixels along their smaller side: small grids stay."""
    strides = []
    for _ in range(layers):
        stride = 4 if side > 48 else 2 if side > 12 else 1
        strides.append(stride)
        side = -(-side // stride)
    return strides
