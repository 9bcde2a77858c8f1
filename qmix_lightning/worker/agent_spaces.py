"""Read the spaces of one agent: how many actions it has, and how its observation becomes a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.runtime.text import shortened
from qmix_lightning.worker.returned import no_byte
from qmix_lightning.worker.spaces import MOST_COMBINATIONS, Dict, combinations, is_space, observation_reader, to_vector
from qmix_lightning.worker.teams import side_of

__all__ = ["MASK_KEY", "action_range", "agent_reader", "observed_space", "require_bytes", "state_reader", "unit_groups"]

MASK_KEY = "action_mask"


def action_range(space: Any, what: str) -> tuple[int, int, np.ndarray | None]:
    """Return the first action, the number of actions, and what each is in a space that has several parts.

    Raises:
        EnvironmentContractError: it is neither ``Discrete`` nor a ``MultiDiscrete`` of few combinations.
    """
    if is_space(space, "MultiDiscrete"):
        parts = combinations(space)
        if parts is None:
            raise EnvironmentContractError(
                f"{what} is {shortened(space)}, of more than {MOST_COMBINATIONS} combinations; every combination is "
                "one action here, so that is too many"
            )
        return 0, len(parts), parts
    if not is_space(space, "Discrete"):
        way_out = (
            "pass continuous_actions=False if the environment has it, or discretise the actions"
            if is_space(space, "Box")
            else "number the combinations in one Discrete space, or use MultiDiscrete"
        )
        raise EnvironmentContractError(f"{what} is {shortened(space)}, but Discrete is needed; {way_out}")
    return int(getattr(space, "start", 0)), int(space.n), None


def observed_space(space: Any) -> Any:
    """Return the space of what an agent observes, without an action mask in it."""
    if not is_space(space, "Dict") or MASK_KEY not in space.spaces:
        return space
    rest = {key: part for key, part in space.spaces.items() if key != MASK_KEY}
    return rest["observation"] if set(rest) == {"observation"} else Dict(rest)


def agent_reader(space: Any, what: str) -> tuple[int, Callable[[Any], np.ndarray], bool]:
    """Return the flat size, the function that flattens, and whether the observation brings an action mask.

    Raises:
        EnvironmentContractError: there is nothing but a mask, or a part of no fixed size.
    """
    if not is_space(space, "Dict") or MASK_KEY not in space.spaces:
        return *observation_reader(space, what), False
    if len(space.spaces) == 1:
        raise EnvironmentContractError(f"{what} holds an action_mask and nothing else")
    size, read = observation_reader(observed_space(space), what)
    if set(space.spaces) == {MASK_KEY, "observation"}:
        return size, lambda value: read(value["observation"]), True
    return size, read, True


def require_bytes(values: np.ndarray, what: str) -> None:
    """Refuse an observation, of a space that says bytes, which holds something else."""
    if (wrong := no_byte(values)) is not None:
        raise EnvironmentContractError(f"{what} holds {wrong:g}, its observation_space says bytes (uint8)")


def state_reader(env: Any, what: str) -> tuple[int, Callable[[Any], np.ndarray]] | None:
    """Return the size of ``state()`` and the function that flattens it; ``None``: there is none."""
    space = getattr(env, "state_space", None)
    if is_space(space):
        return observation_reader(space, what)
    if not callable(getattr(env, "state", None)):
        return None
    env.reset(seed=0)
    try:
        state = env.state()
    except (AttributeError, NotImplementedError):
        return None

    def read(value: Any) -> np.ndarray:
        return to_vector(value, what)

    return read(state).size, read


def unit_groups(agents: Sequence[Any], sizes: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """Return each agent's group; agents of one kind share it: same name but for the number at its end, same sizes."""
    ids: dict[tuple[str, int, int], int] = {}
    return tuple(
        ids.setdefault((side_of(str(agent)), size, count), len(ids))
        for agent, size, count in zip(agents, sizes, counts)
    )
