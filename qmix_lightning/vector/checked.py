"""Look at everything that a natively batched environment returns, as the adapter of single environments does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import EnvironmentFault, QMixLightningError
from qmix_lightning.runtime.text import error_line
from qmix_lightning.types import Observation, Transition
from qmix_lightning.worker.blame import is_fault, location_of, raised_at
from qmix_lightning.worker.fault_tolerance import SHOW_TRACEBACK, FaultLimit, Faults

__all__ = ["CheckedVectorEnv"]

_OPTIONAL = ("prefetch_resets", "histories", "exact_q_values")
"""What some environments can do besides; a protocol is recognised by it."""


class CheckedVectorEnv:
    """A natively batched environment, each of whose answers is looked at.

    A wrong type, shape or dtype, an agent that begins without a legal action, and an end that is terminated and
    truncated at once end the run, and so does an exception: all rows are in one simulator. A value that is not finite
    fails the episode of its row alone, which is counted.

    Args:
        env: the environment.
        name: what messages call it.
        limit: how many faults are tolerated.
    """

    def __init__(self, env: VectorEnv, name: str, limit: FaultLimit) -> None:
        self.unchecked = env
        self.spec = env.spec
        self.num_envs = env.num_envs
        self.device = env.device
        self._name = name
        self._faults = Faults(name, limit)
        self.faults = self._faults.counts
        self._in_a_row = np.zeros(env.num_envs, np.int64)
        e, n, spec = env.num_envs, env.spec.n_agents, env.spec
        flags, numbers = torch.bool, torch.float32
        self._observation_layout = {
            "obs": ((e, n, spec.obs_dim), numbers),
            "state": ((e, spec.state_dim), numbers),
            "avail_actions": ((e, n, spec.n_actions), flags),
            "agent_mask": ((e, n), flags),
        }
        self._transition_layout = {"reward": ((e,), numbers), "terminated": ((e,), flags), "truncated": ((e,), flags)}
        self._agent_layout = ((e, n), numbers)
        self._metric_layout = ((e,), numbers)
        for ability in _OPTIONAL:
            if hasattr(env, ability):
                setattr(self, ability, getattr(env, ability))

    def __getattr__(self, name: str) -> Any:
        if name == "unchecked":  # not set yet: being copied or unpickled
            raise AttributeError(name)
        return getattr(self.unchecked, name)

    def reset(self, mask: Tensor, seeds: Tensor) -> Observation:
        """Start the episodes of ``seeds [E]`` where ``mask [E]``; a first observation that is not finite is a fault."""
        while True:
            shown = self._call("reset", mask.clone(), seeds.clone())
            self._look(shown, Observation, self._observation_layout, "reset")
            # Not after a step, and not of others: when a game has ended, nothing may be legal until its own reset.
            stuck = (shown.agent_mask & ~shown.avail_actions.any(-1)).any(-1)  # [E]
            if (stuck & mask.to(self.device)).any():
                raise self._contract("an agent that is alive has no legal action", "reset")
            wrong = self._not_finite(shown, None, mask)
            if wrong is None:
                self._faults.started = True
                return shown
            self._record(*wrong)
            self._faults.back_off()

    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """Take one joint step with ``actions [E, N]`` where ``active [E]``."""
        # Copies: what is recorded must be what was chosen, whatever the simulator does with its arguments.
        outcome = self._call("step", actions.clone(), active.clone())
        self._look(outcome, Transition, self._transition_layout, "step")
        self._look(outcome.next, Observation, self._observation_layout, "step")
        if outcome.agent_reward is not None:
            self._fits("agent_reward", outcome.agent_reward, self._agent_layout, "step")
        for name in self.spec.episode_metrics:
            self._fits(f"metrics['{name}']", outcome.metrics.get(name), self._metric_layout, "step")
        acting = active if outcome.failed is None else active & ~outcome.failed.cpu()
        ended = outcome.terminated | outcome.truncated
        if (outcome.terminated & outcome.truncated & acting.to(self.device)).any():
            raise self._contract("an episode is terminated and truncated at once", "step")
        self._in_a_row[(ended.cpu() & acting).numpy()] = 0
        wrong = self._not_finite(outcome.next, outcome, acting)
        if wrong is None:
            return outcome
        self._record(*wrong)
        failed = torch.from_numpy(wrong[0]).to(self.device)
        known = torch.zeros_like(failed) if outcome.failed is None else outcome.failed
        return replace(
            outcome,
            reward=torch.where(failed, outcome.reward.new_zeros(()), outcome.reward),
            terminated=outcome.terminated & ~failed,
            truncated=outcome.truncated & ~failed,
            failed=known | failed,
        )

    def close(self) -> None:
        """Close the environment; may be called twice."""
        self.unchecked.close()

    # Looking ------------------------------------------------------------------------------------------------

    def _call(self, method: str, *arguments: Tensor) -> Any:
        try:
            return getattr(self.unchecked, method)(*arguments)
        except QMixLightningError:
            raise
        except BaseException as error:
            if not is_fault(error):
                raise
            where = raised_at(error)
            raise EnvironmentFault(
                f"environment '{self._name}' failed: {error_line(error)}{f' ({where})' if where else ''}; all of its "
                f"{self.num_envs} are in one simulator, so it is not tried again ({SHOW_TRACEBACK})"
            ) from error

    def _contract(self, what: str, method: str) -> EnvironmentFault:
        place = location_of(self.unchecked, method)
        return EnvironmentFault(
            f"environment '{self._name}': {method}: {what}{f' ({method} at {place})' if place else ''}. This does not "
            f"pass by itself, so it is not tried again: qmix-envs check tells what else is amiss ({SHOW_TRACEBACK})"
        )

    def _look(self, value: Any, kind: type, layout: dict[str, Any], method: str) -> None:
        if not isinstance(value, kind):
            raise self._contract(f"{type(value).__name__} was returned, {kind.__name__} is needed", method)
        for name, expected in layout.items():
            self._fits(name, getattr(value, name), expected, method)

    def _fits(self, name: str, value: Any, expected: tuple[tuple[int, ...], torch.dtype], method: str) -> None:
        shape, dtype = expected
        if not isinstance(value, Tensor):
            raise self._contract(f"{name} is {type(value).__name__}, a tensor is needed", method)
        if value.shape != shape or value.dtype != dtype:
            raise self._contract(
                f"{name} is {value.dtype} {list(value.shape)}, {dtype} {list(shape)} is needed", method
            )

    def _not_finite(
        self, shown: Observation, outcome: Transition | None, rows: Tensor
    ) -> tuple[np.ndarray, str] | None:
        """Return which of the ``rows [E]`` hold a value that is not finite, and what it is."""
        parts = {"an observation": shown.obs.flatten(1), "the state": shown.state}  # [E, ...] each
        if outcome is not None:
            parts["the reward"] = outcome.reward[:, None]
            if outcome.agent_reward is not None:
                parts["the reward of an agent"] = outcome.agent_reward
            ended = outcome.terminated | outcome.truncated
            for name in self.spec.episode_metrics:  # read at the end only
                values = torch.where(ended, outcome.metrics[name], outcome.reward.new_zeros(()))
                parts[f"the metric '{name}'"] = values[:, None]
        # A sum is not finite where a term is not, or where it overflows: then a closer look is needed.
        total = sum(values.sum(1) for values in parts.values())
        assert isinstance(total, Tensor)
        if bool((total.isfinite() | ~rows.to(total.device)).all()):
            return None
        wrong = {word: (~values.isfinite()).any(1).cpu() & rows for word, values in parts.items()}
        what = next((word for word, found in wrong.items() if found.any()), None)
        if what is None:
            return None
        return torch.stack(list(wrong.values())).any(0).numpy(), f"{what} is not finite"

    def _record(self, failed: np.ndarray, why: str) -> None:
        for e in np.flatnonzero(failed).tolist():
            self._in_a_row[e] += 1
            self._faults.record("invalid", f"environment {e}", why, int(self._in_a_row[e]))
