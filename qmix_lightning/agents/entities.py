"""From an observation that is a set of entities to one vector for each agent, by attention over what it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qmix_lightning.agents.base import AgentLinear
from qmix_lightning.types import EntityBlock

__all__ = ["EntityEncoder"]


class EntityEncoder(nn.Module):
    """Embeds every entity by its type, and lets each agent attend to those it sees, itself among them.

    Scaled dot-product attention with several heads (Vaswani et al. 2017, eq. 1) from the agent's own features; an agent
    always sees itself, so there is always something to attend to. The weights of a type are one for all its entities:
    exchanging two of them changes nothing.

    Letters: ``K`` entities of all types, ``D`` embedding, ``C`` agents or columns of a packing.

    Args:
        sets: the parameter set of each agent, from :func:`~qmix_lightning.agents.base.parameter_sets`.
        blocks: where entities stand in the input.
        input_dim: ``I``; what is in no block is the agent's own.
        embed_dim: ``D``.
        heads: of the attention; they divide ``D`` between them.
    """

    own: Tensor

    def __init__(
        self, sets: Sequence[int], *, blocks: Sequence[EntityBlock], input_dim: int, embed_dim: int, heads: int
    ) -> None:
        super().__init__()
        if heads < 1 or embed_dim % heads:
            raise ValueError(f"embed_dim ({embed_dim}) must divide by attention_heads ({heads})")
        self.blocks = tuple(blocks)
        self.heads = heads
        taken = {index for block in self.blocks for index in range(block.start, block.end)}
        own = [index for index in range(input_dim) if index not in taken]
        if not own:
            raise ValueError("nothing is left for the agent's own features: switch on use_agent_id or use_last_action")
        self.register_buffer("own", torch.tensor(own), persistent=False)
        for number, block in enumerate(self.blocks):
            absent = torch.tensor(block.absent or (0.0,) * block.size)
            self.register_buffer(f"absent_{number}", absent, persistent=False)
        self.embed_own = AgentLinear(sets, len(own), embed_dim)
        self.embed = nn.ModuleList(AgentLinear(sets, block.size, embed_dim) for block in self.blocks)
        self.query = AgentLinear(sets, embed_dim, embed_dim)
        self.key = AgentLinear(sets, embed_dim, embed_dim)
        self.value = AgentLinear(sets, embed_dim, embed_dim)

    def forward(self, inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """One vector for each agent, and the entities by type.

        Args:
            inputs: ``[..., C, I]``.

        Returns:
            ``[..., C, 2D]``: the agent's own embedding and what it gathered; for each type the embeddings
            ``[..., K, C, D]``; for each type which are there and in sight, ``[..., K, C]`` bool.
        """
        own = torch.relu(self.embed_own(inputs.index_select(-1, self.own)))  # [..., C, D]
        tokens, seen = [own[..., None, :, :]], [torch.ones_like(own[..., None, :, 0], dtype=torch.bool)]
        for number, (block, embed) in enumerate(zip(self.blocks, self.embed, strict=True)):
            features = inputs[..., block.start : block.end].unflatten(-1, (block.count, block.size))
            features = features.transpose(-2, -3)  # [..., K, C, size]
            # All zero is what a dead agent observes: it sees nobody, whatever stands for absence.
            absent = (features == getattr(self, f"absent_{number}")).all(-1) | (features == 0).all(-1)
            tokens.append(torch.relu(embed(features)))
            seen.append(~absent)
        gathered = self._attend(own, torch.cat(tokens, dim=-3), torch.cat(seen, dim=-2))
        return torch.cat([own, gathered], dim=-1), tokens[1:], seen[1:]

    def _attend(self, own: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
        """``own [..., C, D]``, ``tokens [..., K, C, D]``, ``seen [..., K, C]`` to ``[..., C, D]``."""

        def split(vectors: Tensor) -> Tensor:
            return vectors.unflatten(-1, (self.heads, -1))  # [..., heads, D / heads]

        query, key, value = split(self.query(own)), split(self.key(tokens)), split(self.value(tokens))
        scores = (query[..., None, :, :, :] * key).sum(-1) / math.sqrt(key.shape[-1])  # [..., K, C, heads]
        weights = torch.softmax(scores.masked_fill(~seen[..., None], -math.inf), dim=-3)
        return (weights[..., None] * value).sum(-4).flatten(-2)  # [..., C, D]


class DirectedHead(nn.Module):
    """Values of actions at entities beside those of other actions.

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
        """``features [..., N, F]`` to ``q [..., N, A]``."""
        if not self.directed:
            return self.base(features)
        q = self.base(features[..., : -self.directed])
        others, common = q[..., :-1], q[..., -1:]
        return torch.cat([others, common + features[..., -self.directed :]], dim=-1).index_select(-1, self.order)
