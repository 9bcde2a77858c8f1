"""Adapt Gymnasium environments in the Tuple style: one space, reward and observation for each of several agents."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from qmix_lightning.environment import check_arguments
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, MissingDependencyError
from qmix_lightning.registry import load_target
from qmix_lightning.worker.parallel_adapter import MASK_KEY

__all__ = ["TupleEnv", "make"]

# Packages that are known: what registers their ids, and the class that knows how their episodes end.
_HOMES = {"Foraging": "lbforaging", "rware": "rware"}
_FAMILIES = {"lbforaging": "qmix_lightning.envs.lbf:Foraging", "rware": "qmix_lightning.envs.rware:RoboticWarehouse"}


class TupleEnv:
    """A Gymnasium environment whose spaces are ``Tuple`` as a PettingZoo ``ParallelEnv``; agents stay to the end.

    * Rewards are a list, one for each agent; a single number is a team reward and is shared out evenly.
    * Actions that are ``MultiDiscrete`` are numbered, the last component fastest.
    * An environment that reports its time limit as *terminated* needs ``time_limit``: an end at that step is then a
      truncation. A subclass that can see why the episode ended overrides :meth:`timed_out`.

    Args:
        env: the environment.
        time_limit: the environment's own limit, where it is reported as terminated.
    """

    episode_metrics: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()

    def __init__(self, env: gymnasium.Env[Any, Any], *, time_limit: int | None = None) -> None:
        self.env = env
        self.game: Any = env.unwrapped
        observations, actions = env.observation_space, env.action_space
        if not isinstance(observations, spaces.Tuple) or not isinstance(actions, spaces.Tuple):
            raise EnvironmentContractError(
                f"{type(self.game).__name__} is not in the Tuple style: its spaces must be a Tuple with one part for "
                f"each agent, not {type(observations).__name__} and {type(actions).__name__}"
            )
        if len(observations.spaces) != len(actions.spaces):
            raise EnvironmentContractError(
                f"{type(self.game).__name__} has {len(observations.spaces)} observations and "
                f"{len(actions.spaces)} actions; each agent needs one of both"
            )
        self.possible_agents = [f"agent_{i}" for i in range(len(actions.spaces))]
        self.agents: list[str] = []
        self._slot = {agent: i for i, agent in enumerate(self.possible_agents)}
        self._observation_spaces = observations.spaces
        numbered = [_numbered(space) for space in actions.spaces]
        self._action_spaces = [space for space, _ in numbered]
        self._decode = [decode for _, decode in numbered]
        self.time_limit = time_limit
        self.steps = 0
        self.metadata: dict[str, Any] = {"name": type(self.game).__name__, "episode_metrics": self.episode_metrics}
        limits = [limit for limit in (time_limit, self.own_limit(), _wrapped_limit(env)) if limit]
        self.episode_limit = min(limits) if limits else None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._observation_spaces[self._slot[agent]]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._action_spaces[self._slot[agent]]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        """Start an episode; return observations and infos by agent."""
        observations, _ = self.env.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        self.steps = 0
        return self._by_agent(observations), self._infos()

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Take a joint step; return observations, rewards, terminations, truncations and infos by agent."""
        agents = self.possible_agents
        joint = tuple([decode(actions[agent]) for agent, decode in zip(agents, self._decode)])
        rewards: Any  # a number for the team, or one for each agent
        observations, rewards, done, timeout, _ = self.env.step(joint)
        self.steps += 1
        # One flag for all, or one for each agent; numpy's own functions cost more than a step of a small simulator.
        terminated = done if isinstance(done, bool) else bool(np.all(done))
        truncated = timeout if isinstance(timeout, bool) else bool(np.any(timeout))
        if terminated and self.timed_out():
            terminated, truncated = False, True
        infos = self._infos()
        infos[agents[0]].update(self.metrics())  # in every step: env.episode_limit may end the episode in any
        if terminated or truncated:
            self.agents = []
        if not isinstance(rewards, (list, tuple)) and np.ndim(rewards) == 0:
            rewards = [float(rewards) / len(agents)] * len(agents)
        return (
            self._by_agent(observations),
            self._by_agent(rewards),
            dict.fromkeys(agents, terminated),
            dict.fromkeys(agents, truncated),
            infos,
        )

    def render(self) -> Any:
        return self.env.render()

    @property
    def render_mode(self) -> str | None:
        return self.env.render_mode

    def close(self) -> None:
        self.env.close()

    # What a family knows of its own ---------------------------------------------------------------------------

    def own_limit(self) -> int | None:
        """Return the limit on joint steps that the environment shows."""
        return None

    def timed_out(self) -> bool:
        """Return whether an episode that was just reported as terminated ended for lack of time only."""
        return self.time_limit is not None and self.steps >= self.time_limit

    def masks(self) -> Sequence[Any] | None:
        """Return the legal actions of each agent, if known."""
        return None

    def metrics(self) -> dict[str, float]:
        """Return the values of ``episode_metrics``, should the episode end here."""
        return {}

    def _by_agent(self, values: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values))

    def _infos(self) -> dict[str, dict[str, Any]]:
        masks = self.masks()
        if masks is None:
            return {agent: {} for agent in self.possible_agents}
        return {agent: {MASK_KEY: mask} for agent, mask in zip(self.possible_agents, masks)}


