"""Create environments of VMAS, cooperative control tasks batched in torch, by scenario; discrete actions."""

from __future__ import annotations

import importlib.util
import random
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, MissingDependencyError
from qmix_lightning.rendering.canvas import agent_colour
from qmix_lightning.runtime.text import did_you_mean
from qmix_lightning.types import EnvSpec, Observation, Transition
from qmix_lightning.worker.parallel_adapter import unit_groups

__all__ = ["VmasVectorEnv", "make", "scenarios"]

NOT_SEPARABLE = frozenset(
    {
        "asym_joint",
        "circle_trajectory",
        "discovery",
        "football",
        "het_mass",
        "joint_passage",
        "line_trajectory",
        "road_traffic",
        "simple_crypto",
    }
)
"""Scenarios of VMAS 1.5.2 whose environments cannot share a simulator: what they draw while stepping, or when one of
them starts, is for all at once."""

_RESERVED_KEYS = (
    "num_envs", "device", "continuous_actions", "multidiscrete_actions", "max_steps", "seed", "dict_spaces",
    "terminated_truncated", "wrapper", "wrapper_kwargs", "grad_enabled", "clamp_actions", "scenario",
)  # fmt: skip


_PUSHES = ["none", "down", "up", "left", "left+down", "left+up", "right", "right+down", "right+up"]
"""What VMAS makes of the flat index of two axes with three forces each; the first of them is none."""


def scenarios() -> dict[str, Path]:
    """Return scenario -> its file, e.g. ``balance`` or ``simple_spread``; import none of them."""
    found = importlib.util.find_spec("vmas")
    if found is None or found.origin is None:
        raise MissingDependencyError("environment 'vmas' needs vmas: pip install 'qmix-lightning[vmas]'")
    files = sorted((Path(found.origin).parent / "scenarios").rglob("*.py"))
    return {file.stem: file for file in files if not file.stem.startswith("_")}


def make(
    *,
    num_envs: int,
    scenario: str = "balance",
    max_steps: int = 100,
    reward_aggregation: Literal["sum", "mean"] = "mean",
    timeout_is_terminal: bool = False,
    isolate: bool | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> VmasVectorEnv:
    """Create ``num_envs`` environments of a VMAS scenario, with discrete actions, on the CPU.

    Args:
        num_envs: environments that step together.
        scenario: e.g. ``balance``, ``navigation``, ``transport``, ``simple_spread``.
        max_steps: the time limit; VMAS has none of its own.
        reward_aggregation: the team reward: ``mean`` or ``sum`` over all agents. Many scenarios pay all the same.
        timeout_is_terminal: count the time limit as a true end.
        isolate: a simulator for each environment: slower, and the only way to make an episode depend on nothing but its
            seed in scenarios that draw random numbers while stepping; ``None``: where the scenario needs it.
        kwargs: the scenario's own settings, e.g. ``n_agents``.
    """
    known = scenarios()
    if scenario not in known:
        raise ConfigurationError(f"unknown VMAS scenario '{scenario}'{did_you_mean(scenario, known)}")
    if max_steps < 1:
        raise ConfigurationError(f"VMAS: max_steps must be at least 1, not {max_steps}")
    given = dict(kwargs or {})
    for key in given:
        if key in _RESERVED_KEYS:
            raise ConfigurationError(f"VMAS: '{key}' cannot be set in env.kwargs")
    import vmas

    def simulator(size: int) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Scenario kwargs", UserWarning)
            try:
                return vmas.make_env(
                    scenario,
                    num_envs=size,
                    continuous_actions=False,
                    max_steps=max_steps,
                    dict_spaces=True,
                    terminated_truncated=True,
                    **given,
                )
            except UserWarning as error:
                raise ConfigurationError(f"VMAS scenario '{scenario}': {error}".partition(" This will")[0]) from None

    return VmasVectorEnv(
        simulator,
        num_envs=num_envs,
        name=f"VMAS scenario '{scenario}'",
        reward_aggregation=reward_aggregation,
        timeout_is_terminal=timeout_is_terminal,
        isolate=scenario in NOT_SEPARABLE if isolate is None else isolate,
    )


class _Simulator:
    """One VMAS environment (a batch of environments) with the random state that belongs to it.

    VMAS keeps one random state for all simulators of the process; here each has its own, put in its place for a call.
    """

    def __init__(self, make: Callable[[int], Any], size: int) -> None:
        from vmas.simulator.environment import Environment

        self._shared = Environment.vmas_random_state
        self.size = size
        self._random = _random_state(0)  # a scenario may draw its world, which must be the same in every run
        with self._own_random():
            self.vmas = make(size)

    @contextmanager
    def _own_random(self) -> Generator[None]:
        before = list(self._shared)
        self._shared[:] = self._random
        try:
            yield
        finally:
            self._random = list(self._shared)
            self._shared[:] = before

    def start(self, row: int, seed: int) -> None:
        self._random = _random_state(seed)
        with self._own_random():
            self.vmas.reset_at(row, return_observations=False)

    def look(self) -> dict[str, Any]:
        with self._own_random():
            return self.vmas.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )[0]

    def step(self, actions: dict[str, Tensor]) -> tuple[Any, ...]:
        with self._own_random():
            return self.vmas.step(actions)

    def has_drawn_since(self, before: list[Any]) -> bool:
        torch_then, numpy_then, python_then = before
        torch_now, numpy_now, python_now = self.random
        return not (
            torch.equal(torch_then, torch_now)
            and numpy_then[2] == numpy_now[2]
            and np.array_equal(numpy_then[1], numpy_now[1])
            and python_then == python_now
        )

    @property
    def random(self) -> list[Any]:
        return self._random

    @contextmanager
    def keeping(self, rows: Tensor) -> Generator[Callable[[], None]]:
        """Restore what belongs to the environments ``rows`` afterwards, and whenever the yielded function is called."""
        saved = {}
        if rows.any():
            saved = {path: tensor[rows] for path, tensor in self._tensors()}  # indexed by a mask: copies

        def restore() -> None:
            if saved:
                for path, tensor in self._tensors():
                    if path in saved and tensor[rows].shape == saved[path].shape:
                        tensor[rows] = saved[path].to(tensor.dtype)  # some change theirs

        yield restore
        restore()

    def _tensors(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        """Yield every tensor with a row for each environment that world and scenario hold, by its path."""
        seen: set[int] = set()
        vmas = self.vmas
        todo: list[tuple[tuple[Any, ...], Any]] = [((), [vmas.scenario, vmas.world, vmas.steps])]
        while todo:
            path, thing = todo.pop()
            if isinstance(thing, Tensor):
                # Not one that is one row, shown many times.
                if thing.ndim and thing.shape[0] == self.size and thing.stride(0) != 0:
                    yield path, thing
                continue
            if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, MethodType, np.ndarray)):
                continue
            seen.add(id(thing))
            if isinstance(thing, Mapping):
                todo.extend(((*path, key), value) for key, value in thing.items())
            elif isinstance(thing, list | tuple) or type(thing).__name__ == "deque":
                todo.extend(((*path, index), value) for index, value in enumerate(thing))
            elif hasattr(thing, "__dict__"):
                todo.extend(((*path, key), value) for key, value in vars(thing).items())


