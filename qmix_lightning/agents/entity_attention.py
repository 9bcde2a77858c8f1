"""Define an agent for observations that are sets of entities: what it sees in which slot makes no difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qmix_lightning.agents.base import Agent, AgentState
from qmix_lightning.agents.entities import DirectedHead, EntityEncoder, Seen
from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.recurrent import RecurrentAgent
from qmix_lightning.nn.layers import AgentLinear, ShareParameters, orthogonal_, parameter_sets
from qmix_lightning.nn.packing import Packing
from qmix_lightning.types import EntityBlock

__all__ = ["EntityAttentionAgent"]


class EntityAttentionAgent(Agent):
    """Agent with attention over the entities in sight, then a recurrent or a feed-forward agent.

    Agents that attend to entities (Iqbal et al. 2021, REFIL) and value an action at an entity by that entity (Hu, Zhu
    et al. 2021, UPDeT), in a small form: one attention layer before the memory, and a dot product of memory and entity
    after it.

    * Exchanging two entities of a type leaves the values of all other actions as they are, and exchanges those of the
      actions directed at the two.
    * An entity out of sight has no weight, and an action directed at it the value that all of them share.

    Args:
        input_dim: ``I``, from the input builder.
        n_actions: ``A``.
        group_of_agent: ``[N]`` unit type of each agent.
        obs_entities: from ``EnvSpec``.
        inputs: the input builder; the observation comes first in what it makes.
        hidden_dim: width of the memory and of the layer before it, ``H``.
        embed_dim: width of an entity's embedding, ``D``.
        attention_heads: they divide ``embed_dim`` between them.
        memory: a GRU; without, two hidden layers.
        share_parameters: true, false (one network for each agent), or ``"group"``.
        layer_norm: normalise as the recurrent or the feed-forward agent does.
        dueling: values as a state value and advantages (Wang et al. 2016).
        orthogonal_init: orthogonal weights, zero biases (Saxe et al. 2014).
    """

    def __init__(
        self,
        *,
        input_dim: int,
        n_actions: int,
        group_of_agent: Sequence[int],
        obs_entities: Sequence[EntityBlock],
        inputs: InputBuilder,
        hidden_dim: int,
        embed_dim: int,
        attention_heads: int,
        memory: bool,
        share_parameters: ShareParameters,
        layer_norm: bool,
        dueling: bool,
        orthogonal_init: bool,
    ) -> None:
        super().__init__()
        if not obs_entities:
            raise ValueError(
                "the environment does not say which parts of an observation are entities; use agent=recurrent or "
                "agent=feedforward"
            )
        if not inputs.use_obs:
            raise ValueError("it looks at entities, so use_obs must be true")
        if inputs.moments is not None:
            raise ValueError(
                "normalize_obs must be false: it scales each slot by itself, and takes the zeros away that say that "
                "nothing is in sight"
            )
        sets = parameter_sets(share_parameters, group_of_agent)
        actions, self._targets = [], []  # actions at entities, and the blocks of those
        for number, block in enumerate(obs_entities):
            if block.first_action is not None:
                actions += range(block.first_action, block.first_action + block.count)
                self._targets.append(number)
        if len(set(actions)) < len(actions):
            raise ValueError("an action is directed at entities of two types")
        self.encoder = EntityEncoder(
            sets,
            blocks=obs_entities,
            obs_dim=inputs.obs_dim,
            input_dim=input_dim,
            embed_dim=embed_dim,
            heads=attention_heads,
        )
        kind = RecurrentAgent if memory else FeedForwardAgent
        self.core = kind(
            input_dim=2 * embed_dim,
            n_actions=n_actions - len(actions) + bool(actions),
            group_of_agent=group_of_agent,
            hidden_dim=hidden_dim,
            share_parameters=share_parameters,
            layer_norm=layer_norm,
            dueling=dueling,
            orthogonal_init=orthogonal_init,
        )
        self.columns = self.core.columns
        self.feature_dim = hidden_dim + len(actions)
        self.aim = AgentLinear(sets, hidden_dim, embed_dim) if actions else None
        # The core's own head would be there twice, and one of the two without a gradient.
        self.head = DirectedHead(self.core.head, actions, n_actions)
        self.core.head = torch.nn.Identity()
        if orthogonal_init:
            orthogonal_(self.encoder, query=1, key=1, value=1)
            if self.aim is not None:
                self.aim.orthogonal_()

    def initial_state(self, batch_size: int) -> AgentState:
        return self.core.initial_state(batch_size)

    def body(self, inputs: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        seen = self.encoder(inputs)
        hidden, state = self.core.body(seen.summary, state)
        return self._with_targets(hidden, seen), state

    def unroll_body(self, inputs: Tensor, state: AgentState, alive: Tensor) -> tuple[Tensor, AgentState]:
        seen = self.encoder(inputs)
        hidden, state = self.core.unroll_body(seen.summary, state, alive)
        return self._with_targets(hidden, seen), state

    def unroll_packed(self, inputs: Tensor, state: AgentState, packing: Packing) -> Tensor:
        seen = self.encoder(inputs)
        hidden = self.core.unroll_packed(seen.summary, state, packing)
        return self._with_targets(hidden, seen)

    def _with_targets(self, hidden: Tensor, seen: Seen) -> Tensor:
        """Return ``hidden [..., C, H]`` and, behind it, how good it is to act on each entity: ``[..., C, H + M]``."""
        if self.aim is None:
            return hidden
        aim = self.aim(hidden)[..., None, :, :] / math.sqrt(self.aim.weight.shape[1])  # [..., 1, C, D]
        features = [hidden]
        for number in self._targets:
            score = (aim * seen.entities[number]).sum(-1)  # [..., K, C]
            features.append(score.masked_fill(~seen.visible[number], 0.0).transpose(-1, -2))
        return torch.cat(features, dim=-1)
