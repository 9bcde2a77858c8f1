"""Define an agent for observations that are pictures or grids, alone or beside other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from qmix_lightning.agents.base import Agent, AgentState
from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.nn.convolution import AgentConv, strides_for
from qmix_lightning.nn.layers import AgentLinear, parameter_sets
from qmix_lightning.nn.packing import Packing
from qmix_lightning.types import Picture

__all__ = ["ConvolutionalAgent"]


class ConvolutionalAgent(Agent):
    """Agent with convolutions over each picture, then a recurrent or a feed-forward agent.

    What else is observed, the last action and the agent's identity join behind the convolutions.

    Args:
        input_dim: ``I``, from the input builder.
        n_actions: ``A``.
        group_of_agent: ``[N]`` unit type of each agent.
        pictures: from ``EnvSpec``.
        inputs: the input builder; the observation comes first in what it makes.
        channels: of each convolution, each followed by a ReLU.
        kernel: height and width of a filter, odd.
        hidden_dim: width of the layer behind the convolutions, and of the memory, ``H``.
        memory: a GRU; without, two hidden layers.
        share_parameters: true, false (one network for each agent), or ``"group"``.
        layer_norm: normalise as the recurrent or the feed-forward agent does.
        dueling: values as a state value and advantages (Wang et al. 2016).
        orthogonal_init: orthogonal weights, zero biases (Saxe et al. 2014), but for the convolutions.
    """

    others: Tensor

    def __init__(
        self,
        *,
        input_dim: int,
        n_actions: int,
        group_of_agent: Sequence[int],
        pictures: Sequence[Picture],
        inputs: InputBuilder,
        channels: list[int],
        kernel: int,
        hidden_dim: int,
        memory: bool,
        share_parameters: Literal[True, False, "group"],
        layer_norm: bool,
        dueling: bool,
        orthogonal_init: bool,
    ) -> None:
        super().__init__()
        _check(pictures, inputs, channels, kernel)
        sets = parameter_sets(share_parameters, group_of_agent)
        self.pictures, self.obs_dim = tuple(pictures), inputs.obs_dim
        shown = {index for picture in pictures for index in range(picture.start, picture.end)}
        others = [index for index in range(inputs.obs_dim) if index not in shown]
        self.register_buffer("others", torch.tensor(others, dtype=torch.int64), persistent=False)
        self.filters = nn.ModuleList(_filters(sets, picture, channels, kernel) for picture in self.pictures)
        size = sum(_size_after(layers, p) for layers, p in zip(self.filters, self.pictures, strict=True))
        rest = len(others) + input_dim - inputs.obs_dim
        self.project = AgentLinear(sets, size, hidden_dim)
        self.rest = AgentLinear(sets, rest, hidden_dim) if rest else None
        self.core = (RecurrentAgent if memory else FeedForwardAgent)(
            input_dim=hidden_dim,
            n_actions=n_actions,
            group_of_agent=group_of_agent,
            hidden_dim=hidden_dim,
            share_parameters=share_parameters,
            layer_norm=layer_norm,
            dueling=dueling,
            orthogonal_init=orthogonal_init,
        )
        self.columns, self.memoryless = self.core.columns, self.core.memoryless
        self.feature_dim = hidden_dim
        # The core's own head would be there twice, and one of the two without a gradient.
        self.head = self.core.head
        self.core.head = nn.Identity()
        if orthogonal_init:
            self.project.orthogonal_(2.0**0.5)
            if self.rest is not None:
                self.rest.orthogonal_(2.0**0.5)

    def initial_state(self, batch_size: int) -> AgentState:
        return self.core.initial_state(batch_size)

    def body(self, inputs: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        return self.core.body(self._encode(inputs), state)

    def unroll_body(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        return self.core.unroll_body(self._encode(inputs), state, alive)

    def unroll_packed(self, inputs: Tensor, state: AgentState, packing: Packing) -> Tensor:
        return self.core.unroll_packed(self._encode(inputs), state, packing)

    def _encode(self, inputs: Tensor) -> Tensor:
        """Encode ``inputs [..., N, I]``, the observation first, to ``[..., N, H]``."""
        obs = inputs[..., : self.obs_dim]
        seen = self.project(self._convolved(obs.flatten(0, -3)).unflatten(0, obs.shape[:-2]))
        if self.rest is not None:
            rest = torch.cat([obs.index_select(-1, self.others), inputs[..., self.obs_dim :]], dim=-1)
            seen = seen + self.rest(rest)
        return torch.relu(seen)

    def _convolved(self, obs: Tensor) -> Tensor:
        """Return what the convolutions make of the pictures in ``obs [M, C, O]``: ``[M, C, size]``."""
        made = []
        for picture, layers in zip(self.pictures, self.filters, strict=True):
            x = obs[..., picture.start : picture.end].unflatten(-1, picture.shape) * picture.scale
            if not picture.channels_first:
                x = x.movedim(-1, -3)
            made.append(layers(x.contiguous()).flatten(2))
        return made[0] if len(made) == 1 else torch.cat(made, dim=-1)


def _check(pictures: Sequence[Picture], inputs: InputBuilder, channels: Sequence[int], kernel: int) -> None:
    if not pictures:
        raise ValueError(
            "the environment's observations hold no picture or grid of two or three axes; use agent=recurrent or "
            "agent=feedforward"
        )
    if not inputs.use_obs:
        raise ValueError("it looks at pictures, so use_obs must be true")
    if inputs.moments is not None:
        raise ValueError("normalize_obs must be false: pictures are scaled by what their space says")
    if not channels or any(isinstance(c, bool) or not isinstance(c, int) or c < 1 for c in channels):
        raise ValueError(f"channels must be a list of whole numbers from 1 on, not {list(channels)}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, not {kernel}")


def _filters(sets: Sequence[int], picture: Picture, channels: Sequence[int], kernel: int) -> nn.Sequential:
    depth, height, width = _sides(picture)
    layers: list[nn.Module] = []
    for out, stride in zip(channels, strides_for(min(height, width), len(channels)), strict=True):
        layers += [AgentConv(sets, depth, out, kernel, stride), nn.ReLU()]
        depth = out
    return nn.Sequential(*layers)


def _sides(picture: Picture) -> tuple[int, int, int]:
    """Return channels, height and width."""
    a, b, c = picture.shape
    return (a, b, c) if picture.channels_first else (c, a, b)


def _size_after(layers: nn.Module, picture: Picture) -> int:
    depth, height, width = _sides(picture)
    for layer in layers.modules():
        if isinstance(layer, AgentConv):
            depth, height, width = layer.weight.shape[1], layer.size_after(height), layer.size_after(width)
    return depth * height * width
