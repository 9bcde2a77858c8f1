"""Act with a trained team: observations in, legal actions out; memory and last actions are the team's own business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.stochastic_policy import StochasticPolicy
from qmix_lightning.rollout.rollout_policy import RolloutPolicy
from qmix_lightning.types import NO_OP, EnvSpec, Observation
from qmix_lightning.worker.agent_spaces import MASK_KEY

__all__ = ["Team"]


class Team:
    """A trained team that acts.

    Observations are dictionaries by the agents' names, as a PettingZoo ``ParallelEnv`` gives them: agents that are dead
    or absent are left out. Or, for ``num_envs`` environments at once, arrays ``[E, N, O]``.

    Args:
        policy: the acting network; copied.
        spec: of the environment that it was trained in.
        num_envs: environments that it acts in at once, ``E``.
        seed: decides what is explored, and sampled.
        device: where it acts.

    Attributes:
        spec: the sizes and names that it was trained with.

    Example:
        >>> import qmix_lightning as ql
        >>> team = ql.load("two_step")
        >>> team.reset()
        >>> actions = team.act({"agent_1": [1.0, 0.0, 0.0], "agent_2": [1.0, 0.0, 0.0]})
        >>> sorted(actions)
        ['agent_1', 'agent_2']
    """

    def __init__(
        self, policy: Policy, spec: EnvSpec, *, num_envs: int = 1, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.spec = spec
        self.num_envs = num_envs
        self._acting = RolloutPolicy(policy, num_envs, torch.device(device))
        self._seed = seed
        self._slots = {name: slot for slot, name in enumerate(spec.agent_names)}
        self._legal = np.arange(spec.n_actions) < np.array(spec.action_counts)[:, None]  # [N, A]
        self._legal_now: Tensor | None = None
        self.reset()

    def reset(self, mask: Any = None, *, seed: int | None = None) -> None:
        """Forget the episode: the memory and the last actions.

        Args:
            mask: ``[E]`` bool, the environments in which a new episode begins; ``None``: all.
            seed: begin the draws anew from this one; without it, and without ``mask``, from the team's own.

        Raises:
            ValueError: the mask is none of the ``E`` environments.
        """
        begun = np.ones(self.num_envs, bool) if mask is None else self._mask(mask, (self.num_envs,))
        if mask is None or seed is not None:
            self._random = np.random.default_rng(self._seed if seed is None else seed)
        self._acting.begin(torch.from_numpy(begun.copy()))

    def act(self, observations: Any, action_masks: Any = None, epsilon: float = 0.0, alive: Any = None) -> Any:
        """Return legal actions.

        Args:
            observations: by agent; a mask that an observation brings (``{"observation": ..., "action_mask": ...}``) is
                read, and its other parts are joined as the environment's ``Dict`` space has them. Or an array
                ``[E, N, O]``.
            action_masks: which actions are legal, by agent, or ``[E, N, A]``; where there is none, all are.
            epsilon: the chance of another legal action, drawn evenly; a stochastic policy is sampled if it is above 0.
            alive: with arrays: ``[E, N]`` bool, who is alive and present; ``None``: all.

        Returns:
            The action of each agent that was given, counted from its first one; or an array ``[E, N]``, with the no-op
            of those that are not alive.

        Raises:
            ValueError: an unknown agent, a wrong size, what is no number or no mask, no legal action, or no chance.
        """
        if not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon must be between 0 and 1, not {epsilon}")
        named = isinstance(observations, Mapping)
        if named:
            if self.num_envs != 1:
                raise ValueError(f"this team acts in {self.num_envs} environments: give arrays [E, N, O]")
            shown = self._from_dictionaries(observations, action_masks or {})
        else:
            shown = self._from_arrays(observations, action_masks, alive)
        chosen = self.step(shown, epsilon)
        if named:
            return {name: int(chosen[0, self._slots[str(name)]]) for name in observations}
        return chosen.numpy().copy()

    def step(self, observation: Observation, epsilon: float = 0.0) -> Tensor:
        """Return actions ``[E, N]`` for what environments show, as :class:`Observation` has it."""
        draws = None
        if epsilon > 0.0:
            numbers = self._random.random((self.num_envs, self.spec.n_agents, 2), np.float32)
            draws = torch.from_numpy(numbers).to(observation.obs.device)
        self._legal_now = observation.avail_actions.to("cpu", copy=True)  # environments reuse their buffers
        return self._acting.act(observation, epsilon, draws)

    @property
    def values(self) -> NDArray[np.float32]:
        """What the network gave at the last step, ``[E, N, A]``: values of actions, or logits; ``-inf``: illegal."""
        values, legal = self._last_values()
        return torch.where(legal, values, float("-inf")).numpy()

    @property
    def probabilities(self) -> NDArray[np.float32] | None:
        """What a stochastic policy would sample from at the last step, ``[E, N, A]``; ``None`` for others."""
        policy = self._acting.policy
        if not isinstance(policy, StochasticPolicy):
            return None
        logits, legal = self._last_values()
        return policy.log_policy(logits, legal, logits.new_zeros(())).exp().numpy()

    def _last_values(self) -> tuple[Tensor, Tensor]:
        if self._legal_now is None or self._acting.values is None:
            raise ValueError("there are no values before the first act")
        return self._acting.values.float().cpu(), self._legal_now

    # -- what it is shown ----------------------------------------------------------------------------------------

    def _slot(self, name: Any) -> int:
        if str(name) not in self._slots:
            raise ValueError(f"there is no agent '{name}'; there are {', '.join(self.spec.agent_names)}")
        return self._slots[str(name)]

    def _from_dictionaries(self, observations: Mapping[Any, Any], masks: Mapping[Any, Any]) -> Observation:
        spec = self.spec
        obs = np.zeros((spec.n_agents, spec.obs_dim), np.float32)
        alive = np.zeros(spec.n_agents, bool)
        avail = np.arange(spec.n_actions) == np.full((spec.n_agents, 1), NO_OP)
        for name, seen in observations.items():
            slot = self._slot(name)
            mask = masks.get(name)
            if isinstance(seen, Mapping):
                mask = seen.get(MASK_KEY) if mask is None else mask
                seen = {key: part for key, part in seen.items() if key != MASK_KEY}
                if seen.keys() == {"observation"} and isinstance(seen["observation"], Mapping):
                    seen = seen["observation"]
                seen = [seen[key] for key in (spec.obs_keys if seen.keys() == set(spec.obs_keys) else sorted(seen))]
            else:
                seen = [seen]
            try:
                flat = np.concatenate([np.zeros(0, np.float32), *(np.asarray(p, np.float32).ravel() for p in seen)])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"the observation of agent '{name}' is no vector ({error}): give what "
                    "gymnasium.spaces.utils.flatten makes of it"
                ) from error
            if flat.size != spec.obs_dims[slot]:
                raise ValueError(
                    f"the observation of agent '{name}' has {flat.size} numbers, not {spec.obs_dims[slot]}: give what "
                    "gymnasium.spaces.utils.flatten makes of it"
                )
            obs[slot, : flat.size], alive[slot], avail[slot] = flat, True, self._legal[slot]
            if mask is not None:
                avail[slot, : spec.action_counts[slot]] &= self._mask(mask, (spec.action_counts[slot],))
        return self._observation(obs[None], avail[None], alive[None])

    def _from_arrays(self, observations: Any, masks: Any, alive: Any) -> Observation:
        spec, e = self.spec, self.num_envs
        obs = np.array(observations, np.float32)
        if obs.shape != (e, spec.n_agents, spec.obs_dim):
            raise ValueError(f"observations must be {(e, spec.n_agents, spec.obs_dim)}, got {obs.shape}")
        present = np.ones((e, spec.n_agents), bool) if alive is None else self._mask(alive, (e, spec.n_agents))
        avail = np.broadcast_to(self._legal, (e, *self._legal.shape)).copy()
        if masks is not None:
            avail &= self._mask(masks, avail.shape)
        avail[~present] = np.arange(spec.n_actions) == NO_OP
        obs[~present] = 0.0
        return self._observation(obs, avail, present)

    @staticmethod
    def _mask(given: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        mask = np.asarray(given)
        if mask.shape != shape:
            raise ValueError(f"a mask must be {shape}, got {mask.shape}")
        # Texts, NaN and what is added to logits (0 and -inf) would all be taken for something else.
        if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
            raise ValueError("a mask holds 0 and 1, or false and true, and nothing else")
        return mask.astype(bool)

    def _observation(self, obs: Any, avail: NDArray[np.bool_], alive: NDArray[np.bool_]) -> Observation:
        if not avail.any(-1).all():
            raise ValueError("a mask leaves no legal action")
        state = torch.zeros(self.num_envs, 0)  # nobody acts by it
        return Observation(torch.from_numpy(obs), state, torch.from_numpy(avail), torch.from_numpy(alive))
