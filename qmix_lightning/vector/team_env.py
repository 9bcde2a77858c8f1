"""Show a game between sides as the learning team's: the others act by a policy of their own, in the collector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmix_lightning.environment import VectorEnv
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.types import EnvSpec, Observation, Transition

__all__ = ["Opponents", "TeamEnv", "let_self_follow", "spec_of_slots", "team_env"]


class Opponents:
    """Base class of how the agents that do not learn act, in ``E`` environments with ``M`` of them each.

    Attributes:
        exact_again: shown the same, they do the same, bit for bit, whatever other environments play beside. Else what
            they did in an episode in flight is saved, and so is what they remember.
    """

    exact_again: bool = True

    def begin(self, mask: NDArray[np.bool_], draws: NDArray[np.float32]) -> None:
        """Begin new episodes where ``mask [E]``; ``draws [E]`` in [0, 1) belong to these episodes."""

    def act(self, shown: Observation, draws: NDArray[np.float32], active: NDArray[np.bool_]) -> Tensor:
        """Return legal actions ``[E, M]`` for what the opponents are shown.

        Args:
            shown: ``obs [E, M, O]`` and masks; the state is not theirs.
            draws: ``[E, M, 2]`` in [0, 1), of this step.
            active: ``[E]``, where a step is taken; elsewhere nothing is remembered.
        """
        raise NotImplementedError

    def publish(self, policy: Any, env_steps: int) -> None:
        """Take notice that the team acts by ``policy`` from now on, after so many joint steps of training."""

    def follow(self, policy: Any) -> None:
        """Take notice that the team is evaluated with ``policy``."""

    def state_dict(self) -> dict[str, Any]:
        """Return what episodes in flight need to go on: versions and memory, in tensors and plain containers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""


class TeamEnv:
    """A :class:`~qmix_lightning.environment.VectorEnv` of the team of ``env``'s specification.

    What opponents draw is keyed by the seed of the episode and the step, so an episode is still its seed and the team's
    actions, for one version of each opponent.

    Args:
        env: shows and steps every agent; closed with this object.
        make_opponents: makes what acts for the others, from their specification and the number of environments.

    Attributes:
        opponents: how the others act.
        env_steps: joint steps taken here, over all environments.
    """

    def __init__(self, env: VectorEnv, make_opponents: Callable[[EnvSpec, int], Opponents]) -> None:
        self.whole = env
        self.num_envs, self.device = env.num_envs, env.device
        chosen = set(env.spec.team)
        self._slots = torch.tensor(sorted(chosen))
        self._others = torch.tensor([i for i in range(env.spec.n_agents) if i not in chosen])
        self.spec = spec_of_slots(env.spec, self._slots.tolist())
        self._sizes = spec_of_slots(env.spec, self._others.tolist())
        self.opponents = make_opponents(self._sizes, env.num_envs)
        self._keys = np.zeros(self.num_envs, np.uint64)  # of the episodes
        self._t = np.zeros(self.num_envs, np.int64)
        self.env_steps = 0
        self._played: list[list[NDArray[np.int64]]] = [[] for _ in range(self.num_envs)]
        self._script: list[Tensor] | None = None
        self._shown: Observation | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in ("faults", "versions", "seeded", "first_env"):
            raise AttributeError(name)
        return getattr(self.whole, name)

    def reset(self, mask: Tensor, seeds: Tensor) -> Observation:
        """Start the episodes of ``seeds [E]`` where ``mask [E]``."""
        shown = self.whole.reset(mask, seeds)
        begun = mask.numpy()
        if begun.any():
            keys = prng.derive_key(seeds.numpy(), Purpose.OPPONENTS)
            self._keys[begun], self._t[begun] = keys[begun], 0
            for e in np.flatnonzero(begun):
                self._played[e] = []
            self.opponents.begin(begun, prng.uniform(keys, 1)[:, 0])
        return self._team_view(shown)

    def step(self, actions: Tensor, active: Tensor) -> Transition:
        """Take one joint step with the team's ``actions [E, N]`` where ``active [E]``; the opponents choose theirs."""
        taken = active.numpy()
        theirs = self._opponents_actions(taken)
        joint = torch.zeros(self.num_envs, self.whole.spec.n_agents, dtype=torch.int64)
        joint[:, self._slots], joint[:, self._others] = actions, theirs
        for e in np.flatnonzero(taken):
            self._played[e].append(theirs[e].numpy())
        self._t += taken
        self.env_steps += int(taken.sum())
        outcome = self.whole.step(joint, active)
        agent_reward = None if outcome.agent_reward is None else outcome.agent_reward[:, self._slots]
        return replace(outcome, next=self._team_view(outcome.next), agent_reward=agent_reward)

    def close(self) -> None:
        """Close the environments; may be called twice."""
        self.whole.close()

    # Resuming ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what the opponents did in the episodes in flight, and what they go on with."""
        m = len(self._others)
        played = [np.array(steps, np.int64).reshape(-1, m) for steps in self._played]
        return {
            "env_steps": self.env_steps,
            "actions": [torch.from_numpy(steps) for steps in played],
            "opponents": self.opponents.state_dict(),
        }

    def begin_replay(self, state: dict[str, Any]) -> None:
        """Have the opponents do what ``state`` says they did, until :meth:`end_replay`."""
        self._script = None if self.opponents.exact_again else state["actions"]

    def end_replay(self, state: dict[str, Any]) -> None:
        """Let the opponents go on from where ``state`` says they were."""
        self._script = None
        self.env_steps = int(state["env_steps"])
        self.opponents.load_state_dict(state["opponents"])

    # Views ------------------------------------------------------------------------------------------------------

    def _opponents_actions(self, active: NDArray[np.bool_]) -> Tensor:
        m = len(self._others)
        if self._script is not None:
            actions = torch.zeros(self.num_envs, m, dtype=torch.int64)
            for e in np.flatnonzero(active):
                actions[e] = self._script[e][int(self._t[e])]
            return actions
        assert self._shown is not None
        keys = prng.fold(self._keys, self._t.astype(np.uint64))
        draws = prng.uniform(keys, 2 * m).reshape(self.num_envs, m, 2)
        return self.opponents.act(self._shown, draws, active)

    def _team_view(self, shown: Observation) -> Observation:
        self._shown = _rows_of(shown, self._others, self._sizes)
        view = _rows_of(shown, self._slots, self.spec)
        if self.spec.state_is_joined_obs:
            state = torch.cat([view.obs[:, i, :size] for i, size in enumerate(self.spec.obs_dims)], dim=1)
            return replace(view, state=state)  # [E, S]
        return view


