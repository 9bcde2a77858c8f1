"""Make components from sections of a configuration: environments, the acting network, the learner."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qmix_lightning.agents import AGENTS
from qmix_lightning.agents.base import Agent
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms import ALGORITHMS
from qmix_lightning.algorithms.base import Learner
from qmix_lightning.config.schema import check_settings, settings_of
from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.mixers import MIXERS
from qmix_lightning.registry import Registry
from qmix_lightning.rollout.opponents import OpponentMaker, opponent_maker
from qmix_lightning.runtime.text import error_line, printable
from qmix_lightning.types import EnvSpec
from qmix_lightning.vector.env_section import parse_env_section
from qmix_lightning.vector.factory import SYNC, Backend, make_vector_env
from qmix_lightning.vector.sides import one_team_of_sides, opposing_sides
from qmix_lightning.vector.team_env import team_env

__all__ = [
    "NetworkSections",
    "build_learner",
    "build_policy",
    "check_sizes",
    "env_maker",
    "looks_at",
    "make_component",
    "policy_class",
]


class NetworkSections(Protocol):
    """Protocol of what a learner's networks are made of: sections of a configuration, whoever holds them."""

    @property
    def env(self) -> Mapping[str, Any]: ...
    @property
    def agent(self) -> Mapping[str, Any]: ...
    @property
    def mixer(self) -> Mapping[str, Any]: ...
    @property
    def algorithm(self) -> Mapping[str, Any]: ...


def make_component(registry: Registry, section: Mapping[str, Any], **provided: Any) -> Any:
    """Make the component that ``section`` names, from its settings and what of ``provided`` it accepts."""
    kind = registry.kind
    factory = registry.load(section["name"])
    wanted = inspect.signature(factory).parameters
    given = {key: value for key, value in section.items() if key != "name"}
    # A module without a constructor of its own has torch's, which says that it takes anything.
    schema = _no_settings if getattr(factory, "__init__", None) is torch.nn.Module.__init__ else factory
    try:
        settings = check_settings(kind, given, schema, provided)
        return factory(**settings, **{key: value for key, value in provided.items() if key in wanted})
    except ValueError as error:
        raise ConfigurationError(f"{kind} '{section['name']}': {error}") from error


def _no_settings() -> None:
    """Stand for a component without settings: it has the signature that :func:`check_settings` reads."""


def env_maker(
    section: Mapping[str, Any],
    backend: Backend = SYNC,
    *,
    evaluation: bool = False,
    open_policy: Callable[[str], Policy] | None = None,
) -> Callable[[int], VectorEnv]:
    """Return a function that creates so many environments of an ``env`` section, in this process or in workers.

    A factory with an ``evaluation`` parameter receives ``True`` for those that evaluate. With ``env.team`` they are the
    team's, and hold its opponents; ``open_policy`` opens the policy that ``env.opponents`` may refer to.
    """
    env = parse_env_section(section)
    extra = {"evaluation": True} if evaluation and "evaluation" in inspect.signature(env.factory).parameters else {}
    opponents = None if env.opponents is None else opponent_maker(env.opponents, open_policy)
    given = {"name": env.name, "backend": backend, **env.adapter}
    return partial(_make_envs, env.factory, env.settings | extra, opponents, not evaluation, given)


def _make_envs(
    factory: Callable[..., Any],
    settings: Mapping[str, Any],
    opponents: OpponentMaker | None,
    training: bool,
    given: Mapping[str, Any],
    num_envs: int,
) -> VectorEnv:
    env = make_vector_env(factory, settings, num_envs=num_envs, **given)
    if opponents is not None:
        return team_env(env, opponents)
    if training and (sides := opposing_sides(env)):
        print(one_team_of_sides(given["name"], env.spec, sides), file=sys.stderr, flush=True)
    return env


def build_policy(section: Mapping[str, Any], spec: EnvSpec, kind: type[Policy] = Policy) -> Policy:
    """Make the acting network for an environment from the ``agent`` section; ``kind`` is the algorithm's."""
    inputs_keys = settings_of(InputBuilder, ("n_agents", "n_actions", "obs_dim"))
    own = {key: value for key, value in section.items() if key not in inputs_keys}
    given = {key: value for key, value in section.items() if key in inputs_keys}
    sizes = {"n_agents": spec.n_agents, "n_actions": spec.n_actions, "obs_dim": spec.obs_dim}
    try:
        inputs = InputBuilder(**sizes, **check_settings("agent", given, InputBuilder, sizes))
    except ValueError as error:
        raise ConfigurationError(f"agent: {error}") from error
    agent = make_component(
        AGENTS,
        own,
        input_dim=inputs.output_dim,
        n_agents=spec.n_agents,
        n_actions=spec.n_actions,
        group_of_agent=spec.group_of_agent,
        obs_entities=spec.obs_entities,
        pictures=spec.pictures,
        inputs=inputs,
    )
    if not isinstance(agent, Agent):
        raise ConfigurationError(
            f"agent '{own['name']}' must extend {Agent.__module__}.Agent, which {type(agent).__name__} does not"
        )
    return kind(inputs=inputs, agent=agent)