def make(
    id: str, kwargs: Mapping[str, Any] | None = None, module: str | None = None, time_limit: int | None = None
) -> TupleEnv:
    """Create the environment that Gymnasium knows as ``id``.

    Args:
        id: e.g. ``Foraging-8x8-2p-3f-v3``.
        kwargs: keyword arguments of the environment; ``max_episode_steps`` sets Gymnasium's own time limit.
        module: the package to import first, which registers ``id``. Known for LBF and RWARE.
        time_limit: the environment's own limit, if it reports it as terminated. Known for LBF and RWARE.
    """
    if time_limit is not None and time_limit < 1:
        raise ConfigurationError(f"env.time_limit must be at least 1, not {time_limit}")
    home = module or next((package for prefix, package in _HOMES.items() if id.startswith(prefix)), None)
    if home is not None:
        try:
            importlib.import_module(home)
        except ModuleNotFoundError as error:
            wrong = f"; correct env.module ('{module}')" if module else ""
            raise MissingDependencyError(
                f"environment '{id}' needs the package '{error.name}': pip install {error.name}{wrong}"
            ) from error
    try:
        spec = gymnasium.spec(id)
    except gymnasium.error.Error as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"Gymnasium does not know '{id}' ({reason}); env.module names the package that registers it"
        ) from error
    arguments = dict(kwargs or {})
    if spec.entry_point is not None:
        creator = _creator(spec.entry_point)
        own = {name: value for name, value in arguments.items() if name != "max_episode_steps"}
        check_arguments(creator, {**spec.kwargs, **own}, f"'{id}'")
    # The checker warns of every reward that is a list, which is how this style gives them.
    env = gymnasium.make(id, disable_env_checker=True, **arguments)
    family: Any = _FAMILIES.get(type(env.unwrapped).__module__.partition(".")[0])
    wrapper: Callable[..., TupleEnv] = load_target(family, f"'{id}'") if family else TupleEnv
    return wrapper(env, time_limit=time_limit)


def _creator(entry_point: Any) -> Callable[..., Any]:
    return load_target(entry_point, "the environment") if isinstance(entry_point, str) else entry_point


def _wrapped_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """Return the limit of Gymnasium's own ``TimeLimit``, which reports itself as truncated."""
    return env.spec.max_episode_steps if env.spec is not None else None


def _numbered(space: spaces.Space[Any]) -> tuple[spaces.Space[Any], Callable[[Any], Any]]:
    """Return the action space with ``MultiDiscrete`` made one ``Discrete``, and the function that decodes actions."""
    if not isinstance(space, spaces.MultiDiscrete):
        return space, int
    shape, start = tuple(int(n) for n in space.nvec.ravel()), space.start.ravel()
    return spaces.Discrete(int(np.prod(shape))), lambda a: (np.array(np.unravel_index(int(a), shape)) + start).tolist()
