"""Act in many environments: a copy of the policy, the agents' memory, and the choice of actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from qmix_lightning.agents.base import AgentState, forget_dead
from qmix_lightning.agents.policy import Policy
from qmix_lightning.rollout.inference import ActFunction, fold_for_inference
from qmix_lightning.rollout.numpy_inference import to_numpy_inference
from qmix_lightning.runtime.transfer import copy_values, sent
from qmix_lightning.types import NO_OP, Observation

__all__ = ["RolloutPolicy", "frozen_copy", "values_of"]

_Network = TypeVar("_Network", bound=nn.Module)


def frozen_copy(network: _Network, device: torch.device | str = "cpu") -> _Network:
    """Return a copy on ``device``, in float32, that only computes: without gradients, in evaluation mode."""
    return deepcopy(network).to(device).float().requires_grad_(False).eval()


def values_of(network: nn.Module) -> list[Tensor]:
    """Return a network's parameters and then its buffers: all that a policy is published by."""
    return [*network.parameters(), *network.buffers()]


class RolloutPolicy:
    """A policy acting in ``E`` environments: its memory, the last actions, and the choice of the next.

    It acts by a copy of the policy of its own; :meth:`publish` refreshes the copy, so training may go on meanwhile.

    Args:
        policy: what acts; copied.
        num_envs: ``E``.
        device: where it acts; what it is shown may be elsewhere, and its actions go there.

    Attributes:
        values: what the network gave at the last step, ``[E, N, A]``; ``None`` before the first.
    """

    def __init__(self, policy: Policy, num_envs: int, device: torch.device) -> None:
        self.policy = frozen_copy(policy, device)
        self.device = device
        self._num_envs = num_envs
        self._first_state: AgentState
        self._forward: ActFunction
        self._fold()
        self.values: Tensor | None = None
        self.state: AgentState = self.policy.initial_state(num_envs)
        self.last_action = torch.full((num_envs, self.policy.inputs.n_agents), -1, device=device)

    @torch.no_grad()
    def _fold(self) -> None:
        """Fold the policy for inference, now that its parameters stand still until they are published again."""
        self._first_state = self.policy.initial_state(self._num_envs)
        rows = self._num_envs * self.policy.inputs.n_agents
        self._forward = to_numpy_inference(fold_for_inference(self.policy), rows)

    def publish(self, policy: Policy) -> None:
        """Take over the parameters of ``policy``, and its statistics."""
        self.set_parameters(values_of(policy))

    def set_parameters(self, values: Sequence[Tensor]) -> None:
        """Take over what :func:`values_of` gives of another copy of :attr:`policy`."""
        copy_values(values_of(self.policy), values)
        self._fold()

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a ``state_dict`` of :attr:`policy`."""
        self.policy.load_state_dict(weights)
        self._fold()

    @torch.inference_mode()
    def begin(self, mask: Tensor) -> None:
        """Forget everything where a new episode begins, ``mask [E]``."""
        mask = mask.to(self.device)
        begun = mask[:, None, None]
        self.state = tuple(torch.where(begun, new, old) for new, old in zip(self._first_state, self.state, strict=True))
        self.last_action = torch.where(mask[:, None], -1, self.last_action)

    @torch.inference_mode()
    def act(
        self, observation: Observation, epsilon: float, draws: Tensor | None, waiting: Tensor | None = None
    ) -> Tensor:
        """Return legal actions ``[E, N]``; ``draws [E, N, 2]`` is needed only to explore.

        Where an environment is ``waiting [E]`` what it shows means nothing, and the no-op is taken.
        """
        there = observation.obs.device
        if there != self.device:
            observation = Observation(
                sent(observation.obs, self.device),
                observation.state,
                sent(observation.avail_actions, self.device),
                sent(observation.agent_mask, self.device),
            )
            draws = None if draws is None else sent(draws, self.device)
            waiting = None if waiting is None else sent(waiting, self.device)
        q, self.state = self._forward(observation.obs, self.last_action, self.state)
        alive = observation.agent_mask
        # Elsewhere than on a CPU this check costs a synchronisation, which is more than it saves.
        if self.state and (alive.device.type != "cpu" or not alive.numpy().all()):
            self.state = forget_dead(self.state, alive)
        self.values = q
        self.last_action = self.policy.select(q, observation.avail_actions, epsilon, draws)
        if waiting is not None:
            self.last_action = torch.where(waiting[:, None], NO_OP, self.last_action)
        return self.last_action.to(there)
