"""A simulator whose every transition can be computed again from what is stored, and the ways in which it misbehaves."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

AGENTS = ("left", "right")
ACTIONS = 3
LARGE = np.float32(3e38)
"""Two of them are no float32 any more, each of them is."""


class Odd(BaseException):
    """What no ``except Exception`` catches."""


def _next(x: np.ndarray, actions: Iterable[int]) -> np.ndarray:
    push = np.float32(sum((i + 1) * a for i, a in enumerate(actions)))
    return np.tanh(x[[1, 2, 0]] * np.float32(1.7) + push * np.float32(0.25) - np.float32(0.6)).astype(np.float32)


def _reward(x: np.ndarray, actions: Iterable[int]) -> float:
    return float(x[0]) + sum(0.5 * a for a in actions)


def _mask(t: int, agent: int) -> np.ndarray:
    mask = np.ones(ACTIONS, np.int8)
    mask[(t + agent) % ACTIONS] = 0
    return mask


class Accountable(ParallelEnv):
    """Episodes of 3 to 9 steps, whose observations hold all there is: a stored transition proves itself, or does not.

    An observation is ``x`` (3 numbers), the step, the length, whether the end is a truncation, the agent, and a number
    that is large now and then.

    Args:
        kind: a name of :data:`KINDS`, what goes wrong when it is due; ``none``: nothing.
        folder: where it appends a byte for every time that it goes wrong, before it does.
        every: it is due in one of so many steps, which seed and step decide.
        trainer: the process in which nothing goes wrong that would end it.
        times: how often it goes wrong at most, in all processes.
    """

    def __init__(self, kind: str, folder: str, every: int = 12, trainer: int = 0, times: int = 10**9) -> None:
        self.kind, self.folder, self.every, self.trainer, self.times = kind, Path(folder), every, trainer, times
        self.possible_agents = list(AGENTS)
        self.agents: list[str] = []
        self.episode_limit = 9
        self.metadata: dict[str, Any] = {"name": "accountable", "episode_metrics": ("won",)}
        self.state_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self._shown = {agent: np.zeros(8, np.float32) for agent in AGENTS}
        self._masks = {agent: np.zeros(ACTIONS, np.int8) for agent in AGENTS}
        self._state = np.zeros(4, np.float32)
        if kind in CHILDREN:
            CHILDREN[kind]()

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-np.inf, np.inf, (8,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(ACTIONS)

    def _due(self) -> bool:
        if self.kind in CHILDREN or self.kind == "none" or os.getpid() == self.trainer:
            return False
        if zlib.crc32(f"{self._seed}:{self._t}".encode()) % self.every:
            return False
        return self._note()

    def _note(self) -> bool:
        descriptor = os.open(self.folder / "injected", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # several workers may be due in the same step
            if os.fstat(descriptor).st_size >= self.times:
                return False
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)
        return True

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        rng = np.random.default_rng(seed)
        self._seed, self._t = seed, 0
        self._x = rng.uniform(-1, 1, 3).astype(np.float32)
        self._length, self._truncates = int(rng.integers(3, 10)), bool(rng.random() < 0.5)
        self.agents = list(AGENTS)
        if self.kind in IN_RESET and self._due():
            IN_RESET[self.kind](self)
        return self._look(), {a: {"action_mask": self._masks[a]} for a in AGENTS}

    def _look(self, large: float = 0.0) -> dict[str, np.ndarray]:
        shown: dict[str, np.ndarray] = {}
        for i, agent in enumerate(AGENTS):
            values = np.array([*self._x, self._t, self._length, self._truncates, i, large], np.float32)
            if self.kind == "reused_arrays":  # the arrays of the step before, written over
                self._shown[agent][:] = values
                self._masks[agent][:] = _mask(self._t, i)
                shown[agent] = self._shown[agent]
            else:
                shown[agent], self._masks[agent] = values, _mask(self._t, i)
        self._state[:] = [*self._x, self._t]
        return shown

    def step(self, actions: dict[str, Any]) -> Any:
        chosen = [int(actions[a]) for a in AGENTS]
        if self.kind == "reused_arrays":
            for values in (*self._shown.values(), *self._masks.values()):
                values[:] = 99  # what was shown before is rubbish now
        # What nobody reads at the end of an episode does no harm there, and is not to be counted.
        read = not (self._t + 1 == self._length and self.kind.startswith(UNREAD_AT_THE_END))
        due = self.kind not in IN_RESET and read and self._due()
        if due and self.kind in BEFORE:
            BEFORE[self.kind](self, actions)
        reward = _reward(self._x, chosen)
        self._x = _next(self._x, chosen)
        self._t += 1
        over = self._t == self._length
        self.agents = [] if over else list(AGENTS)
        large = float(LARGE) if due and self.kind == "large_but_finite" else 0.0
        infos: dict[str, Any] = {a: {} for a in AGENTS}
        observations = self._look(large)
        for agent in AGENTS:
            infos[agent]["action_mask"] = self._masks[agent]
        if over:
            infos[AGENTS[0]]["won"] = bool(self._x[0] > 0)
        result = [
            observations,
            {AGENTS[0]: reward, AGENTS[1]: 0.0},
            dict.fromkeys(AGENTS, over and not self._truncates),
            dict.fromkeys(AGENTS, over and self._truncates),
            infos,
        ]
        if due and self.kind in AFTER:
            other = AFTER[self.kind](self, result)
            result = result if other is None else other
        return tuple(result)

    def state(self) -> np.ndarray:
        return self._state

    def close(self) -> None:
        pass


def proof(episode: Any) -> str | None:
    """Return what is wrong with a stored episode, if anything: each value is computed again from the one before."""
    obs, actions = episode.obs.numpy(), episode.actions.numpy()
    length = episode.length
    if not 3 <= length <= 9 or episode.terminated == episode.truncated:
        return f"length {length}, terminated {episode.terminated}, truncated {episode.truncated}"
    limit, truncates = obs[0, 0, 4], obs[0, 0, 5]
    if (length, episode.truncated) != (limit, bool(truncates)):
        return f"ends after {length} of {limit} steps, truncated {episode.truncated}, not {bool(truncates)}"
    x = obs[0, 0, :3]
    for t in range(length + 1):
        over = t == length
        shown = not over or episode.truncated  # a time limit leaves the last observation to be bootstrapped
        for i in range(2):
            expected = np.array([*x, t, limit, truncates, i], np.float32) * shown
            if not np.array_equal(obs[t, i, :7], expected) or obs[t, i, 7] not in (0, LARGE):
                return f"observation {obs[t, i]} at step {t}, {expected} is right"
            if bool(episode.agent_mask[t, i]) != shown:
                return f"agent mask at step {t}"
            legal = episode.avail_actions[t, i].numpy()
            if not over and not np.array_equal(legal, _mask(t, i).astype(bool)):
                return f"legal actions {legal} at step {t}"
        if not np.array_equal(episode.state[t].numpy(), np.array([*x, t], np.float32)):
            return f"state at step {t}"
        if t < length:
            if any(not _mask(t, i)[actions[t, i]] for i in range(2)):
                return f"an illegal action was taken at step {t}"
            if episode.reward[t] != np.float32(_reward(x, actions[t])):
                return f"reward {episode.reward[t]} at step {t}"
            x = _next(x, actions[t])
    return None


# What goes wrong --------------------------------------------------------------------------------------------------


def _raise(error: BaseException) -> Callable[..., Any]:
    def action(*_: Any) -> None:
        raise type(error)(*error.args)  # a new one: an exception that is raised again keeps every frame of before

    return action


def _kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit(*_: Any) -> None:
    os._exit(0)


def _segfault(*_: Any) -> None:
    ctypes.string_at(0)


def _sleep(*_: Any) -> None:
    time.sleep(3600)


def _hold_the_lock(*_: Any) -> None:
    ctypes.PyDLL(None).sleep(3600)  # a PyDLL call keeps Python's lock


def _close_descriptors(*_: Any) -> None:
    os.closerange(3, 256)


def _close_streams(*_: Any) -> None:
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # a neighbour has closed it in the same joint step
            os.close(descriptor)


def _flood(*_: Any) -> None:
    for _line in range(400):
        os.write(1, b"~" * 500 + b"\n")
        os.write(2, b"~" * 500 + b"\n")


def _fork(*_: Any) -> None:
    os.fork()  # and both go on


def _spoil_actions(env: Accountable, actions: dict[str, Any]) -> None:
    for agent in list(actions):
        actions[agent] = 77
    actions["stranger"] = -1


def _change_folder(env: Accountable, actions: dict[str, Any]) -> None:
    os.chdir(env.folder)


def _warn(*_: Any) -> None:
    print("a simulator says something", file=sys.stderr)


def _observe(value: Any) -> Callable[[Accountable, list[Any]], None]:
    def spoil(env: Accountable, result: list[Any]) -> None:
        shown = result[0][AGENTS[1]]
        result[0][AGENTS[1]] = value(shown) if callable(value) else value

    return spoil


def _give(part: int, value: Any) -> Callable[[Accountable, list[Any]], None]:
    """Give ``value`` for the second agent in a part of the result."""

    def spoil(env: Accountable, result: list[Any]) -> None:
        result[part] = {**result[part], AGENTS[1]: value}

    return spoil


def _mask_of(value: Any) -> Callable[[Accountable, list[Any]], None]:
    def spoil(env: Accountable, result: list[Any]) -> None:
        result[4][AGENTS[1]]["action_mask"] = value

    return spoil


def _whole(part: int, value: Any) -> Callable[[Accountable, list[Any]], None]:
    def spoil(env: Accountable, result: list[Any]) -> None:
        result[part] = value(result[part]) if callable(value) else value

    return spoil


def _nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(8) == 2, np.nan, values).astype(np.float32)


def _spoil_state(env: Accountable, result: list[Any]) -> None:
    env._state[1] = np.inf


def _metric(value: float) -> Callable[[Accountable, list[Any]], None]:
    def spoil(env: Accountable, result: list[Any]) -> None:
        # Read at the end only: so this is the end.
        env.agents = []
        result[2] = dict.fromkeys(AGENTS, True)
        result[3] = dict.fromkeys(AGENTS, False)
        result[4][AGENTS[0]]["won"] = value

    return spoil


def _agents(listed: list[str]) -> Callable[[Accountable, list[Any]], None]:
    def spoil(env: Accountable, result: list[Any]) -> None:
        env.agents = listed
        result[2] = dict.fromkeys(AGENTS, False)
        result[3] = dict.fromkeys(AGENTS, False)

    return spoil


def _invalid(*_: Any) -> None:
    from qmix_lightning.errors import InvalidEpisodeError

    raise InvalidEpisodeError("the game restarted")


IN_RESET = {"raises_in_reset": _raise(KeyError("no first observation"))}

BEFORE: dict[str, Callable[..., Any]] = {
    # tried again and counted
    "raises": _raise(RuntimeError("the simulator broke")),
    "out_of_memory": _raise(MemoryError()),
    "recursion": _raise(RecursionError("maximum recursion depth exceeded")),
    "sys_exit_0": _raise(SystemExit(0)),
    "sys_exit_text": _raise(SystemExit("bye")),
    "odd_base_exception": _raise(Odd("odd")),
    "invalid_episode": _invalid,
    "times_out": _raise(TimeoutError("the game did not answer")),
    # end a worker
    "killed": _kill,
    "exits": _exit,
    "segfault": _segfault,
    "hangs": _sleep,
    "holds_the_lock": _hold_the_lock,
    "closes_descriptors": _close_descriptors,
    # to be taken without a fault
    "floods": _flood,
    "forks_twice": _fork,
    "spoils_actions": _spoil_actions,
    "closes_streams": _close_streams,
    "talks": _warn,
    "changes_the_folder": _change_folder,
    "numpy_raises": lambda *_: np.seterr(all="raise"),
}

AFTER: dict[str, Callable[..., Any]] = {
    # tried again and counted
    "nan_observation": _observe(_nan),
    "infinite_state": _spoil_state,
    "float64_out_of_range": _observe(lambda shown: np.full(8, 1e300)),
    "nan_reward": _give(1, float("nan")),
    "reward_1e39": _give(1, 1e39),
    "reward_of_400_digits": _give(1, 10**400),
    "nan_metric": _metric(float("nan")),
    # refused
    "rewards_are_a_list": _whole(1, lambda rewards: list(rewards.values())),
    "reward_is_missing": _whole(1, lambda rewards: {AGENTS[0]: 1.0}),
    "reward_is_a_text": _give(1, "1.0"),
    "reward_is_complex": _give(1, 1 + 2j),
    "reward_is_a_vector": _give(1, np.zeros(2)),
    "mask_of_texts": _mask_of(np.array(["0", "1", "0"])),
    "mask_of_nan": _mask_of(np.array([np.nan, 1.0, 0.0])),
    "mask_of_weights": _mask_of([0.5, 0.5, 0.0]),
    "mask_is_empty": _mask_of(np.zeros(ACTIONS)),
    "mask_too_long": _mask_of(np.ones(ACTIONS + 1)),
    "termination_is_a_text": _give(2, "False"),
    "termination_is_missing": _whole(2, lambda ends: {AGENTS[0]: False}),
    "truncation_is_none": _give(3, None),
    "agents_vanish": _agents([]),
    "only_a_stranger": _agents(["stranger"]),
    "a_stranger_too": _agents([*AGENTS, "stranger"]),
    "agents_are_none": _agents(None),  # type: ignore[arg-type]
    "observation_of_another_shape": _observe(lambda shown: shown.reshape(2, 4)),
    "observation_too_short": _observe(lambda shown: shown[:5]),
    "observation_is_complex": _observe(lambda shown: shown + 1j),
    "observation_is_a_text": _observe("nothing"),
    "observation_is_none": _observe(None),
    "observation_is_missing": _whole(0, lambda shown: {AGENTS[0]: shown[AGENTS[0]]}),
    "observation_is_an_array_of_objects": _observe(lambda shown: shown.astype(object)),
    "observation_has_fields": _observe(lambda shown: shown.view([("value", np.float32)])),
    "reward_is_a_decimal": _give(1, Decimal(0)),
    "an_agent_twice": _agents([AGENTS[0], AGENTS[0]]),
    "infos_are_none": _whole(4, None),
    "won_is_7": _metric(7.0),
    "four_values": lambda env, result: result[:4],
    "an_empty_tuple": lambda env, result: (),
    # to be taken without a fault
    "large_but_finite": lambda env, result: None,
    "observation_of_other_bytes": _observe(lambda shown: shown.astype(">f4")),
    "observation_is_a_view": _observe(lambda shown: np.stack([shown, shown + 1], 1)[:, 0]),
    "reward_is_a_fraction": _give(1, Fraction(0)),
}

HARMLESS = (
    *("floods", "forks_twice", "closes_streams", "spoils_actions", "talks", "changes_the_folder", "numpy_raises"),
    *("large_but_finite", "observation_of_other_bytes", "observation_is_a_view", "reward_is_a_fraction"),
)
WORKER_ENDS = ("killed", "exits", "segfault", "hangs", "holds_the_lock", "closes_descriptors")
_FIRST_REFUSED = list(AFTER).index("rewards_are_a_list")
REFUSED = tuple(name for name in list(AFTER)[_FIRST_REFUSED:] if name not in HARMLESS)
COUNTED = (*IN_RESET, *(n for n in (*BEFORE, *AFTER) if n not in (*HARMLESS, *WORKER_ENDS, *REFUSED)))
KINDS = (*COUNTED, *WORKER_ENDS, *REFUSED, *HARMLESS, "reused_arrays")


UNREAD_AT_THE_END = ("observation", "nan_observation", "float64", "mask", "large")


# Processes that a simulator starts, for what is left when its trainer is killed ------------------------------------

_SLEEP = [sys.executable, "-c", "import time; time.sleep(3600)"]
_DEAF = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"]
_STARTED: list[Any] = []


def _daemonize() -> None:
    """Start a program that two processes have let go of, in a session of its own."""
    code = f"import subprocess; subprocess.Popen({_SLEEP!r}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], start_new_session=True, check=True)


def _fork_away() -> None:
    if os.fork() == 0:
        os.setsid()
        time.sleep(3600)
        os._exit(0)


CHILDREN: dict[str, Callable[[], Any]] = {
    "starts_a_game": lambda: _STARTED.append(subprocess.Popen(_SLEEP)),
    "starts_a_session": lambda: _STARTED.append(subprocess.Popen(_SLEEP, start_new_session=True)),
    "starts_one_that_is_deaf": lambda: _STARTED.append(subprocess.Popen(_DEAF, start_new_session=True)),
    "starts_a_daemon": _daemonize,
    "forks_away": _fork_away,
}
