"""Choose the agents of a game that learn, by name or pattern, and notice games between sides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["side_of", "sides_by_name", "team_slots"]

_OPPOSING_WORDS = frozenset(("adversary", "opponent", "enemy", "eve", "predator", "prey", "deer", "tiger"))
_COLOURS = frozenset(("red", "blue", "green", "yellow", "black", "white", "omnivore"))


def team_slots(agents: Sequence[Any], patterns: Sequence[str] | None, what: str) -> tuple[int, ...]:
    """Return the slots of the agents that ``patterns`` choose, in the order of the slots; empty: all of them learn.

    Args:
        agents: every possible agent.
        patterns: names, or patterns with ``*``, ``?`` and ``[...]``; ``None``: no team was chosen.
        what: names the environment in messages.

    Raises:
        ConfigurationError: a pattern is no text, or fits no agent.
    """
    if patterns is None:
        return ()
    names = [str(agent) for agent in agents]
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted or not all(isinstance(pattern, str) for pattern in wanted):
        raise ConfigurationError(f"{what}: env.team must be a list of agents' names or patterns, as in [red_*]")
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigurationError(f"{what}: env.team: no agent is called '{pattern}'{did_you_mean(pattern, names)}")
    slots = tuple(i for i, name in enumerate(names) if any(fnmatchcase(name, pattern) for pattern in wanted))
    return () if len(slots) == len(names) else slots


def side_of(agent: str) -> str:
    """Return an agent's name without the number at its end: agents of one side are called alike."""
    return re.sub(r"_?\d+$", "", agent)


def sides_by_name(agents: Sequence[str]) -> tuple[str, ...]:
    """Return the sides that agents' names speak of (``red`` and ``blue``, an ``adversary``); empty if of none."""
    sides = tuple(dict.fromkeys(map(side_of, agents)))
    words = [set(re.split(r"[^a-z]+", side.lower())) for side in sides]
    opposing = any(_OPPOSING_WORDS & found for found in words) or sum(bool(_COLOURS & found) for found in words) > 1
    return sides if len(sides) > 1 and opposing else ()
