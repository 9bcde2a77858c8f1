"""Play random legal episodes in a vector environment; record and inspect them call by call."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.env_checker.episodes import FIELD_WORDS, ROW_FIELDS, RandomEpisode, Snapshot, Step
from qmix_lightning.env_checker.random_player import random_actions
from qmix_lightning.env_checker.report import CheckReport
from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.text import error_line
from qmix_lightning.types import NO_OP, EnvSpec, Observation, Transition
from qmix_lightning.worker.blame import is_fault
from qmix_lightning.worker.returned import no_byte

__all__ = ["InstrumentedEnv", "Unusable", "random_episodes"]


_SAMPLE_SIZE = 4096
"""Numbers of an observation that are kept for messages and comparisons; the rest is known by its checksum."""


class Unusable(Exception):
    """Raised when an environment is in no state to continue; the reason is in the check report."""


# Watching --------------------------------------------------------------------------------------------------------


class InstrumentedEnv:
    """A vector environment whose every call is inspected.

    Args:
        env: the environment.
        num_envs: how many were asked for.
        check_report: where results go.
        blame: the check that fails if a call raises.
    """

    def __init__(self, env: VectorEnv, num_envs: int, check_report: CheckReport, blame: str) -> None:
        self.env = env
        self.check_report = check_report
        self.blame = blame
        self.spec: EnvSpec = env.spec
        self.num_envs = num_envs
        self.where = "creation"
        self._check_spec()
        self.shown: list[Snapshot | None] = [None] * num_envs  # of running episodes
        self.t = [0] * num_envs
        self.seed = [0] * num_envs
        self._paused = [False] * num_envs

    def _fail(self, check: str, kind: str, message: str) -> None:
        self.check_report.fail(check, kind, message)

    def _check_spec(self) -> None:
        spec = self.spec
        if self.env.num_envs != self.num_envs:
            self._fail("spec", "num_envs", f"num_envs is {self.env.num_envs}, but {self.num_envs} were asked for")
            raise Unusable
        for name, have, want in (
            ("obs_dim", spec.obs_dim, max(spec.obs_dims)),
            ("n_actions", spec.n_actions, max(spec.action_counts)),
        ):
            if have != want:
                self._fail("spec", name, f"spec.{name} is {have}, the largest agent's is {want}")
                raise Unusable

    # Calls --------------------------------------------------------------------------------------------------

    def reset(self, wanted: Sequence[bool], seeds: Sequence[int]) -> list[Snapshot]:
        """Reset the slots that are ``wanted``; return what every slot shows."""
        mask, numbers = torch.tensor(list(wanted)), torch.tensor(list(seeds), dtype=torch.int64)
        before, begun = list(self.shown), _true_places(wanted)
        for slot in begun:
            self.seed[slot], self.t[slot], before[slot] = seeds[slot], 0, None
        self.where = f"reset of slot {', '.join(map(str, begun)) or 'none'}"
        observation = self._call(self.env.reset, mask, numbers)
        rows = self._rows(observation, list(wanted), [False] * self.num_envs)
        for slot, row in enumerate(rows):
            if wanted[slot]:
                self.shown[slot], self._paused[slot] = row, False
            elif (old := before[slot]) is not None and old.digest != row.digest:
                changed = [FIELD_WORDS[n] for n, x, y in zip(ROW_FIELDS, old.digest, row.digest, strict=True) if x != y]
                if self._paused[slot]:
                    text = f"slot {slot} was not stepped after its step {self.t[slot]}, but {changed[0]} changed"
                    self._fail("pause", "changed", text)
                else:
                    text = f"{self.where}: {changed[0]} of slot {slot}, in step {self.t[slot]} of its episode, changed"
                    self._fail("reset", "changed", text)
                self.shown[slot] = None  # said once
        return rows

    def step(self, actions: np.ndarray, active: Sequence[bool]) -> tuple[list[Snapshot], list[Step]]:
        """Take a joint step with ``actions [E, N]``; rows and steps of slots that are not active mean nothing."""
        given = torch.from_numpy(actions.copy()).to(self.env.device)
        stepped = torch.tensor(list(active))
        for slot in _true_places(active):
            self.t[slot] += 1
        self._paused = [not stepping for stepping in active]
        self.where = f"step {max(self.t[slot] for slot in _true_places(active))}"
        outcome: Transition = self._call(self.env.step, given, stepped)
        if not torch.equal(given.cpu(), torch.from_numpy(actions)) or stepped.tolist() != list(active):
            self._fail("runs", "arguments", f"{self.where}: step changed the tensors it was given")
        if outcome.failed is not None and (failed := np.flatnonzero(outcome.failed.numpy(force=True) & active)).size:
            self._fail(
                self.blame, "failed", f"{self._at(int(failed[0]))}: the simulator failed (the log has the cause)"
            )
            raise Unusable
        steps = self._steps(outcome, actions, active)
        terminated = [bool(active[s]) and steps[s].terminated for s in range(self.num_envs)]
        rows = self._rows(outcome.next, list(active), terminated)
        for slot in _true_places(active):
            self.shown[slot] = None if steps[slot].terminated or steps[slot].truncated else rows[slot]
        return rows, steps

    def peek(self) -> None:
        """Read what all slots show, without changing anything."""
        self.reset([False] * self.num_envs, [0] * self.num_envs)

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except BaseException as error:
            if not is_fault(error):
                raise
            if isinstance(error, EnvironmentContractError) and self.check_report.failed():
                raise Unusable from error  # the bare environment did it too, which is reported in detail
            message = error_line(error)
            self._fail(self.blame, f"raised {type(error).__name__}", f"{self.where}: {message}")
            raise Unusable from error

    def _at(self, slot: int) -> str:
        return f"step {self.t[slot]}, slot {slot} (seed {self.seed[slot]})"

    # Inspection ---------------------------------------------------------------------------------------------

    def _array(self, value: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
        if not isinstance(value, Tensor):
            self._fail("spec", name, f"{self.where}: {name} is {type(value).__name__}, a tensor is needed")
            raise Unusable
        if tuple(value.shape) != shape:
            self._fail("spec", name, f"{self.where}: {name} has shape {list(value.shape)}, the spec says {list(shape)}")
            raise Unusable
        if value.dtype != dtype:
            self._fail("spec", f"{name} dtype", f"{self.where}: {name} is {value.dtype}, {dtype} is needed")
        return value.to(dtype).numpy(force=True).copy()

    def _rows(self, shown: Observation, inspect: list[bool], terminated: list[bool]) -> list[Snapshot]:
        spec, e = self.spec, self.num_envs
        n = spec.n_agents
        obs = self._array(shown.obs, "obs", (e, n, spec.obs_dim), torch.float32)
        state = self._array(shown.state, "state", (e, spec.state_dim), torch.float32)
        avail = self._array(shown.avail_actions, "avail_actions", (e, n, spec.n_actions), torch.bool)
        mask = self._array(shown.agent_mask, "agent_mask", (e, n), torch.bool)
        for slot in _true_places(inspect):
            self._inspect(slot, obs[slot], state[slot], avail[slot], mask[slot], terminated[slot])
        return [
            Snapshot(
                (_crc(obs[s]), _crc(state[s]), _crc(avail[s]), _crc(mask[s])), tuple(map(_crc, obs[s])),
                _sample(obs[s]), _sample(state[s]), avail[s], mask[s],
            )
            for s in range(e)
        ]  # fmt: skip

    def _inspect(
        self, slot: int, obs: np.ndarray, state: np.ndarray, avail: np.ndarray, mask: np.ndarray, over: bool
    ) -> None:
        names, counts = self.spec.agent_names, self.spec.action_counts
        for word, values in (("observation", obs), ("state", state)):
            if not np.isfinite(values).all():
                bad = values[~np.isfinite(values)].flat[0]
                self._fail("finite", word, f"{self._at(slot)}: the {word} holds {bad}")
        if self.spec.obs_dtype == "uint8" and (wrong := no_byte(obs)) is not None:
            self._fail(
                "spec", "obs_dtype", f"{self._at(slot)}: an observation holds {wrong:g}, spec.obs_dtype says uint8"
            )
        for i, name in enumerate(names):
            at = f"{self._at(slot)}, agent '{name}'"
            if obs[i, self.spec.obs_dims[i] :].any():
                self._fail("spec", "padding", f"{at}: the padding of its observation is not zero")
            if avail[i, counts[i] :].any():
                self._fail("masks", "padding", f"{at}: an action that it does not have is legal")
            if mask[i]:
                if not over and not avail[i].any():
                    self._fail("masks", "empty", f"{at}: it is alive and has no legal action")
                    raise Unusable
                continue
            if obs[i].any():
                self._fail("death", "observation", f"{at}: it is dead, but its observation is not zero")
            if (legal := _true_places(avail[i])) != [NO_OP]:
                self._fail("death", "actions", f"{at}: it is dead, but its legal actions are {legal}, not [{NO_OP}]")

    def _steps(self, outcome: Transition, actions: np.ndarray, active: Sequence[bool]) -> list[Step]:
        e, n = self.num_envs, self.spec.n_agents
        reward = self._array(outcome.reward, "reward", (e,), torch.float32)
        terminated = self._array(outcome.terminated, "terminated", (e,), torch.bool)
        truncated = self._array(outcome.truncated, "truncated", (e,), torch.bool)
        shares = None
        if outcome.agent_reward is not None:
            shares = self._array(outcome.agent_reward, "agent_reward", (e, n), torch.float32)
        if set(outcome.metrics) != set(self.spec.episode_metrics):
            want, have = sorted(self.spec.episode_metrics), sorted(outcome.metrics)
            self._fail("spec", "metrics", f"{self.where}: metrics are {have}, spec.episode_metrics says {want}")
            raise Unusable
        metrics = {k: self._array(v, f"metrics['{k}']", (e,), torch.float32) for k, v in outcome.metrics.items()}
        for slot in _true_places(active):
            at = self._at(slot)
            if not np.isfinite(reward[slot]):
                self._fail("finite", "reward", f"{at}: the reward is {reward[slot]}")
            if shares is not None and not np.isfinite(shares[slot]).all():
                self._fail("finite", "agent_reward", f"{at}: the reward of an agent is not finite")
            if terminated[slot] and truncated[slot]:
                self._fail("ends", "both", f"{at}: the episode is both terminated and truncated")
            if terminated[slot] or truncated[slot]:
                self._inspect_metrics(at, {name: float(values[slot]) for name, values in metrics.items()})
        return [
            Step(
                tuple(actions[s].tolist()),
                float(reward[s]),
                bool(terminated[s]),
                bool(truncated[s]),
                None if shares is None else tuple(shares[s].tolist()),
                tuple((k, float(v[s])) for k, v in metrics.items()) if terminated[s] or truncated[s] else (),
            )
            for s in range(e)
        ]

    def _inspect_metrics(self, at: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not np.isfinite(value):
                self._fail("finite", f"metric {name}", f"{at}: the metric '{name}' is {value}")
            elif name == "won" and value not in (0.0, 1.0):
                self._fail("spec", "won", f"{at}: the metric 'won' is {value}, 0 or 1 is needed")


def _true_places(flags: Sequence[bool] | np.ndarray) -> list[int]:
    """Return where flags are true."""
    return np.flatnonzero(flags).tolist()


def _crc(values: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(values).tobytes())


def _sample(values: np.ndarray) -> np.ndarray:
    flat = values.ravel()
    return flat[:: max(1, -(-flat.size // _SAMPLE_SIZE))].copy()


# Playing ---------------------------------------------------------------------------------------------------------


def random_episodes(
    instrumented: InstrumentedEnv,
    seeds: Sequence[Iterator[int]],
    steps: int,
    *,
    until_episodes: int | None = None,
    pause_seed: int | None = None,
) -> list[RandomEpisode]:
    """Play the episodes of ``seeds``, one iterator for each slot, with actions that the seed and the step decide.

    Args:
        instrumented: the environment.
        seeds: a slot rests when its iterator has run out.
        steps: joint steps at most.
        until_episodes: stop once every slot has ended so many.
        pause_seed: let slots rest now and then, and read what all show.
    """
    slots, n = instrumented.num_envs, instrumented.spec.n_agents
    episodes: list[RandomEpisode] = []
    current: list[RandomEpisode | None] = [None] * slots
    ended = [0] * slots
    for t in range(steps):
        episodes += _begin(instrumented, seeds, current)
        playing = {slot: episode for slot, episode in enumerate(current) if episode is not None}
        if not playing:
            break
        if pause_seed is not None:
            draws = prng.uniform(prng.derive_key(pause_seed, t), slots + 1)[0]
            awake = [slot for slot in playing if draws[slot] < 0.6] or [*playing][:1]
            playing = {slot: playing[slot] for slot in awake}
        actions = np.full((slots, n), NO_OP, np.int64)
        for slot, episode in playing.items():
            actions[slot] = random_actions(episode.seed, len(episode.steps), episode.rows[-1].legal())
        rows, outcomes = instrumented.step(actions, [slot in playing for slot in range(slots)])
        for slot, episode in playing.items():
            episode.steps.append(outcomes[slot])
            episode.rows.append(rows[slot])
            if episode.ended:
                current[slot] = None
                ended[slot] += 1
        if pause_seed is not None and t % 3 == 0:
            instrumented.peek()
        if until_episodes is not None and min(ended) >= until_episodes:
            break
    return [e for e in episodes if e.steps]


def _begin(
    instrumented: InstrumentedEnv, seeds: Sequence[Iterator[int]], current: list[RandomEpisode | None]
) -> list[RandomEpisode]:
    """Begin the next episode of every slot that has none, in ``current``; return those that were begun."""
    begun: list[RandomEpisode] = []
    for slot, episode in enumerate(current):
        if episode is None and (number := next(seeds[slot], None)) is not None:
            begun.append(RandomEpisode(number, slot))
    if begun:
        starts = {episode.slot: episode.seed for episode in begun}
        slots = range(len(current))
        rows = instrumented.reset([slot in starts for slot in slots], [starts.get(slot, 0) for slot in slots])
        for episode in begun:
            episode.rows.append(rows[episode.slot])
            current[episode.slot] = episode
    return begun
