"""Encode observations that are sets of entities as one vector for each agent, by attention over what it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qmix_lightning.nn.layers import AgentLinear
from qmix_lightning.types import EntityBlock

__all__ = ["DirectedHead", "EntityEncoder", "Seen"]


class Seen(NamedTuple):
    """An agent's encoded observation: a summary, the entities of each type, and which of them it sees.

    Attributes:
        summary: its own embedding and what it gathered from the entities, ``[..., C, 2D]``.
        entities: the embeddings of each type, ``[..., K, C, D]``.
        visible: which of them are there and in sight, ``[..., K, C]`` bool.
    """

    summary: Tensor
    entities: list[Tensor]
    visible: list[Tensor]


class EntityEncoder(nn.Module):
    """Embeds every entity by its type, and lets each agent attend to those it sees, itself among them.

    Scaled dot-product attention with several heads (Vaswani et al. 2017, eq. 1) from the agent's own features; an agent
    always sees itself, so there is always something to attend to. The weights of a type are one for all its entities:
    exchanging two of them changes nothing.

    Letters: ``K`` entities of all types, ``D`` embedding, ``C`` agents or columns of a packing.

    Args:
        sets: the parameter set of each agent, from :func:`~qmix_lightning.nn.layers.parameter_sets`.
        blocks: where entities stand in the observation; what is in none of them is the agent's own.
        obs_dim: ``O``.
        input_dim: ``I``; behind the observation come the last action and the agent's identity.
        embed_dim: ``D``.
        heads: of the attention; they divide ``D`` between them.
    """

    own: Tensor

    def __init__(
        self,
        sets: Sequence[int],
        *,
        blocks: Sequence[EntityBlock],
        obs_dim: int,
        input_dim: int,
        embed_dim: int,
        heads: int,
    ) -> None:
        super().__init__()
        if heads < 1 or embed_dim % heads:
            raise ValueError(f"embed_dim ({embed_dim}) must divide by attention_heads ({heads})")
        self.blocks = tuple(blocks)
        self.heads = heads
        self.obs_dim = obs_dim
        taken = {index for block in self.blocks for index in range(block.start, block.end)}
        own = [index for index in range(obs_dim) if index not in taken]
        if not own and input_dim == obs_dim:
            raise ValueError("nothing is left for the agent's own features: switch on use_agent_id or use_last_action")
        self.register_buffer("own", torch.tensor(own, dtype=torch.int64), persistent=False)
        for number, block in enumerate(self.blocks):
            absent = torch.tensor(block.absent or (0.0,) * block.size)
            self.register_buffer(f"absent_{number}", absent, persistent=False)
        self.embed_own = AgentLinear(sets, len(own) + input_dim - obs_dim, embed_dim)
        self.embed = nn.ModuleList(AgentLinear(sets, block.size, embed_dim) for block in self.blocks)
        self.query = AgentLinear(sets, embed_dim, embed_dim)
        self.key = AgentLinear(sets, embed_dim, embed_dim)
        self.value = AgentLinear(sets, embed_dim, embed_dim)

    def forward(self, inputs: Tensor) -> Seen:
        """Encode ``inputs [..., C, I]``, the observation first."""
        obs = inputs[..., : self.obs_dim]
        own = torch.cat([obs.index_select(-1, self.own), inputs[..., self.obs_dim :]], dim=-1)
        own = torch.relu(self.embed_own(own))  # [..., C, D]
        tokens, seen = [], []
        for number, (block, embed) in enumerate(zip(self.blocks, self.embed, strict=True)):
            features = obs[..., block.start : block.end].unflatten(-1, (block.count, block.size))
            features = features.transpose(-2, -3)  # [..., K, C, size]
            # All zero is what a dead agent observes: it sees nobody, whatever stands for absence.
            absent = (features == getattr(self, f"absent_{number}")).all(-1) | (features == 0).all(-1)
            tokens.append(torch.relu(embed(features)))
            seen.append(~absent)
        itself = torch.ones_like(own[..., None, :, 0], dtype=torch.bool)
        everyone = torch.cat([own[..., None, :, :], *tokens], dim=-3), torch.cat([itself, *seen], dim=-2)
        return Seen(torch.cat([own, self._attend(own, *everyone)], dim=-1), tokens, seen)

    def _attend(self, own: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
        """Attend by ``own [..., C, D]`` to ``tokens [..., K, C, D]`` where ``seen [..., K, C]``; to ``[..., C, D]``."""

        def split(vectors: Tensor) -> Tensor:
            return vectors.unflatten(-1, (self.heads, -1))  # [..., heads, D / heads]

        query, key, value = split(self.query(own)), split(self.key(tokens)), split(self.value(tokens))
        scores = (query[..., None, :, :, :] * key).sum(-1) / math.sqrt(key.shape[-1])  # [..., K, C, heads]
        weights = torch.softmax(scores.masked_fill(~seen[..., None], -math.inf), dim=-3)
        return (weights[..., None] * value).sum(-4).flatten(-2)  # [..., C, D]


class DirectedHead(nn.Module):
    """Head that values actions directed at entities beside all other actions.

    Takes features whose last ``M`` numbers say how good it is to act on each of the ``M`` entities that can be acted
    on; ``base`` values everything else, and in its last output acting on any of them.

    Args:
        base: ``[..., N, F - M]`` to ``[..., N, A - M + 1]``, or to ``[..., N, A]`` where ``M`` is 0.
        actions: ``[M]`` the action directed at each entity.
        n_actions: ``A``.
    """

    order: Tensor

    def __init__(self, base: nn.Module, actions: Sequence[int], n_actions: int) -> None:
        super().__init__()
        self.base = base
        self.directed = len(actions)
        others = [action for action in range(n_actions) if action not in set(actions)]
        order = torch.tensor([*others, *actions]).argsort()
        self.register_buffer("order", order, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features [..., N, F]`` to ``q [..., N, A]``."""
        if not self.directed:
            return self.base(features)
        q = self.base(features[..., : -self.directed])
        others, common = q[..., :-1], q[..., -1:]
        return torch.cat([others, common + features[..., -self.directed :]], dim=-1).index_select(-1, self.order)