class VmasVectorEnv:
    """A natively batched :class:`~qmix_lightning.environment.VectorEnv` over VMAS.

    VMAS steps all environments of a simulator; those that are not active get their state back afterwards. It draws from
    one random state for all of them; an environment is started with the state of its own seed. What neither covers is
    noticed and refused: a scenario that draws while stepping, or in which starting one environment changes another.
    With ``isolate`` every environment has a simulator, and nothing is shared.

    Args:
        simulator: makes a VMAS environment of so many environments, with dictionaries and separate end flags.
        num_envs: environments that step together, ``E``.
        name: what messages call it.
        reward_aggregation: ``sum`` or ``mean`` over agents.
        timeout_is_terminal: count the time limit as a true end.
        isolate: a simulator for each environment.
    """

    def __init__(
        self,
        simulator: Callable[[int], Any],
        *,
        num_envs: int,
        name: str,
        reward_aggregation: str,
        timeout_is_terminal: bool,
        isolate: bool,
    ) -> None:
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self._name = name
        self._mean = reward_aggregation == "mean"
        self._timeout_is_terminal = timeout_is_terminal
        self._isolated = isolate
        sizes = [1] * num_envs if isolate else [num_envs]
        self._simulators = [_Simulator(simulator, size) for size in sizes]
        first = self._simulators[0]
        agents = [agent.name for agent in first.vmas.agents]
        counts = [int(first.vmas.action_space[agent].n) for agent in agents]
        shown = first.look()
        obs_dims = [sum(part.numel() // first.size for part in _parts(shown[agent])) for agent in agents]
        self.spec = spec = EnvSpec(
            n_agents=len(agents),
            n_actions=max(counts),
            obs_dim=max(obs_dims),
            state_dim=sum(obs_dims),
            obs_dims=tuple(obs_dims),
            action_counts=tuple(counts),
            agent_names=tuple(agents),
            group_of_agent=unit_groups(agents, obs_dims, counts),
            episode_limit=int(first.vmas.max_steps),
            natively_batched=True,
            state_is_joined_obs=True,
        )
        legal = torch.arange(spec.n_actions) < torch.tensor(counts)[:, None]  # [N, A]
        self._avail = legal.expand(num_envs, -1, -1).contiguous()  # [E, N, A]
        self._everyone = torch.ones(num_envs, spec.n_agents, dtype=torch.bool)
        self._obs = torch.zeros(num_envs, spec.n_agents, spec.obs_dim)
        self._state = torch.zeros(num_envs, spec.state_dim)
        self._started = torch.zeros(num_envs, dtype=torch.bool)

    # Episodes outlive inference mode, and so must the simulator's tensors.
    @torch.inference_mode(False)
    @torch.no_grad()
    def reset(self, mask: Tensor, seeds: Tensor) -> Observation:
        """Start the episodes of ``seeds [E]`` where ``mask [E]``."""
        obs, state = self._obs.clone(), self._state.clone()
        for simulator, rows in self._with_rows():
            begin = mask[rows]
            if not begin.any():
                continue
            with simulator.keeping(~begin) as restore:
                for row in torch.nonzero(begin).flatten().tolist():
                    simulator.start(row, int(seeds[rows][row]))
                restore()
                self._write(simulator.look(), obs[rows], state[rows])
        others = self._started & ~mask
        if not torch.equal(obs[others], self._obs[others]):
            raise EnvironmentContractError(
                f"{self._name} shares something between its environments, or draws random numbers when it looks: "
                "starting one changed another; use env.isolate=true"
            )
        self._obs, self._state = obs, state
        self._started |= mask
        return self._observation()

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """Take one joint step with ``actions [E, N]`` where ``active [E]``."""
        chosen = torch.where(active[:, None], actions, 0)  # [E, N]
        obs, state = self._obs.clone(), self._state.clone()
        agent_reward = torch.zeros(self.num_envs, self.spec.n_agents)
        terminated, truncated = torch.zeros(2, self.num_envs, dtype=torch.bool)
        for simulator, rows in self._with_rows():
            steps = active[rows]
            if not steps.any():
                continue
            random_before = simulator.random
            with simulator.keeping(~steps):
                played = {agent: chosen[rows, i, None] for i, agent in enumerate(self.spec.agent_names)}
                shown, rewards, ended, timed_out, _ = simulator.step(played)
            if not self._isolated and simulator.has_drawn_since(random_before):
                raise EnvironmentContractError(
                    f"{self._name} draws random numbers while stepping, for all its environments at once, so that an "
                    "episode would depend on its neighbours: use env.isolate=true"
                )
            self._write(shown, obs[rows], state[rows])
            for i, agent in enumerate(self.spec.agent_names):
                agent_reward[rows, i] = rewards[agent].flatten()
            terminated[rows] = ended.flatten()
            truncated[rows] = timed_out
        self._obs = torch.where(active[:, None, None], obs, self._obs)
        self._state = torch.where(active[:, None], state, self._state)
        agent_reward = torch.where(active[:, None], agent_reward, 0.0)
        terminated &= active
        truncated &= active & ~terminated
        if self._timeout_is_terminal:
            terminated, truncated = terminated | truncated, torch.zeros_like(truncated)
        return Transition(
            next=self._observation(),
            reward=agent_reward.mean(dim=1) if self._mean else agent_reward.sum(dim=1),
            terminated=terminated,
            truncated=truncated,
            agent_reward=agent_reward,
        )

    @property
    def action_names(self) -> dict[str, list[str]]:
        """Words for the actions of agents that push themselves along both axes and say nothing, by agent."""
        from vmas.simulator.dynamics.holonomic import Holonomic

        return {
            agent.name: _PUSHES
            for agent in self._simulators[0].vmas.agents
            if isinstance(agent.dynamics, Holonomic) and list(agent.discrete_action_nvec) == [3, 3] and agent.silent
        }

    def render_frame(self) -> np.ndarray:
        """Return VMAS's own picture of the first environment, drawn by EGL where there is no display.

        Agents have the colours that they have on pages.
        """
        for i, agent in enumerate(self._simulators[0].vmas.agents):
            agent.color = tuple(part / 255 for part in agent_colour(i))
        return np.asarray(self._simulators[0].vmas.render(mode="rgb_array", env_index=0))

    def close(self) -> None:
        """Forget the simulators; may be called twice."""
        self._simulators = []

    def _with_rows(self) -> Generator[tuple[_Simulator, slice]]:
        start = 0
        for simulator in self._simulators:
            yield simulator, slice(start, start + simulator.size)
            start += simulator.size

    def _write(self, shown: Mapping[str, Any], obs: Tensor, state: Tensor) -> None:
        """Write VMAS's observations into ``obs [e, N, O]`` and ``state [e, S]``."""
        flat = [torch.cat([part.flatten(1) for part in _parts(shown[agent])], dim=1) for agent in self.spec.agent_names]
        for i, values in enumerate(flat):
            obs[:, i, : values.shape[1]] = values
        torch.cat(flat, dim=1, out=state)

    def _observation(self) -> Observation:
        return Observation(obs=self._obs, state=self._state, avail_actions=self._avail, agent_mask=self._everyone)


def _parts(shown: Any) -> list[Tensor]:
    """Return the tensors of one agent's observation, ``[e, ...]`` each."""
    if isinstance(shown, Mapping):
        return [part for value in shown.values() for part in _parts(value)]
    return [shown if shown.ndim > 1 else shown[:, None]]


def _random_state(seed: int) -> list[Any]:
    """Return the states that torch, numpy and Python have after ``seed``, as VMAS keeps them; touches no global one."""
    return [
        torch.Generator().manual_seed(seed).get_state(),
        np.random.RandomState(seed).get_state(),
        random.Random(seed).getstate(),
    ]
