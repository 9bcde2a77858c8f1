"""Small PettingZoo environments for tests."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

Step = tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]


class Scripted(ParallelEnv):
    """Plays a script: ``script[t]`` is what step ``t + 1`` gives.

    Each entry is a dict with any of ``rewards``, ``terminations``, ``truncations``, ``infos`` and ``observations``
    (given agents only; others get 0, False, False, {} and a vector filled with the number of the step), and ``agents``
    (who takes part afterwards; by default those who took part and are not terminated or truncated).
    """

    metadata: dict[str, Any] = {"name": "scripted"}  # noqa: RUF012

    def __init__(
        self,
        script: list[dict[str, Any]],
        *,
        agents: tuple[Any, ...] = ("a_0", "a_1"),
        first: dict[str, Any] | None = None,
        observation_spaces: dict[Any, Any] | None = None,
        action_spaces: dict[Any, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        state_space: Any = None,
    ) -> None:
        self.possible_agents = list(agents)
        self.script = script
        self.first = first or {}
        self._observation_spaces = observation_spaces or {}
        self._action_spaces = action_spaces or {}
        self._default_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        if metadata is not None:
            self.metadata = metadata
        if state_space is not None:
            self.state_space = state_space
        self.received: list[dict[Any, Any]] = []
        self.seeds: list[int | None] = []
        self.closed = 0
        self.t = 0

    def observation_space(self, agent: Any) -> Any:
        return self._observation_spaces.get(agent, self._default_space)

    def action_space(self, agent: Any) -> Any:
        return self._action_spaces.get(agent, spaces.Discrete(3))

    def _observations(self, agents: list[Any], given: dict[Any, Any]) -> dict[Any, Any]:
        blank = {a: np.full(2, self.t, np.float32) for a in agents}
        return {a: o for a, o in (blank | given).items() if o is not None}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.seeds.append(seed)
        self.t = 0
        self.agents = list(self.first.get("agents", self.possible_agents))
        infos = {a: self.first.get("infos", {}).get(a, {}) for a in self.agents}
        return self._observations(self.agents, self.first.get("observations", {})), infos

    def step(self, actions: dict[Any, Any]) -> Any:
        self.received.append(dict(actions))
        entry = self.script[self.t]
        self.t += 1
        acted = list(self.agents)
        terminations = {a: entry.get("terminations", {}).get(a, False) for a in acted}
        truncations = {a: entry.get("truncations", {}).get(a, False) for a in acted}
        rewards = {a: entry.get("rewards", {}).get(a, 0.0) for a in acted}
        stay = [a for a in acted if not terminations[a] and not truncations[a]]
        self.agents = list(entry.get("agents", stay))
        shown = list(dict.fromkeys([*acted, *self.agents]))
        infos = {a: entry.get("infos", {}).get(a, {}) for a in shown}
        return self._observations(shown, entry.get("observations", {})), rewards, terminations, truncations, infos

    def close(self) -> None:
        self.closed += 1


class WithState(Scripted):
    """``Scripted`` with a global state of its own: ``[t, 10 t, 100 t]``."""

    def state(self) -> np.ndarray:
        return np.array([1.0, 10.0, 100.0]) * self.t


class VaryingLength(ParallelEnv):
    """Episodes of 3 to 12 steps: deterministic in the seed and the actions, and noisy within the episode.

    A hidden vector is driven by the actions and by noise from the episode's own generator; rewards, observations
    and masks depend on it, so that a wrong replay shows at once. Agents may die early; the episode ends by
    termination or by truncation, which the seed decides. ``won`` is reported at the end. An illegal action or an
    action of a dead agent is an error.

    Args:
        n_agents: agents at the start, 2 or 3.
        extra_length: added to every episode's length.
    """

    metadata: dict[str, Any] = {"name": "varying_length", "episode_metrics": ("won",)}  # noqa: RUF012

    n_actions = 4
    hidden = 5
    view = 4

    def __init__(self, n_agents: int = 3, extra_length: int = 0) -> None:
        self.possible_agents = [f"unit_{i}" for i in range(n_agents)]
        self.extra_length = extra_length
        self.episode_limit = 12 + extra_length
        rng = np.random.default_rng(12345)  # the task, the same in every instance
        n = len(self.possible_agents)
        self._push = rng.normal(size=(n, self.n_actions, self.hidden))
        self._pay = rng.normal(size=(n, self.n_actions, self.hidden))
        self._view = rng.normal(size=(n, self.hidden, self.view))
        self.state_space = spaces.Box(-np.inf, np.inf, (self.hidden + 1,), np.float32)

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-np.inf, np.inf, (self.view,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(self.n_actions)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self._rng = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self._t = 0
        self._length = int(self._rng.integers(3, 13)) + self.extra_length
        self._ends_by_truncation = bool(self._rng.random() < 0.5)
        # Step after which each agent is dead; about half of them live to the end. The first never dies early.
        self._death = [self._length, *(int(d) for d in self._rng.integers(1, 2 * self._length, len(self.agents) - 1))]
        self._x = self._rng.normal(size=self.hidden)
        return self._observe(self.agents), self._infos(self.agents)

    def step(self, actions: dict[str, Any]) -> Step:
        if set(actions) != set(self.agents):
            raise AssertionError(f"actions of {sorted(actions)}, but {self.agents} are alive")
        acted = list(self.agents)
        rewards = {}
        push = np.zeros(self.hidden)
        for agent in acted:
            i, action = self.possible_agents.index(agent), int(actions[agent])
            if not self._mask(i)[action]:
                raise AssertionError(f"illegal action {action} of {agent}")
            rewards[agent] = float(np.tanh(self._pay[i, action] @ self._x))
            push += self._push[i, action]
        self._x = np.tanh(0.8 * self._x + 0.3 * push + 0.1 * self._rng.normal(size=self.hidden))
        self._t += 1
        over = self._t >= self._length
        dead = {a: self._death[self.possible_agents.index(a)] <= self._t and not over for a in acted}
        terminations = {a: dead[a] or (over and not self._ends_by_truncation) for a in acted}
        truncations = dict.fromkeys(acted, over and self._ends_by_truncation)
        observations, infos = self._observe(acted), self._infos(acted)
        if over:
            for info in infos.values():
                info["won"] = bool(self._x.sum() > 0)
        self.agents = [] if over else [a for a in acted if not dead[a]]
        return observations, rewards, terminations, truncations, infos

    def state(self) -> np.ndarray:
        return np.append(self._x, self._t).astype(np.float32)

    def _mask(self, i: int) -> np.ndarray:
        mask = np.ones(self.n_actions, np.int8)
        mask[(self._t + i + int(self._x[0] > 0)) % self.n_actions] = 0
        return mask

    def _observe(self, agents: list[str]) -> dict[str, Any]:
        return {a: (self._x @ self._view[self.possible_agents.index(a)]).astype(np.float32) for a in agents}

    def _infos(self, agents: list[str]) -> dict[str, dict[str, Any]]:
        return {a: {"action_mask": self._mask(self.possible_agents.index(a))} for a in agents}

    def close(self) -> None:
        pass


class Endless(VaryingLength):
    """Episodes that never end, and nothing that says so."""

    def __init__(self) -> None:
        super().__init__(extra_length=10**9)
        del self.episode_limit


class OfBatches(VaryingLength):
    """The same in the sizes of ``batches``, for which the loops that recompute losses are written."""

    view = 5


class Wandering(VaryingLength):
    """One that changes the working folder, as simulators do to find their files."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder
        os.chdir(folder)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        os.chdir(self._folder)
        return super().reset(seed, options)