def team_env(env: VectorEnv, make_opponents: Callable[[EnvSpec, int], Opponents]) -> VectorEnv:
    """Return ``env`` as its team sees it; ``env`` itself where everybody is of the team."""
    if not env.spec.team:
        return env
    try:
        return TeamEnv(env, make_opponents)
    except BaseException:
        env.close()
        raise


def let_self_follow(env: VectorEnv, policy: Any) -> None:
    """Let opponents that are the team itself (``self``) act by ``policy``: needed before episodes without training."""
    if isinstance(env, TeamEnv):
        env.opponents.follow(policy)


def spec_of_slots(spec: EnvSpec, slots: list[int]) -> EnvSpec:
    """Return the specification of some of the agents alone."""
    obs_dims, counts = tuple(spec.obs_dims[i] for i in slots), tuple(spec.action_counts[i] for i in slots)
    groups = [spec.group_of_agent[i] for i in slots]
    known = list(dict.fromkeys(groups))
    return replace(
        spec,
        n_agents=len(slots),
        n_actions=max(counts),
        obs_dim=max(obs_dims),
        state_dim=sum(obs_dims) if spec.state_is_joined_obs else spec.state_dim,
        obs_dims=obs_dims,
        action_counts=counts,
        agent_names=tuple(spec.agent_names[i] for i in slots),
        group_of_agent=tuple(known.index(group) for group in groups),
        team=(),
    )


def _rows_of(shown: Observation, slots: Tensor, spec: EnvSpec) -> Observation:
    """Return what the agents in ``slots`` are shown, without the padding that only others need."""
    return Observation(
        shown.obs[:, slots, : spec.obs_dim],
        shown.state,
        shown.avail_actions[:, slots, : spec.n_actions],
        shown.agent_mask[:, slots],
    )
