"""Begin a run from the networks of another one: what fits is taken over, and what does not is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qmix_lightning.algorithms.base import Learner
from qmix_lightning.algorithms.value_learner import ValueLearner
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.policies.stored import POLICY_PREFIX, StoredPolicy
from qmix_lightning.types import EnvSpec

__all__ = ["InitParts", "initialize_learner", "set_square_averages"]

InitParts = Literal["all", "agents"]


@torch.no_grad()
def initialize_learner(learner: Learner, spec: EnvSpec, stored: StoredPolicy, parts: InitParts = "all") -> list[str]:
    """Take over weights and statistics wherever names and shapes agree.

    Where the networks are shared and the number of agents is another one, the columns of the first layer that read the
    agent's identity are taken over for those agents that both have; the others stay as they were initialised.

    Args:
        learner: changed in place.
        spec: of the environment that it is going to be trained in.
        stored: where the weights come from.
        parts: ``all``, or ``agents`` alone.

    Returns:
        Lines that say what was taken over.

    Raises:
        ConfigurationError: most of the agents does not fit; the run's own are changed already.
    """
    stored.build()  # refuses NaN, and what does not fit its own settings
    given = {POLICY_PREFIX + name: value for name, value in stored.weights.items()}
    if parts == "all" and stored.learner_weights is not None:
        given |= stored.learner_weights
    own = {n: t for n, t in learner.state_dict().items() if isinstance(t, Tensor)}
    more_agents = spec.n_agents - stored.spec.n_agents
    taken, partly = set(), set()
    for name, tensor in own.items():
        if name not in given:
            continue
        if given[name].shape == tensor.shape:
            tensor.copy_(given[name])
            taken.add(name)
        elif "policy." in name and _take_identities(tensor, given[name], more_agents, stored.spec.n_agents):
            partly.add(name)
    agents = [name for name in own if name.startswith(POLICY_PREFIX)]
    fitting = [name for name in agents if name in taken or name in partly]
    if 2 * len(fitting) <= len(agents):
        raise ConfigurationError(
            f"init_from: {len(fitting)} of {len(agents)} tensors of {stored.source}'s agents fit those of this run: "
            f"are agent={stored.agent['name']} and its sizes the same?"
        )
    copied = False
    if isinstance(learner, ValueLearner) and not any(name.startswith("target_") for name in given):
        copied = True
        for online, target in learner.target_pairs():
            target.load_state_dict(online.state_dict())
    lines = []
    for what, names in _by_part(own, parts):
        fits = [name for name in names if name in taken or name in partly]
        fresh = [name for name in names if name not in taken and name not in partly]
        told = f"; initialised anew: {', '.join(fresh[:4])}{', ...' if len(fresh) > 4 else ''}" if fresh else ""
        lines.append(f"init_from {stored.source}: {len(fits)} of {len(names)} tensors of {what}{told}")
    if partly:
        lines.append(f"  of {', '.join(sorted(partly))}: all but the identities of agents that were not there")
    if copied:
        lines.append("  target networks are copies")
    return lines


def _by_part(own: Mapping[str, Tensor], parts: InitParts) -> Iterable[tuple[str, list[str]]]:
    agents = [name for name in own if name.startswith(POLICY_PREFIX)]
    rest = [name for name in own if not name.startswith((POLICY_PREFIX, "target_"))]
    yield "the agents", agents
    if parts == "all" and rest:
        yield "the rest of the learner", rest


def _take_identities(tensor: Tensor, given: Tensor, more_agents: int, before: int) -> bool:
    """Take over a first layer, whose last inputs are the agents' identities; return whether it is one."""
    wider = tensor.shape[:-1] == given.shape[:-1] and tensor.shape[-1] - given.shape[-1] == more_agents
    if not wider or tensor.dim() < 2 or more_agents == 0:
        return False
    common, shared = given.shape[-1] - before, min(before, before + more_agents)
    tensor[..., : common + shared] = given[..., : common + shared]
    return True


def set_square_averages(optimizer: Optimizer, network: nn.Module, averages: Mapping[str, Tensor]) -> None:
    """Give RMSprop the running averages of another run; parameters that ``averages`` does not name begin anew."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        if id(parameter) in trained and name in averages and averages[name].shape == parameter.shape:
            average = averages[name].to(parameter, copy=True)
            optimizer.state[parameter] = {"step": torch.zeros(()), "square_avg": average}
