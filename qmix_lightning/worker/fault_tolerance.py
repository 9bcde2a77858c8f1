"""Tolerate faults of environments: drop the episode, close and recreate the environment, count the fault.

What may pass is tolerated, within limits: an exception, NaN, a simulator that died or hangs. A broken contract does not
pass by itself: it ends the run at once. Used in the training process and in workers alike; imports no torch.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qmix_lightning.errors import (
    ConfigurationError,
    EnvironmentContractError,
    EnvironmentFault,
    InvalidEpisodeError,
    StartupError,
)
from qmix_lightning.runtime.text import error_line
from qmix_lightning.worker.blame import is_fault, location_of, raised_at
from qmix_lightning.worker.buffers import Buffers, Row
from qmix_lightning.worker.parallel_adapter import Outcome, ParallelAdapter

__all__ = ["FAULT_KINDS", "EnvBlock", "FaultLimit", "FaultTolerantEnv", "Faults", "sum_of_squares"]


FAULT_KINDS: tuple[str, ...] = ("raised", "invalid", "killed", "hung")
"""An exception; NaN or a meaningless episode; a worker that died; a simulator or worker past its timeout."""


_log = logging.getLogger(__name__)


_BACK_OFF_S = (0.1, 3.0)
_DOUBLINGS = 5  # then the longest is reached
_START_ATTEMPTS = 3

SHOW_TRACEBACK = "HYDRA_FULL_ERROR=1 shows the traceback"

_MISREADINGS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
"""What reading something raises that is not what it should be."""


@dataclass(frozen=True)
class FaultLimit:
    """Limit on the faults that a vector environment tolerates.

    More than ``max_faults`` within ``window_s`` seconds are too many, and so are more than ``max_faults`` of one
    environment in a row, without an episode that ended between them: faults that take minutes each, as hangs do, never
    fill a window.
    """

    max_faults: int = 10
    window_s: float = 600.0


class Faults:
    """Counts faults by kind, logs each in one line, and ends the run past the limit.

    Attributes:
        counts: how many, by kind.
        started: whether an environment has ever shown a first observation. Before, a few attempts are enough.
        last: the last cause, in one line.

    Args:
        name: what messages call the environment.
        limit: how many faults are tolerated.
        started: they have been seen to start before, e.g. in a worker that this one replaces.
    """

    def __init__(self, name: str, limit: FaultLimit, started: bool = False) -> None:
        self.name = name
        self.limit = limit
        self.counts = dict.fromkeys(FAULT_KINDS, 0)
        self.started = started
        self.last = ""
        self._times: deque[float] = deque()

    def record(self, kind: str, who: str, cause: str, in_a_row: int = 1) -> None:
        """Count one fault.

        Args:
            kind: one of :data:`FAULT_KINDS`.
            who: which environment or worker.
            cause: what happened, in one line.
            in_a_row: faults of it without an episode that ended between them, this one included.

        Raises:
            EnvironmentFault: there were too many; the message has the last cause.
        """
        self.add({kind: 1}, f"{who}: {cause}")
        if not self.started and (in_a_row >= _START_ATTEMPTS or kind == "hung"):
            times = f"in {in_a_row} attempts" if in_a_row > 1 else "and was not tried again"
            raise self._end(f"has never started, {times}; {who}: {cause}")
        if in_a_row > self.limit.max_faults:
            raise self._end(
                f"failed {in_a_row} times in a row, without an episode that ended "
                f"(rollout.max_faults={self.limit.max_faults}); the last time, {who}: {cause}"
            )
        _log.warning("%s of '%s' failed (%s): %s; its episode is dropped, it is recreated", who, self.name, kind, cause)

    def add(self, counts: Mapping[str, int], cause: str) -> None:
        """Count faults that were logged elsewhere; raise ``EnvironmentFault`` as :meth:`record` does."""
        now = time.monotonic()
        self.last = cause
        for kind, number in counts.items():
            self.counts[kind] += number
            self._times.extend([now] * number)
        while self._times and now - self._times[0] > self.limit.window_s:
            self._times.popleft()
        if len(self._times) > self.limit.max_faults:
            raise self._end(
                f"failed {len(self._times)} times within {self.limit.window_s:g} s "
                f"(rollout.max_faults={self.limit.max_faults}); the last time, {cause}"
            )

    def _end(self, how: str) -> EnvironmentFault:
        return EnvironmentFault(f"environment '{self.name}' {how} ({SHOW_TRACEBACK})")

    def back_off(self) -> None:
        """Wait before trying again, longer the more faults there were lately."""
        first, longest = _BACK_OFF_S
        time.sleep(min(longest, first * 2 ** min(_DOUBLINGS, max(0, len(self._times) - 1))))


class _Streams:
    """Standard output and error, to be opened again where a simulator has closed them, which are not its own."""

    def __init__(self) -> None:
        self._copies: dict[int, int] = {}

    def keep(self) -> None:
        for descriptor in (1, 2):
            if descriptor not in self._copies:
                with contextlib.suppress(OSError):  # it was started without
                    self._copies[descriptor] = os.dup(descriptor)

    def restore(self, who: str) -> None:
        for descriptor, copy in self._copies.items():
            try:
                os.fstat(descriptor)
            except OSError:
                os.dup2(copy, descriptor)
                _log.warning("%s closed file descriptor %d, which is not its own; it is open again", who, descriptor)


_STREAMS = _Streams()


class FaultTolerantEnv:
    """A :class:`ParallelAdapter` that is recreated when it fails, and before it has taken too many steps.

    An environment whose ``metadata`` names ``rebuild_after_steps`` is recreated between episodes before it has taken so
    many steps.

    Args:
        make: creates the adapter.
        number: which environment it is, for messages.
        faults: where faults are counted.
    """

    def __init__(self, make: Callable[[], ParallelAdapter], number: int, faults: Faults) -> None:
        self._make = make
        self._who = f"environment {number}"
        self._faults = faults
        self.name = faults.name
        self._adapter: ParallelAdapter | None = make()
        self.spec = self._adapter.spec
        self._steps = 0
        self._in_a_row = 0  # faults without an episode that ended between them
        self._process = os.getpid()
        _STREAMS.keep()

    def reset(self, seed: int, row: Row) -> None:
        """Start an episode; try again with a new environment until it works or the limit is reached."""
        _STREAMS.restore(self._who)
        while True:
            adapter = None
            try:
                adapter = self._adapter if self._adapter is not None and not self._is_old() else self._recreate()
                adapter.reset(seed, row)
                if wrong := _not_finite(row, 0.0):
                    raise InvalidEpisodeError(wrong)
                self._faults.started = True
                return
            except EnvironmentFault:
                raise
            except BaseException as error:
                self._end_copy()
                if not is_fault(error):
                    raise
                # What the environment itself says of its settings: trying again does not install a game.
                refused = isinstance(error, ConfigurationError) and not isinstance(error, EnvironmentContractError)
                if refused and not self._faults.started:
                    raise
                if refused and adapter is not None:
                    raise EnvironmentFault(str(error)) from error
                self._fail(error, "reset")
                self._faults.back_off()

    def step(self, actions: Sequence[int], row: Row) -> Outcome | None:
        """Take a joint step; return ``None`` if it failed, and the episode with it.

        Whether its values are finite is checked by :class:`EnvBlock`.
        """
        assert self._adapter is not None
        self._steps += 1
        try:
            outcome = self._adapter.step(actions, row)
        except BaseException as error:
            self._end_copy()
            if not is_fault(error):
                raise
            self._fail(error, "step")
            return None
        if outcome.terminated or outcome.truncated:
            self._in_a_row = 0
        return outcome

    @property
    def env(self) -> object:
        """The environment as its factory made it; ``None`` while there is none."""
        return None if self._adapter is None else self._adapter.env

    def reject(self, why: str) -> None:
        """Count the last step as failed: its values are not finite."""
        self._fail(InvalidEpisodeError(why), "step")

    def render(self) -> Any:
        """Return what the environment draws, as it gives it."""
        if self._adapter is None:
            raise ConfigurationError(f"{self._who} of '{self.name}' has failed and waits for a reset")
        return self._adapter.render()

    def _end_copy(self) -> None:
        """End this process if it is a copy, by a fork in the simulator, from which an error came out."""
        if os.getpid() != self._process:
            os._exit(1)

    def _is_old(self) -> bool:
        assert self._adapter is not None
        limit = self._adapter.rebuild_after_steps
        longest = self.spec.episode_limit or 0
        return limit is not None and self._steps + longest >= limit

    def _recreate(self) -> ParallelAdapter:
        self.close()
        self._adapter = adapter = self._make()
        self._steps = 0
        if adapter.spec != self.spec:
            raise EnvironmentFault(f"{self._who}: recreated, it has other sizes than before")
        return adapter

    def _fail(self, error: BaseException, method: str) -> None:
        """Close the environment and count its fault; what will not pass raises ``EnvironmentFault``."""
        _STREAMS.restore(self._who)
        adapter, where = self._adapter, raised_at(error)
        misread = adapter is not None and adapter.reading and where is None and isinstance(error, _MISREADINGS)
        if isinstance(error, EnvironmentContractError) or misread:
            told = str(error)
            if misread:
                told = f"environment '{self._faults.name}': what {method} returned cannot be read: {error_line(error)}"
            place = location_of(adapter.env, method) if adapter is not None else None
            self.close()
            raise EnvironmentFault(
                f"{told}{f' ({method} at {place})' if place else ''}. This does not pass by itself, so it is not tried "
                f"again: qmix-envs check tells what else is amiss ({SHOW_TRACEBACK})"
            ) from error
        self.close()
        cause = error_line(error) + (f" ({where})" if where else "")
        if isinstance(error, StartupError) and not self._faults.started:
            raise EnvironmentFault(f"{error} ({SHOW_TRACEBACK})") from error
        if isinstance(error, TimeoutError):
            kind = "hung"
        else:
            kind = "invalid" if isinstance(error, InvalidEpisodeError) else "raised"
        self._in_a_row += 1
        try:
            self._faults.record(kind, self._who, cause, self._in_a_row)
        except EnvironmentFault as fault:
            raise fault from error

    def close(self) -> None:
        """Close the environment if there is one; an error in closing is logged, not raised."""
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            try:
                adapter.close()
            except BaseException as error:
                if not is_fault(error):
                    raise
                _log.debug("%s failed to close: %s", self._who, error_line(error))


class EnvBlock:
    """Environments of one process, stepped one after the other into neighbouring rows of common buffers.

    Args:
        envs: by the row they write; rows without a gap. Fault-tolerant ones fail where a value is not finite.
        buffers: what they write.
    """

    def __init__(self, envs: Mapping[int, ParallelAdapter | FaultTolerantEnv], buffers: Buffers) -> None:
        self._envs = [(e, env, buffers.row(env.spec, e)) for e, env in sorted(envs.items())]
        self._buffers = buffers
        block = slice(self._envs[0][0], self._envs[-1][0] + 1)
        self._shown = [buffers.obs[block]]
        if not self._envs[0][1].spec.state_is_joined_obs:
            self._shown.append(buffers.state[block])
        self._checked = any(isinstance(env, FaultTolerantEnv) for env in envs.values())

    def reset(self, seeds: Sequence[int], wanted: Sequence[bool]) -> None:
        """Start the episodes of ``seeds [E]`` where ``wanted [E]``."""
        for e, env, row in self._envs:
            if wanted[e]:
                env.reset(seeds[e], row)

    def step(self, actions: Sequence[Sequence[int]], wanted: Sequence[bool]) -> list[int]:
        """Take a joint step with ``actions [E][N]`` where ``wanted [E]``.

        Returns:
            The rows that failed, which earn nothing.
        """
        buffers = self._buffers
        failed: list[int] = []
        total = 0.0
        for e, env, row in self._envs:
            if not wanted[e]:
                continue
            outcome = env.step(actions[e], row)
            if outcome is None:
                failed.append(e)
                continue
            reward, buffers.terminated[e], buffers.truncated[e], metrics = outcome
            buffers.reward[e] = reward
            total += reward
            if metrics:
                buffers.metrics[:, e] = metrics
        # Checked once for all: a sum of much costs as much as one of little.
        if self._checked and not math.isfinite(total + sum_of_squares(*self._shown)):
            failed += self._reject(wanted, failed)
        if failed:
            buffers.clear_outcome(failed)
        return failed

    def _reject(self, wanted: Sequence[bool], failed: Sequence[int]) -> list[int]:
        """Count those as failed that took a step with a value that is not finite; return their rows."""
        rejected = []
        for e, env, row in self._envs:
            stepped = wanted[e] and e not in failed
            if stepped and isinstance(env, FaultTolerantEnv):
                wrong = _not_finite(row, float(self._buffers.reward[e]))
                if wrong:
                    env.reject(wrong)
                    rejected.append(e)
        return rejected


def sum_of_squares(*arrays: np.ndarray) -> float:
    """Return a sum that is not finite if a value is not; it may overflow besides, so a closer look follows.

    By ``vdot``, which costs a third of ``isfinite`` or ``sum`` on a few values, and never warns, as ``dot`` does.
    """
    return sum(float(np.vdot(values, values)) for values in arrays)


def _not_finite(row: Row, reward: float) -> str | None:
    """Return which value of a row is not finite, as float32, if one is."""
    if math.isfinite(reward + sum_of_squares(row.obs, row.state)):
        return None
    if not math.isfinite(reward):
        return f"the reward is {reward}"
    for i, values in enumerate(row.agent_obs):
        if not np.isfinite(values).all():
            return f"the observation of the agent in slot {i} holds {values[~np.isfinite(values)][0]}"
    if not np.isfinite(row.state).all():
        return f"the state holds {row.state[~np.isfinite(row.state)][0]}"
    return None