class Sacrifice(ParallelEnv):
    """Who gives itself up at the first step dies, and the team is paid 1 at the second; for not doing it, 0.1.

    Only ``first`` can: its action 1 does it, 2 is paid at once, 0 is nothing. Both see the clock, and the other waits.
    """

    metadata: dict[str, Any] = {"name": "sacrifice"}  # noqa: RUF012
    possible_agents = ["first", "other"]  # noqa: RUF012
    episode_limit = 2

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(0, 1, (2,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = list(self.possible_agents)
        self._t, self._given_up = 0, False
        return self._show(self.agents), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> Step:
        acted = list(self.agents)
        paid = 0.0
        if self._t == 0:
            self._given_up = int(actions["first"]) == 1
            paid = 0.1 if int(actions["first"]) == 2 else 0.0
        elif self._given_up:
            paid = 1.0
        self._t += 1
        over = self._t == self.episode_limit
        ended = {a: over or (a == "first" and self._given_up) for a in acted}
        rewards = {a: paid / len(acted) for a in acted}
        self.agents = [a for a in acted if not ended[a]]
        return self._show(acted), rewards, ended, dict.fromkeys(acted, False), {a: {} for a in acted}

    def _show(self, agents: list[str]) -> dict[str, Any]:
        return {a: np.eye(2, dtype=np.float32)[min(self._t, 1)] for a in agents}

    def close(self) -> None:
        pass


class Echo(ParallelEnv):
    """Each agent is shown an action and has to take it: return 1 for a team that always does, 1/3 for random play.

    Three steps, two agents, and what is shown is drawn anew in each step.
    """

    metadata: dict[str, Any] = {"name": "echo"}  # noqa: RUF012
    possible_agents = ["left", "right"]  # noqa: RUF012
    n_actions = 3
    episode_limit = 3

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(0, 1, (self.n_actions,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(self.n_actions)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self._rng = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self._t = 0
        return self._show(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> Step:
        acted = list(self.agents)
        paid = 1.0 / (self.episode_limit * len(acted))
        rewards = {a: paid * float(int(actions[a]) == self._shown[a]) for a in acted}
        self._t += 1
        over = self._t == self.episode_limit
        observations = self._show()
        self.agents = [] if over else acted
        return observations, rewards, dict.fromkeys(acted, over), dict.fromkeys(acted, False), {a: {} for a in acted}

    def _show(self) -> dict[str, Any]:
        self._shown = {a: int(self._rng.integers(self.n_actions)) for a in self.possible_agents}
        return {a: np.eye(self.n_actions, dtype=np.float32)[k] for a, k in self._shown.items()}

    def close(self) -> None:
        pass
