"""Act for the agents that do not learn: at random, by a function of one's own, or by a policy's versions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.action_selection import epsilon_greedy
from qmix_lightning.agents.base import AgentState, forget_dead
from qmix_lightning.agents.policy import Policy
from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.registry import load_target
from qmix_lightning.rollout.rollout_policy import frozen_copy
from qmix_lightning.runtime.text import error_line
from qmix_lightning.types import NO_OP, EnvSpec, Observation
from qmix_lightning.vector.env_section import OpponentSettings
from qmix_lightning.vector.team_env import Opponents

__all__ = [
    "FunctionOpponents",
    "NoOpOpponents",
    "OpponentMaker",
    "PolicyOpponents",
    "RandomOpponents",
    "SelfPlay",
    "opponent_maker",
]


OpponentMaker = Callable[[EnvSpec, int], Opponents]
"""A function from the specification of the opponents alone, and a number of environments, to what acts for them."""

_ADDRESS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", re.ASCII)


def opponent_maker(settings: OpponentSettings, open_policy: Callable[[str], Policy] | None = None) -> OpponentMaker:
    """Return what makes the opponents of ``env.opponents``; can be sent to another process.

    Args:
        settings: the checked setting.
        open_policy: opens a reference to a policy.

    Raises:
        QMixLightningError: there is no such function, or no such policy.
    """
    name = settings.policy
    if name in SHIPPED:
        return partial(SHIPPED[name], settings=settings)
    if _ADDRESS.fullmatch(name):
        return partial(FunctionOpponents, load_target(name, "env.opponents"), name=name)
    if open_policy is None:
        raise ConfigurationError(f"env.opponents must be one of {', '.join(SHIPPED)} or package.module:function")
    return partial(PolicyOpponents.fixed, open_policy(name), name=name)


class RandomOpponents(Opponents):
    """Opponents that take any legal action, each as likely as the other."""

    def __init__(self, spec: EnvSpec, num_envs: int, settings: OpponentSettings) -> None: ...

    def act(self, shown: Observation, draws: NDArray[np.float32], active: NDArray[np.bool_]) -> Tensor:
        legal = shown.avail_actions
        return epsilon_greedy(legal.float(), legal, 1.0, torch.from_numpy(draws))


class NoOpOpponents(Opponents):
    """Opponents that take action 0, or the first legal one where that is illegal."""

    def __init__(self, spec: EnvSpec, num_envs: int, settings: OpponentSettings) -> None: ...

    def act(self, shown: Observation, draws: NDArray[np.float32], active: NDArray[np.bool_]) -> Tensor:
        return shown.avail_actions.to(torch.uint8).argmax(-1)  # [E, M]


class FunctionOpponents(Opponents):
    """Opponents that act by ``act(agent, observation, action_mask, rng)``, one agent at a time.

    Args:
        target: the function; or a class that is called without arguments at the begin of every episode, once for each
            environment, to have what it remembers in an object of its own.
        spec: of the opponents alone.
        num_envs: ``E``.
        name: what messages call it.
    """

    def __init__(self, target: Callable[..., Any], spec: EnvSpec, num_envs: int, *, name: str) -> None:
        self._make = target if inspect.isclass(target) else None
        self._act: list[Any] = [target] * num_envs
        self._spec, self._name = spec, name

    def begin(self, mask: NDArray[np.bool_], draws: NDArray[np.float32]) -> None:
        if self._make is not None:
            for e in np.flatnonzero(mask):
                self._act[e] = self._make()

    def act(self, shown: Observation, draws: NDArray[np.float32], active: NDArray[np.bool_]) -> Tensor:
        actions = np.full(draws.shape[:2], NO_OP)
        obs, legal, alive = shown.obs.numpy(), shown.avail_actions.numpy(), shown.agent_mask.numpy()
        for e, i in np.argwhere(active[:, None] & alive):
            agent, mask = self._spec.agent_names[i], legal[e, i, : self._spec.action_counts[i]]
            rng = np.random.default_rng(draws[e, i].view(np.uint32))
            try:
                action = int(self._act[e](agent, obs[e, i, : self._spec.obs_dims[i]].copy(), mask.copy(), rng))
            except Exception as error:
                raise RunError(f"env.opponents={self._name} failed for agent '{agent}': {error_line(error)}") from error
            if not 0 <= action < len(mask) or not mask[action]:
                raise RunError(f"env.opponents={self._name} chose the illegal action {action} for agent '{agent}'")
            actions[e, i] = action
        return torch.from_numpy(actions)


class PolicyOpponents(Opponents):
    """Opponents that act by a trained policy, as if they were its team; greedily, or sampled if it is stochastic.

    Opponent ``j`` acts as agent ``j`` of the policy's team. Where there are more opponents than the team had agents,
    they are as many teams as are needed.

    Args:
        spec: of the opponents alone.
        num_envs: ``E``.
        name: what messages call it.
    """

    exact_again = False  # sums depend on which rows are computed together

    def __init__(self, spec: EnvSpec, num_envs: int, name: str) -> None:
        self._spec, self._num_envs, self._name = spec, num_envs, name
        self._versions: dict[int, Policy] = {}
        self._version = np.zeros(num_envs, np.int64)  # which one plays each episode
        self._state: AgentState = ()
        self._last = torch.zeros(0)

    @classmethod
    def fixed(cls, policy: Policy, spec: EnvSpec, num_envs: int, *, name: str) -> PolicyOpponents:
        """Create opponents that act by one policy for ever."""
        opponents = cls(spec, num_envs, name)
        opponents._adopt(policy)
        return opponents

    def _adopt(self, policy: Policy) -> None:
        """Act by ``policy`` alone from now on."""
        self._require_fit(policy)
        self._versions = {0: frozen_copy(policy)}
        self._version[:] = 0
        self._forget_all(policy)

    def _forget_all(self, policy: Policy) -> None:
        teams = self._num_envs * self._teams(policy)
        self._state = tuple(part.clone() for part in policy.initial_state(teams))
        self._last = torch.full((teams, policy.inputs.n_agents), -1)

    def _teams(self, policy: Policy) -> int:
        return -(-self._spec.n_agents // policy.inputs.n_agents)

    def _require_fit(self, policy: Policy) -> None:
        inputs = policy.inputs
        if self._spec.obs_dim > inputs.obs_dim or self._spec.n_actions > inputs.n_actions:
            raise ConfigurationError(
                f"env.opponents={self._name}: the opponents see {self._spec.obs_dim} numbers and have "
                f"{self._spec.n_actions} actions, the policy takes {inputs.obs_dim} and knows {inputs.n_actions}"
            )

    def begin(self, mask: NDArray[np.bool_], draws: NDArray[np.float32]) -> None:
        newest = self._candidates()
        self._version[mask] = np.array(newest)[(draws[mask] * len(newest)).astype(np.int64)]
        for number in self._versions.keys() - {*newest, *self._version.tolist()}:
            del self._versions[number]
        rows = torch.from_numpy(np.repeat(mask, len(self._last) // self._num_envs))
        first = self._versions[newest[0]].initial_state(len(rows))
        self._state = tuple(
            torch.where(rows[:, None, None], new, old) for new, old in zip(first, self._state, strict=True)
        )
        self._last = torch.where(rows[:, None], -1, self._last)

    def _candidates(self) -> list[int]:
        """Return the numbers of the versions that new episodes are played against."""
        return sorted(self._versions)

    @torch.inference_mode()
    def act(self, shown: Observation, draws: NDArray[np.float32], active: NDArray[np.bool_]) -> Tensor:
        policy = next(iter(self._versions.values()))
        teams, n = self._teams(policy), policy.inputs.n_agents
        obs = _dealt(shown.obs, teams, n, policy.inputs.obs_dim)  # [E*teams, N, O]
        legal = _dealt(shown.avail_actions, teams, n, policy.inputs.n_actions)
        legal[..., NO_OP] |= ~legal.any(-1)
        alive = _dealt(shown.agent_mask[..., None], teams, n, 1)[..., 0]
        numbers = _dealt(torch.from_numpy(draws), teams, n, 2)
        actions = torch.zeros_like(self._last)
        for number in np.unique(self._version[active]).tolist():
            rows = torch.from_numpy(np.flatnonzero(np.repeat(active & (self._version == number), teams)))
            policy = self._versions[number]
            q, state = policy(obs[rows], self._last[rows], tuple(part[rows] for part in self._state))
            chosen = policy.select(q, legal[rows], 0.0, numbers[rows])
            for part, new in zip(self._state, forget_dead(state, alive[rows]), strict=True):
                part[rows] = new
            self._last[rows] = actions[rows] = chosen
        return actions.reshape(self._num_envs, -1)[:, : self._spec.n_agents].clone()

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": torch.from_numpy(self._version.copy()),
            "memory": [part.clone() for part in self._state],
            "last_action": self._last.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._version = state["version"].numpy().copy()
        self._state = tuple(part.clone() for part in state["memory"])
        self._last = state["last_action"].clone()


class SelfPlay(PolicyOpponents):
    """Opponents that act by the team's own last versions; each episode is played against one of them, drawn evenly.

    Args:
        spec, num_envs: as above.
        settings: how many versions are kept, and how far apart they are.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, settings: OpponentSettings) -> None:
        super().__init__(spec, num_envs, "self")
        self._keep, self._interval = settings.versions, settings.interval
        self._next, self._due = 0, 0

    def publish(self, policy: Policy, env_steps: int) -> None:
        if env_steps < self._due:
            return
        if not self._versions:
            self._require_fit(policy)
            self._forget_all(policy)
        self._versions[self._next] = frozen_copy(policy)
        self._next, self._due = self._next + 1, env_steps + self._interval

    def follow(self, policy: Policy) -> None:
        self._adopt(policy)

    def _candidates(self) -> list[int]:
        return sorted(self._versions)[-self._keep :]

    def state_dict(self) -> dict[str, Any]:
        weights = {str(number): dict(policy.state_dict()) for number, policy in self._versions.items()}
        return super().state_dict() | {"weights": weights, "next": self._next, "due": self._due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        like = next(iter(self._versions.values()))
        versions: dict[int, Policy] = {}
        for number, weights in state["weights"].items():
            versions[int(number)] = deepcopy(like)
            versions[int(number)].load_state_dict(weights)
        self._versions = versions
        self._next, self._due = int(state["next"]), int(state["due"])
        super().load_state_dict(state)


SHIPPED = {"random": RandomOpponents, "no_op": NoOpOpponents, "self": SelfPlay}
"""Opponents by name: what a file may decide."""


def _dealt(values: Tensor, teams: int, n: int, width: int) -> Tensor:
    """Return ``values [E, M, W]`` as teams ``[E * teams, N, width]``, padded with zeros."""
    e, m, w = values.shape
    padded = values.new_zeros(e, teams * n, width)
    padded[:, :m, :w] = values
    return padded.reshape(e * teams, n, width)
