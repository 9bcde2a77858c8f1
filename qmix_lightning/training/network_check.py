"""Check before a run that its networks take and give the shapes that training relies on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from qmix_lightning.agents.base import Agent
from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms.base import Learner
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.mixers.base import MixerCall
from qmix_lightning.runtime.text import error_line
from qmix_lightning.types import EnvSpec
from qmix_lightning.worker.blame import raised_at

__all__ = ["check_networks"]

T = TypeVar("T")


@torch.no_grad()
def check_networks(learner: Learner, spec: EnvSpec, *, algorithm: str, agent: str, mixer: str) -> None:
    """Check a learner that was just made, its agents and its mixer, by one call of each with zeros.

    Torch says nothing of a shape that happens to fit: a mixer that returns ``[B, T, 1]`` would train on a loss in which
    every step counts once for each agent. Copies are called, and no random number is used up, so that a run begins as
    it would without.

    Args:
        learner: on the CPU.
        spec: of the environment.
        algorithm, agent, mixer: their names, for messages.

    Raises:
        ConfigurationError: a part is missing, a shape is another, or a call failed; the message names the class.
    """
    _check_learner(learner, f"algorithm '{algorithm}'")
    with torch.random.fork_rng(devices=[]):
        if type(learner.policy).forward is Policy.forward:  # one of its own may call another kind of agent
            _check_agent(copy.deepcopy(learner.policy), spec, f"agent '{agent}'")
        mix, network = getattr(learner, "mix", None), getattr(learner, "mixer", None)
        # A learner without a MixerCall calls its mixer in a way of its own.
        if isinstance(mix, MixerCall) and isinstance(network, nn.Module):
            state_dim = spec.n_agents * learner.policy.agent.feature_dim if spec.state_is_features else spec.state_dim
            _check_mixer(copy.deepcopy(network), mix.wants, spec, state_dim, f"mixer '{mixer}'")


def _check_learner(learner: Learner, what: str) -> None:
    kind = type(learner).__name__
    if not isinstance(getattr(learner, "policy", None), Policy):
        raise ConfigurationError(f"{what}: {kind} must keep the policy that it is given, as self.policy")
    if type(learner).loss is Learner.loss:
        raise ConfigurationError(f"{what}: {kind} must define loss(batch)")


def _check_agent(policy: Policy, spec: EnvSpec, what: str) -> None:
    agent, n = policy.agent, spec.n_agents
    kind = type(agent).__name__
    for method in ("initial_state", "body"):
        if getattr(type(agent), method) is getattr(Agent, method):
            raise ConfigurationError(f"{what}: {kind} must define {method}")
    if not hasattr(agent, "head"):
        raise ConfigurationError(f"{what}: {kind} must set self.head")
    rows = n + 1  # as many as there are agents would hide axes that change places
    state = _called(what, f"{kind}.initial_state({rows})", lambda: agent.initial_state(rows))
    if not _is_memory(state, rows, n):
        raise ConfigurationError(
            f"{what}: {kind}.initial_state({rows}) returned {_shapes(state)}; a tuple of tensors [{rows}, {n}, H] is "
            "needed (rows, agents, numbers)"
        )
    inputs = policy.inputs(torch.zeros(rows, n, spec.obs_dim), torch.zeros(rows, n, dtype=torch.int64))
    given = f"for inputs {_shapes(inputs)}"
    result = _called(what, f"{kind}.body {given}", lambda: agent.body(inputs, state))
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ConfigurationError(f"{what}: {kind}.body must return features and the next state, not {_shapes(result)}")
    features, following = result
    size = getattr(agent, "feature_dim", features.shape[-1] if isinstance(features, Tensor) else 0)
    _require(what, f"{kind}.body", features, (rows, n, size), given, "rows, agents, feature_dim")
    if _shapes(following) != _shapes(state):
        raise ConfigurationError(
            f"{what}: {kind}.body returned the state {_shapes(following)}; that of initial_state({rows}) is "
            f"{_shapes(state)}"
        )
    given = f"for features {_shapes(features)}"
    values = _called(what, f"{kind}.head {given}", lambda: agent.head(features))
    _require(what, f"{kind}.head", values, (rows, n, spec.n_actions), given, "rows, agents, actions")


def _check_mixer(mixer: nn.Module, wants: Sequence[str], spec: EnvSpec, state_dim: int, what: str) -> None:
    kind, n = type(mixer).__name__, spec.n_agents
    steps = n + 2
    given = {
        "greedy_qs": torch.zeros(1, steps, n),
        "actions": torch.zeros(1, steps, n, dtype=torch.int64),
        "obs": torch.zeros(1, steps, n, spec.obs_dim),
        "agent_mask": torch.ones(1, steps, n, dtype=torch.bool),
    }
    agent_qs, state = torch.zeros(1, steps, n), torch.zeros(1, steps, state_dim)
    inputs = f"for agent_qs {_shapes(agent_qs)} and state {_shapes(state)}"
    mixed = _called(
        what, f"{kind}.forward {inputs}", lambda: mixer(agent_qs, state, **{name: given[name] for name in wants})
    )
    if isinstance(mixed, Tensor) and mixed.shape == agent_qs.shape:
        return  # a value for each agent
    _require(what, f"{kind}.forward", mixed, (1, steps), inputs, "rows, steps")


def _called(what: str, call: str, function: Callable[[], T]) -> T:
    try:
        return function()
    except Exception as error:
        where = raised_at(error)
        raise ConfigurationError(
            f"{what}: {call} raised {error_line(error)}{f' ({where})' if where else ''} (HYDRA_FULL_ERROR=1 shows the "
            "traceback)"
        ) from error


def _require(what: str, call: str, found: object, shape: tuple[int, ...], given: str, axes: str) -> None:
    if not isinstance(found, Tensor) or found.shape != shape:
        raise ConfigurationError(f"{what}: {call} returned {_shapes(found)} {given}; {list(shape)} ({axes}) is needed")


def _is_memory(state: object, rows: int, n_agents: int) -> bool:
    return isinstance(state, tuple) and all(
        isinstance(part, Tensor) and part.dim() == 3 and part.shape[:2] == (rows, n_agents) for part in state
    )


def _shapes(found: object) -> str:
    """Return what a call returned in shapes: ``[1, 4, 2]``, or ``([3, 2, 16],)`` of a tuple; else its type."""
    if isinstance(found, Tensor):
        return str(list(found.shape))
    if isinstance(found, tuple):
        return f"({', '.join(map(_shapes, found))}{',' * (len(found) == 1)})"
    return type(found).__name__