def check_sizes(build: Callable[[], nn.Module], tensors: Mapping[str, Any], prefix: str, path: Path | str) -> None:
    """Compare the networks that a file's configuration asks for with the file's tensors, before memory is taken.

    Args:
        build: makes the networks; called where tensors have shapes and no memory.
        tensors: the file's.
        prefix: what the names of the file's begin with.
        path: of the file, for messages.

    Raises:
        CheckpointError: they differ.
    """
    try:
        with torch.device("meta"), _EyeBySize():
            wanted = _shapes(build().state_dict())
    except (RuntimeError, NotImplementedError) as error:
        if "meta" in str(error):
            return  # it looks at numbers while it is made, which are none there
        raise CheckpointError(f"{path} asks for networks that cannot be made: {error_line(error)}") from error
    found = _shapes({name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)})
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{path} does not fit its own configuration: '{printable(name)}' should be "
                f"{_size(wanted.get(name))}, and is {_size(found.get(name))}"
            )


class _EyeBySize(TorchFunctionMode):
    """Makes identity matrices by their size alone: for one without memory torch imports its compiler, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_empty_eye if func is torch.eye else func)(*args, **(kwargs or {}))


def _empty_eye(n: int, m: int | None = None, **settings: Any) -> torch.Tensor:
    return torch.empty(n, n if m is None else m, **settings)


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def _size(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "one number"


def policy_class(algorithm: str) -> type[Policy]:
    """Return the class of acting network that the algorithm of this name trains."""
    learner = ALGORITHMS.load(algorithm)
    if not (inspect.isclass(learner) and issubclass(learner, Learner)):
        raise ConfigurationError(f"algorithm '{algorithm}' must be a class that extends {Learner.__module__}.Learner")
    return learner.policy_class


def looks_at(agent: str) -> set[str]:
    """Return which parts that an environment may declare of its observations the agent of this name needs to know."""
    return {"obs_entities", "pictures"} & inspect.signature(AGENTS.load(agent)).parameters.keys()


def build_learner(config: NetworkSections, spec: EnvSpec) -> Learner:
    """Make the learner for an environment: networks and learning rule."""
    kind = policy_class(config.algorithm["name"])
    agent = config.agent["name"]
    looks = looks_at(agent)
    if "obs_entities" in looks and not spec.obs_entities:
        raise ConfigurationError(
            f"agent '{agent}' needs observations that are sets of entities, and environment '{config.env['name']}' "
            "declares none (lbf, smax, smac and mpe's simple_spread do): use agent=recurrent or agent=feedforward"
        )
    if config.algorithm.get("critic_obs") is False and any(getattr(spec, name) for name in looks):
        raise ConfigurationError(
            f"algorithm '{config.algorithm['name']}' with agent={agent}: the critic is such a network too and looks at "
            "observations: algorithm.critic_obs must be true"
        )
    policy = build_policy(config.agent, spec, kind)
    if spec.state_is_features:
        spec = replace(spec, state_dim=spec.n_agents * policy.agent.feature_dim)
    name, mixer_name = config.algorithm["name"], config.mixer["name"]
    if mixer_name != "none" and "mixer" not in inspect.signature(ALGORITHMS.load(name)).parameters:
        raise ConfigurationError(f"algorithm '{name}' mixes no values: mixer must be none, not {mixer_name}")
    mixer = make_component(
        MIXERS,
        config.mixer,
        n_agents=spec.n_agents,
        state_dim=spec.state_dim,
        obs_dim=spec.obs_dim,
        n_actions=spec.n_actions,
    )
    if not isinstance(mixer, nn.Module):
        raise ConfigurationError(
            f"mixer '{mixer_name}' must extend torch.nn.Module, which {type(mixer).__name__} does not"
        )
    learner = make_component(
        ALGORITHMS,
        config.algorithm,
        policy=policy,
        make_policy=partial(build_policy, config.agent, spec=spec, kind=kind),
        mixer=mixer,
        spec=spec,
    )
    learner.state_is_features = spec.state_is_features
    return learner
