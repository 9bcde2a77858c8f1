"""Tolerate faults of environments: drop the episode, close and recreate the environment, count the fault.

Used in the training process and in workers alike; imports no torch.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, EnvironmentFault, InvalidEpisodeError
from qmix_lightning.runtime.text import one_line
from qmix_lightning.worker.buffers import Buffers, Row
from qmix_lightning.worker.parallel_adapter import Outcome, ParallelAdapter

__all__ = ["FAULT_KINDS", "EnvBlock", "FaultLimit", "FaultTolerantEnv", "Faults"]


FAULT_KINDS: tuple[str, ...] = ("raised", "invalid", "killed", "hung")
"""An exception; NaN, a wrong shape, a bad mask or a meaningless episode; a worker that died; one past its timeout."""


_log = logging.getLogger(__name__)


_BACK_OFF_S = (0.1, 3.0)


@dataclass(frozen=True)
class FaultLimit:
    """Limit on the faults that a vector environment tolerates: how many within how many seconds."""

    max_faults: int = 10
    window_s: float = 600.0


class Faults:
    """Counts faults by kind, logs each in one line, and ends the run past the limit.

    Args:
        name: what messages call the environment.
        limit: how many faults are tolerated.
    """

    def __init__(self, name: str, limit: FaultLimit) -> None:
        self.name = name
        self.limit = limit
        self.counts = dict.fromkeys(FAULT_KINDS, 0)
        self._times: deque[float] = deque()

    def record(self, kind: str, who: str, cause: str) -> None:
        """Count one fault.

        Raises:
            EnvironmentFault: there were more than the limit within its window; the message has the last cause.
        """
        now = time.monotonic()
        self.counts[kind] += 1
        self._times.append(now)
        while self._times and now - self._times[0] > self.limit.window_s:
            self._times.popleft()
        if len(self._times) > self.limit.max_faults:
            raise EnvironmentFault(
                f"environment '{self.name}' failed {len(self._times)} times within {self.limit.window_s:g} s "
                f"(rollout.max_faults={self.limit.max_faults}); the last time, {who}: {cause}"
            )
        _log.warning("%s of '%s' failed (%s): %s; its episode is dropped, it is recreated", who, self.name, kind, cause)

    def back_off(self) -> None:
        """Wait before trying again, longer the more faults there were lately."""
        first, longest = _BACK_OFF_S
        time.sleep(min(longest, first * 2 ** max(0, len(self._times) - 1)))


def versions_of(adapter: ParallelAdapter) -> dict[str, str]:
    """Return what ``metadata["versions"]`` says of a simulator, such as its game's build."""
    versions = getattr(adapter.env, "metadata", {}).get("versions", {})
    return {str(name): str(value) for name, value in versions.items()}


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
        self._adapter: ParallelAdapter | None = make()
        self.spec = self._adapter.spec
        self.versions = versions_of(self._adapter)
        self._steps = 0

    def reset(self, seed: int, row: Row) -> None:
        """Start an episode; try again with a new environment until it works or the limit is reached."""
        while True:
            try:
                adapter = self._adapter if self._adapter is not None and not self._is_old() else self._recreate()
                adapter.reset(seed, row)
                if not _is_finite(row, 0.0):
                    raise _not_finite()
                return
            except EnvironmentFault:
                raise
            except Exception as error:
                if isinstance(error, ConfigurationError) and not isinstance(error, EnvironmentContractError):
                    raise  # trying again does not install a game
                self._fail(error)
                self._faults.back_off()

    def step(self, actions: Sequence[int], row: Row) -> Outcome | None:
        """Take a joint step; return ``None`` if it failed, and the episode with it.

        Whether its values are finite is checked by :class:`EnvBlock`.
        """
        assert self._adapter is not None
        self._steps += 1
        try:
            return self._adapter.step(actions, row)
        except Exception as error:
            self._fail(error)
            return None

    def reject(self) -> None:
        """Count the last step as failed: its values are not finite."""
        self._fail(_not_finite())

    def _is_old(self) -> bool:
        assert self._adapter is not None
        limit = getattr(self._adapter.env, "metadata", {}).get("rebuild_after_steps")
        longest = self.spec.episode_limit or 0
        return limit is not None and self._steps + longest >= limit

    def _recreate(self) -> ParallelAdapter:
        self.close()
        self._adapter = adapter = self._make()
        self._steps = 0
        if adapter.spec != self.spec:
            raise EnvironmentFault(f"{self._who}: recreated, it has other sizes than before")
        return adapter

    def _fail(self, error: Exception) -> None:
        self.close()
        invalid = isinstance(error, (EnvironmentContractError, InvalidEpisodeError))
        self._faults.record("invalid" if invalid else "raised", self._who, one_line(error))

    def close(self) -> None:
        """Close the environment if there is one; an error in closing is logged, not raised."""
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            try:
                adapter.close()
            except Exception as error:
                _log.debug("%s failed to close: %s", self._who, one_line(error))


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
        self._obs, self._state = buffers.obs[block], buffers.state[block]
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
        # Checked once for all: a sum is finite only if every term is, and a sum of much costs as much as one of little.
        if self._checked and not math.isfinite(total + float(self._obs.sum()) + float(self._state.sum())):
            failed += self._reject(wanted, failed)
        for e in failed:
            buffers.reward[e], buffers.terminated[e], buffers.truncated[e] = 0.0, False, False
        return failed

    def _reject(self, wanted: Sequence[bool], failed: Sequence[int]) -> list[int]:
        """Count those as failed that took a step with a value that is not finite; return their rows."""
        rejected = []
        for e, env, row in self._envs:
            stepped = wanted[e] and e not in failed
            if stepped and isinstance(env, FaultTolerantEnv) and not _is_finite(row, float(self._buffers.reward[e])):
                env.reject()
                rejected.append(e)
        return rejected


def _is_finite(row: Row, reward: float) -> bool:
    return math.isfinite(float(row.obs.sum()) + float(row.state.sum()) + reward)


def _not_finite() -> InvalidEpisodeError:
    return InvalidEpisodeError("an observation, the state or the reward is not finite")
