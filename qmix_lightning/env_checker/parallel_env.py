"""Check a single PettingZoo ``ParallelEnv`` for what is out of sight once it is behind its adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from qmix_lightning.env_checker.random_player import random_actions
from qmix_lightning.env_checker.report import CheckReport
from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.text import error_line, shortened
from qmix_lightning.worker.agent_spaces import MASK_KEY, action_range
from qmix_lightning.worker.blame import is_fault
from qmix_lightning.worker.declared import is_bytes, metadata_of
from qmix_lightning.worker.returned import no_byte, read_flag
from qmix_lightning.worker.spaces import is_space, observation_reader

__all__ = ["check_parallel_env"]

EPISODES = 3


def check_parallel_env(env: Any, check_report: CheckReport, *, steps: int, seed: int, limit: int | None) -> None:
    """Play random legal episodes with the bare ``env`` and record which checks fail.

    Args:
        env: has passed the checks of :class:`~qmix_lightning.worker.parallel_adapter.ParallelAdapter`.
        check_report: where results go.
        steps: joint steps at most.
        seed: decides episodes and actions.
        limit: joint steps after which it must have ended.
    """
    bare_episodes = _BareEpisodes(env, check_report, limit)
    number = taken = 0
    try:
        while number < EPISODES and taken < steps:
            taken += bare_episodes.episode(int(prng.to_seed(prng.derive_key(seed, number))[0]), steps - taken)
            number += 1
    except _CannotGoOn:
        pass  # the failure that stopped it is in the report
    bare_episodes.judge_ends()
    if bare_episodes.taken:
        check_report.seen("accounts")
    check_report.unseen("accounts", "no step could be taken")


class _CannotGoOn(Exception):
    """Raised when the next step would make no sense."""


class _BareEpisodes:
    def __init__(self, env: Any, check_report: CheckReport, limit: int | None) -> None:
        self.env = env
        self.check_report = check_report
        self.limit = limit
        self.agents = list(env.possible_agents)
        self.actions = {a: action_range(env.action_space(a), f"the action space of agent '{a}'") for a in self.agents}
        self.metrics = tuple(metadata_of(env).get("episode_metrics", ()))
        self.where = ""
        self.taken = 0  # steps that gave something to look at
        self.ends = 0
        self.both: list[str] = []  # places where an end was terminated and truncated in one

    # One episode --------------------------------------------------------------------------------------------

    def episode(self, seed: int, budget: int) -> int:
        """Play the episode of ``seed`` for ``budget`` steps at most; return the joint steps taken."""
        self.where = f"reset(seed={seed})"
        result = self._call(self.env.reset, seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            self._stop("spec", "reset", "must return (observations, infos)")
        observations, infos = result
        self._by_agent(observations=observations, infos=infos)
        alive = self._alive()
        if not alive:
            self._stop("spec", "agents", "env.agents is empty")
        self._look(alive, observations, infos, over=False)
        for t in range(budget):
            chosen = random_actions(
                seed, t, [self._legal(a, observations, infos) if a in alive else None for a in self.agents]
            )
            actions = {a: self._in_its_space(a, n) for a, n in zip(self.agents, chosen, strict=True) if a in alive}
            self.where = f"step {t + 1} (seed {seed})"
            result = self._call(self.env.step, actions)
            if not isinstance(result, tuple) or len(result) != 5:
                self._stop("spec", "step", "must return (observations, rewards, terminations, truncations, infos)")
            observations, rewards, terminations, truncations, infos = result
            self._by_agent(observations=observations, infos=infos)
            self._by_agent(rewards=rewards, terminations=terminations, truncations=truncations)
            self.taken += 1
            self._account(alive, rewards, terminations, truncations)
            before, alive = alive, self._alive()
            over = self._end(before, alive, terminations, truncations, infos)
            shown = [a for a in before if truncations.get(a) and not terminations.get(a)] if over else alive
            self._look(shown, observations, infos, over=over)
            if over:
                return t + 1
            if self.limit is not None and t + 1 >= self.limit:
                self._stop(
                    "limit", "exceeded", f"the episode goes on, but the environment's own limit says {self.limit}"
                )
        return budget

    def _call(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            if not is_fault(error):
                raise
            self._stop("runs", "raised", error_line(error))

    def _stop(self, check: str, kind: str, message: str) -> NoReturn:
        self._fail(check, kind, message)
        raise _CannotGoOn

    def _fail(self, check: str, kind: str, message: str) -> None:
        self.check_report.fail(check, kind, f"{self.where}: {message}")

    def _by_agent(self, **returned: Any) -> None:
        """Stop at what is no dictionary by agent."""
        for word, value in returned.items():
            if not isinstance(value, Mapping):
                self._stop("spec", word, f"{word} must be a dictionary by agent, not {type(value).__name__}")

    def _in_its_space(self, agent: Any, number: int) -> Any:
        """Return the action of this number as the agent's space has it."""
        first, _, parts = self.actions[agent]
        return first + number if parts is None else parts[number].copy()

    def _alive(self) -> list[Any]:
        try:
            alive = list(self.env.agents)
        except (AttributeError, TypeError):
            self._stop("spec", "agents", "there is no list env.agents of those that take part")
        strangers = [a for a in alive if a not in self.agents]
        if strangers:
            self._fail("spec", "stranger", f"env.agents holds '{strangers[0]}', which is not in possible_agents")
        return [a for a in self.agents if a in alive]

    # What it shows ------------------------------------------------------------------------------------------

    def _look(self, alive: list[Any], observations: Any, infos: Any, *, over: bool) -> None:
        for agent in alive:
            if agent not in observations:
                self._stop("spec", "missing", f"agent '{agent}' is alive but has no observation")
            problem = self._misfit(self.env.observation_space(agent), observations[agent])
            if problem:
                self._stop("spec", "observation", f"the observation of agent '{agent}' {problem}")
            if not over:
                self._look_at_mask(agent, observations, infos)

    def _misfit(self, space: Any, value: Any) -> str | None:
        """Return what is wrong with ``value``, if anything."""
        if is_space(space, "Dict"):
            if not isinstance(value, Mapping):
                return f"is {type(value).__name__}, its space is a Dict"
            for key, part in space.spaces.items():
                if key not in value:
                    return f"lacks '{key}', which its space has"
                # Masks come in any integer or boolean type, and are looked at apart.
                if key != MASK_KEY and (problem := self._misfit(part, value[key])):
                    return f"['{key}'] {problem}"
            return None
        if is_space(space, "Tuple"):
            if not isinstance(value, Sequence | np.ndarray) or len(value) != len(space.spaces):
                return f"is {shortened(value, 80)}, its space is a Tuple of {len(space.spaces)}"
            told = (self._misfit(part, value[i]) for i, part in enumerate(space.spaces))
            return next((f"[{i}] {problem}" for i, problem in enumerate(told) if problem), None)
        if not is_space(space, "Box"):
            fits = _contains(space, value)
            return None if fits else f"is {shortened(value, 80)}, which is not in its space {shortened(space, 80)}"
        array = _as_array(value)
        if array.dtype.kind not in "biuf":
            return f"has dtype {array.dtype}, numbers are needed"
        if array.shape != space.shape:
            return f"has shape {list(array.shape)}, its space says {list(space.shape)}"
        if is_bytes(space) and (wrong := no_byte(array)) is not None:
            return f"holds {wrong:g}, its space says bytes (uint8)"
        if not np.isfinite(array).all():
            self._fail("finite", "observation", f"an observation holds {array[~np.isfinite(array)].flat[0]}")
        else:
            outside = (array < getattr(space, "low", -np.inf)) | (array > getattr(space, "high", np.inf))
            if outside.any():
                worst = array[outside].flat[0]
                self.check_report.note(
                    "spec", f"observations leave the bounds of their Box, e.g. {worst} at {self.where}", "bounds"
                )
        return None

    def _mask(self, agent: Any, observations: Any, infos: Any) -> Any:
        space = self.env.observation_space(agent)
        if is_space(space, "Dict") and MASK_KEY in space.spaces:
            return observations[agent][MASK_KEY]
        info = infos.get(agent)
        if info is not None and not isinstance(info, Mapping):
            self._stop("spec", "info", f"the info of agent '{agent}' is {type(info).__name__}, a dictionary is needed")
        return None if info is None else info.get(MASK_KEY)

    def _look_at_mask(self, agent: Any, observations: Any, infos: Any) -> None:
        mask = self._mask(agent, observations, infos)
        if mask is None:
            return
        array, n = _as_array(mask), self.actions[agent][1]
        if array.size != n:
            self._stop("masks", "size", f"the mask of agent '{agent}' has {array.size} entries for {n} actions")
        wrong = array if array.dtype.kind not in "biuf" else array[~np.isin(array, (0, 1))]
        if wrong.size:
            first = wrong.ravel().tolist()[0]
            self._stop("masks", "values", f"the mask of agent '{agent}' holds {first!r}; 0 or 1 is needed")
        if not array.any():
            self._stop(
                "masks", "empty", f"the mask leaves agent '{agent}', who is alive, no action (1 is legal, 0 not)"
            )

    def _legal(self, agent: Any, observations: Any, infos: Any) -> np.ndarray:
        """Return which actions of an agent are legal, ``[A]``, the first of its space first."""
        mask = self._mask(agent, observations, infos)
        return np.ones(self.actions[agent][1]) if mask is None else np.asarray(mask).reshape(-1)

    # What a step comes to -----------------------------------------------------------------------------------

    def _account(self, acted: list[Any], rewards: Any, terminations: Any, truncations: Any) -> None:
        for name, values in (("reward", rewards), ("termination", terminations), ("truncation", truncations)):
            for agent in acted:
                if agent not in values:
                    self._fail("accounts", name, f"agent '{agent}' acted but has no {name}")
                elif name != "reward":
                    try:
                        read_flag(values[agent], f"the {name} of agent '{agent}'")
                    except (EnvironmentContractError, ValueError) as error:
                        self._stop("accounts", "flag", str(error))
        for agent, reward in rewards.items():
            number = _as_array(reward)
            if number.size != 1 or number.dtype.kind not in "biuf":
                self._stop(
                    "accounts",
                    "number",
                    f"the reward of agent '{agent}' is {shortened(repr(reward), 80)}, not a number",
                )
            value = float(number.item())
            if not np.isfinite(value):
                self._fail("finite", "reward", f"the reward of agent '{agent}' is {value}")
            if agent not in acted and value != 0.0:
                self.check_report.note(
                    "accounts",
                    f"{self.where}: agent '{agent}' did not act and is paid {value:g}, which is not counted",
                    "unpaid",
                )

    def _end(self, before: list[Any], alive: list[Any], terminations: Any, truncations: Any, infos: Any) -> bool:
        ended = [a for a in before if terminations.get(a) or truncations.get(a)]
        over = not any(a not in ended for a in alive)
        self._look_for_listed(before, alive, ended, terminations)
        if over and not ended:
            self._fail("ends", "silent", "no agent is left, but none was terminated or truncated")
        elif not over and (gone := [a for a in before if a not in alive and a not in ended]):
            self.check_report.note(
                "ends", f"{self.where}: agent '{gone[0]}' leaves without being terminated; counted as dead", "leaves"
            )
        if over:
            self.ends += 1
            if ended and all(terminations.get(a) and truncations.get(a) for a in ended):
                self.both.append(self.where)
            self._look_for_metrics(infos)
        return over

    def _look_for_listed(self, before: list[Any], alive: list[Any], ended: list[Any], terminations: Any) -> None:
        """Look for agents that are at their end and still in ``env.agents``."""
        still_listed = [a for a in ended if a in alive]
        if still_listed and len(ended) == len(before):
            self._stop(
                "auto-reset",
                "agents",
                f"all agents are at their end, but env.agents is {shortened(alive, 80)}; it must be empty, and nothing "
                "may reset itself",
            )
        elif still_listed:
            word = "terminated" if terminations.get(still_listed[0]) else "truncated"
            self._fail(
                "ends",
                "still listed",
                f"agent '{still_listed[0]}' is {word}, but still in env.agents: it would act again",
            )

    def _look_for_metrics(self, infos: Any) -> None:
        for name in self.metrics:
            if not any(isinstance(info, Mapping) and name in info for info in infos.values()):
                self._fail(
                    "spec",
                    f"metric {name}",
                    f"metadata names the episode metric '{name}', but no agent's info has it at the end",
                )

    def judge_ends(self) -> None:
        """Report ends that are terminated and truncated at once.

        It may be a coincidence; if it is so every time, one of the two carries no information.
        """
        if self.both:
            message = (
                f"{self.both[0]}: the end is both terminated and truncated; a time limit is a truncation, the end of "
                "the task a termination (taken as terminated: nothing is bootstrapped)"
            )
            if len(self.both) == self.ends:
                self.check_report.fail("ends", "both", message)
            else:
                self.check_report.note("ends", message)


def _as_array(value: Any) -> np.ndarray:
    """Return what an environment gave as an array; what is no array of anything as one of objects."""
    try:
        return np.asarray(value)
    except ValueError:  # nested lists of several lengths
        return np.asarray(value, object)


def _contains(space: Any, value: Any) -> bool:
    """Return whether ``value`` is of a space without parts; one of an environment's own may not be able to tell."""
    if callable(contains := getattr(space, "contains", None)):
        return bool(contains(value))
    try:
        observation_reader(space, "it")[1](value)
    except (EnvironmentContractError, TypeError, ValueError):
        return False
    return True
