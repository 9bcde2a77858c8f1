"""Read an ``EnvSpec`` from a file: numbers within bounds, and texts to be shown; nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qmix_lightning.errors import CheckpointError
from qmix_lightning.runtime.text import printable
from qmix_lightning.types import EnvSpec

__all__ = ["read_spec"]

_MOST_AGENTS = 4096
_MOST_NUMBERS = 100_000_000
"""Numbers that a team may be shown at once, ``N * O`` and ``N * A``."""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_NUMBERS


def _is_limit(value: object) -> bool:
    return value is None or (_is_count(value) and value != 0)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 200 and value == "".join(c for c in value if c.isprintable())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and len(value) <= _MOST_AGENTS and all(map(check, value))


def _is_block(value: object) -> bool:
    return isinstance(value, Mapping) and all(key in _BLOCK and _BLOCK[key](inner) for key, inner in value.items())


def _is_picture(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) == set(_PICTURE) and all(_PICTURE[k](v) for k, v in value.items())


_BLOCK: dict[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "start": _is_count,
    "count": _is_count,
    "size": _is_count,
    "absent": _list_of(_is_number),
    "first_action": _is_limit,
}

_PICTURE: dict[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "start": _is_count,
    "shape": lambda value: _list_of(_is_limit)(value) and len(value) == 3,
    "channels_first": _is_flag,
    "scale": lambda value: _is_number(value) and 0.0 < value <= 1.0,
}

_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("n_agents", "n_actions", "obs_dim", "state_dim"), _is_count),
    **dict.fromkeys(("obs_dims", "action_counts", "group_of_agent"), _list_of(_is_count)),
    **dict.fromkeys(("agent_names", "episode_metrics"), _list_of(_is_text)),
    **dict.fromkeys(("natively_batched", "gives_state", "state_is_joined_obs"), _is_flag),
    "episode_limit": _is_limit,
    "obs_entities": _list_of(_is_block),
    "team": _list_of(_is_count),
    "pictures": _list_of(_is_picture),
    "obs_dtype": lambda value: value in ("float32", "uint8"),
    "state_is_features": _is_flag,
    "obs_keys": _list_of(_is_text),
}


def read_spec(values: object, path: object) -> EnvSpec:
    """Return the specification that a file holds.

    Args:
        values: as :meth:`EnvSpec.to_dict` makes them.
        path: of the file, for messages.

    Raises:
        CheckpointError: they are made up.
    """
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{path} holds no specification of an environment")
    for name, value in values.items():
        if name not in _FIELDS or not _FIELDS[name](value):
            raise CheckpointError(f"{path} holds a wrong value in its specification, under '{printable(name)}'")
    try:
        spec = EnvSpec.from_dict({name: list(v) if isinstance(v, tuple) else v for name, v in values.items()})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds a specification that means nothing: {error}") from error
    sizes = (spec.obs_dim, max(spec.obs_dims, default=0)), (spec.n_actions, max(spec.action_counts, default=0))
    if not 1 <= spec.n_agents <= _MOST_AGENTS or any(largest < 1 or largest != padded for padded, largest in sizes):
        raise CheckpointError(f"{path} holds a specification whose sizes contradict each other")
    if any(picture.end > min(spec.obs_dims) for picture in spec.pictures):
        raise CheckpointError(f"{path} holds a specification with a picture that is larger than an observation")
    if len(set(spec.agent_names)) != spec.n_agents:
        raise CheckpointError(f"{path} holds a specification with two agents of one name")
    if spec.n_agents * max(spec.obs_dim, spec.n_actions) > _MOST_NUMBERS:
        raise CheckpointError(f"{path} holds a specification that is larger than any environment's")
    return spec
