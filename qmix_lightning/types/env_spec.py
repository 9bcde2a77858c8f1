"""Define what is known of an environment before it is played: sizes, agents, and what observations are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["EntityBlock", "EnvSpec", "Picture"]


@dataclass(frozen=True)
class EntityBlock:
    """A set of entities of one type within every agent's flattened observation.

    Attributes:
        name: the type, e.g. ``enemies``.
        start: where the first entity's numbers stand.
        count: entities, one behind the other.
        size: numbers of each.
        absent: what stands where there is none, or none in sight; empty: zeros.
        first_action: the action directed at the first entity; that at the next is the next; ``None``: there are none.
    """

    name: str
    start: int
    count: int
    size: int
    absent: tuple[float, ...] = ()
    first_action: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "absent", tuple(float(value) for value in self.absent))
        if self.start < 0 or self.count < 1 or self.size < 1:
            raise ValueError(f"entities '{self.name}': start {self.start}, count {self.count}, size {self.size}")
        if self.absent and len(self.absent) != self.size:
            raise ValueError(f"entities '{self.name}': absent has {len(self.absent)} numbers, an entity {self.size}")

    @property
    def end(self) -> int:
        """Return the index of the first number behind the last entity."""
        return self.start + self.count * self.size


@dataclass(frozen=True)
class Picture:
    """A picture or a grid within every agent's flattened observation, row by row.

    Attributes:
        name: of the part of the observation that it is.
        start: where its numbers begin.
        shape: ``(height, width, channels)``, or ``(channels, height, width)`` where ``channels_first``.
        channels_first: which of the two.
        scale: what its numbers are multiplied by to be of size 1.
    """

    name: str
    start: int
    shape: tuple[int, int, int]
    channels_first: bool = False
    scale: float = 1.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Picture:
        """Create a picture from plain containers, its shape a list."""
        given: dict[str, Any] = {**values, "shape": tuple(values["shape"])}
        return cls(**given)

    @property
    def end(self) -> int:
        """Return the index of the first number behind it."""
        return self.start + self.shape[0] * self.shape[1] * self.shape[2]


_LATER_FIELDS = {"team": [], "pictures": [], "obs_dtype": "float32", "state_is_features": False, "obs_keys": []}
"""Fields of :class:`EnvSpec` that version 0.1.0 did not have, with what says nothing."""


@dataclass(frozen=True)
class EnvSpec:
    """The sizes and properties of an environment that training needs; sizes are the padded ones.

    Attributes:
        n_agents: agent slots, ``N``.
        n_actions: largest action count, ``A``.
        obs_dim: largest flattened observation, ``O``.
        state_dim: flattened global state, ``S``.
        obs_dims: true observation size of each agent.
        action_counts: true action count of each agent.
        agent_names: name of each slot.
        group_of_agent: unit type of each slot, for sharing parameters within a group.
        episode_limit: joint steps after which an episode ends in any case; ``None`` if unknown.
        episode_metrics: names of the values reported when an episode ends (``won`` is the win rate).
        natively_batched: the simulator steps many environments in one call.
        gives_state: the environment can give its simulator state and be set to one.
        state_is_joined_obs: the state is the agents' observations, one after the other without padding.
        obs_entities: which parts of an observation are sets of entities, where that is known; all that is in none of
            them are the agent's own features.
        team: the slots that learn where others play along; empty: all do.
        pictures: the parts of an observation that are pictures or grids, the same for all agents that learn.
        obs_dtype: ``uint8`` if every observation holds nothing but whole numbers from 0 to 255.
        state_is_features: there is no state that would not cost gigabytes: what the agents' networks make of their
            observations stands for it, and ``state_dim`` is 0.
        obs_keys: the parts of an observation that is a dictionary, in the order in which they are flattened; empty if
            it is none, or if they are in the order of their names. Nothing is compared by it: policies that were saved
            without it stay what they are.
    """

    n_agents: int
    n_actions: int
    obs_dim: int
    state_dim: int
    obs_dims: tuple[int, ...]
    action_counts: tuple[int, ...]
    agent_names: tuple[str, ...]
    group_of_agent: tuple[int, ...]
    episode_limit: int | None = None
    episode_metrics: tuple[str, ...] = ()
    natively_batched: bool = False
    gives_state: bool = False
    state_is_joined_obs: bool = False
    obs_entities: tuple[EntityBlock, ...] = ()
    team: tuple[int, ...] = ()
    pictures: tuple[Picture, ...] = ()
    obs_dtype: str = "float32"
    state_is_features: bool = False
    obs_keys: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("obs_dims", "action_counts", "agent_names", "group_of_agent"):
            if len(getattr(self, name)) != self.n_agents:
                raise ValueError(f"EnvSpec.{name} has {len(getattr(self, name))} entries for {self.n_agents} agents")
        used = 0
        for block in sorted(self.obs_entities, key=lambda block: block.start):
            if block.start < used or block.end > min(self.obs_dims):
                raise ValueError(
                    f"entities '{block.name}' are at {block.start} to {block.end} of {min(self.obs_dims)} numbers, "
                    f"{used} of which belong to others"
                )
            used = block.end
            if block.first_action is not None and not 0 < block.first_action <= self.n_actions - block.count:
                raise ValueError(
                    f"actions at entities '{block.name}' are {block.first_action} to "
                    f"{block.first_action + block.count - 1}, but there are {self.n_actions}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the specification in plain containers only, so that a checkpoint can hold it."""
        plain = {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}
        plain["obs_entities"] = [{**asdict(block), "absent": list(block.absent)} for block in self.obs_entities]
        plain["pictures"] = [{**asdict(picture), "shape": list(picture.shape)} for picture in self.pictures]
        # Left out where they say nothing, so that older checkpoints compare equal.
        return {name: v for name, v in plain.items() if name not in _LATER_FIELDS or v != _LATER_FIELDS[name]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EnvSpec:
        """Create a specification from what :meth:`to_dict` returned."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        plain["obs_entities"] = tuple(EntityBlock(**block) for block in plain.get("obs_entities", ()))
        plain["pictures"] = tuple(Picture.from_dict(picture) for picture in plain.get("pictures", ()))
        return cls(**plain)
