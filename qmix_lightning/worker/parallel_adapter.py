"""Turn one PettingZoo ``ParallelEnv`` into rows of numbers: flattened, padded, masked, with one team reward.

The adapter owns no buffers. It writes into the :class:`~qmix_lightning.worker.buffers.Row` it is handed, so that the
same code serves environments in this process and workers that share memory with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, InvalidEpisodeError
from qmix_lightning.runtime.text import shortened
from qmix_lightning.types import NO_OP, EnvSpec, Picture
from qmix_lightning.worker.agent_spaces import (
    MASK_KEY,
    action_range,
    agent_reader,
    observed_space,
    require_bytes,
    state_reader,
    unit_groups,
)
from qmix_lightning.worker.buffers import Row
from qmix_lightning.worker.declared import (
    close_if_it_can,
    find_pictures,
    is_bytes,
    keys_out_of_order,
    metadata_of,
    own_limit,
    read_entities,
    read_pictures,
    require_parallel_env,
    vector_shape,
)
from qmix_lightning.worker.returned import BOOL, LARGEST, missing_outcome, not_five, read_flag, read_mask, read_number
from qmix_lightning.worker.teams import team_slots

__all__ = ["REWARD_AGGREGATIONS", "Outcome", "ParallelAdapter"]

REWARD_AGGREGATIONS = ("sum", "mean")

LARGEST_STATE = 10_000
"""Numbers of a state that a mixer's layers can read; one of its own that is larger is a picture of the whole."""


class Outcome(NamedTuple):
    """Result of a joint step; ``metrics`` in the order of ``EnvSpec.episode_metrics``, empty before the end."""

    reward: float
    terminated: bool
    truncated: bool
    metrics: tuple[float, ...] = ()


class ParallelAdapter:
    """Adapter of one ``ParallelEnv`` to rows of numbers in one shape.

    * Observations are flattened as ``gymnasium.spaces.utils.flatten`` does; smaller ones and smaller action
      counts are padded. An agent's slot is its place in ``possible_agents``.
    * The action mask is ``observation["action_mask"]`` (where the space declares it) or
      ``infos[agent]["action_mask"]``; without one, every action of the agent is legal.
    * The global state is ``state()`` where the environment has it, otherwise the agents' observations joined.
    * An agent that is not in ``env.agents``, or was terminated or truncated, is masked until it is back.
    * What is returned is looked at as it is read, and copied: an array that is changed later has no influence.
    * The episode ends when no agent is left to act; one of those that acted last must be terminated or truncated. It
      is truncated if an agent that acted last was truncated and not terminated, or if ``episode_limit`` ends it;
      otherwise terminated. Agents that ended by truncation stay in the last successor's mask, so that its value can be
      bootstrapped.
    * With ``metadata["shared_reward"]`` every agent's reward is the team's reward already, and is taken once.
    * At the end, the values named in ``env.metadata["episode_metrics"]`` are read from any agent's info. (An
      episode that ``episode_limit`` or the end of the team cut short may lack them: the environment does not know that
      it ended. They count as 0.)
    * ``metadata["obs_entities"]``, a list of mappings with the fields of ``EntityBlock``, says which parts of an
      observation are sets of entities; ``metadata["obs_pictures"]``, with those of ``Picture``, which parts are
      pictures, where the spaces do not say it.
    * With a ``team``, every agent is shown and acts, but reward, end and metrics are those of the team: the episode
      ends when none of its agents is left, though others may be.

    Args:
        env: the environment.
        name: what messages call it.
        reward_aggregation: the team reward is the ``sum`` of the rewards of the agents that acted, or that sum
            divided by the number of all possible agents (``mean``: an agent that is gone counts as 0).
        timeout_is_terminal: report truncation as termination, as SMAC's published results do.
        episode_limit: truncate episodes after so many joint steps.
        team: names or patterns of the agents that learn; ``None``: all.
    """

    def __init__(
        self,
        env: Any,
        *,
        name: str = "environment",
        reward_aggregation: str = "sum",
        timeout_is_terminal: bool = False,
        episode_limit: int | None = None,
        team: list[str] | None = None,
    ) -> None:
        if reward_aggregation not in REWARD_AGGREGATIONS:
            raise ConfigurationError(f"reward_aggregation must be sum or mean, not '{reward_aggregation}'")
        if episode_limit is not None and episode_limit < 1:
            raise ConfigurationError(f"episode_limit must be at least 1, not {episode_limit}")
        self._what = f"environment '{name}'"
        require_parallel_env(env, self._what)
        self.env = env
        self._process = os.getpid()
        self._closed = False
        self._timeout_is_terminal = timeout_is_terminal
        self._episode_limit = episode_limit
        self._agents = list(env.possible_agents)
        n = len(self._agents)
        team_of_spec = team_slots(self._agents, team, self._what)
        self._team = frozenset(team_of_spec or range(n))
        self._divisor = len(self._team) if reward_aggregation == "mean" else 1
        metadata = metadata_of(env)
        self.rebuild_after_steps: int | None = metadata.get("rebuild_after_steps")
        self._shared_reward = bool(metadata.get("shared_reward", False))
        named = [(agent, f"of agent '{agent}'") for agent in self._agents]
        self._starts, counts, self._parts = zip(
            *(action_range(env.action_space(a), f"{self._what}: the action space {whose}") for a, whose in named)
        )
        self._in_parts = any(parts is not None for parts in self._parts)
        sizes, self._readers, self._mask_in_observation = zip(
            *(agent_reader(env.observation_space(a), f"{self._what}: the observation {whose}") for a, whose in named)
        )
        self._acting: list[int] = []  # slots of the agents that take part in the next step
        self._steps = 0
        self.reading = False  # whether an error is about what was returned, not from inside the simulator
        self._state_reader: Callable[[Any], np.ndarray] | None = None
        observed = [observed_space(env.observation_space(agent)) for agent in self._agents]
        if "obs_pictures" in metadata:
            pictures = {read_pictures(metadata["obs_pictures"], self._what)}
        else:
            pictures = {find_pictures(observed[i]) for i in self._team}
        self._stateless = False  # set where no state is worth its size
        state_dim = self._find_state(sum(sizes), [picture for found in pictures for picture in found])
        ends = np.cumsum(sizes).tolist()
        self._joined = [slice(end - size, end) for end, size in zip(ends, sizes)]
        self._unpadded = len(set(sizes)) == 1
        # Vectors of these shapes and of the dtype that the reader saw last need no reader, which costs more.
        self._vector_shapes = [vector_shape(env.observation_space(agent)) for agent in self._agents]
        self._state_shape = (state_dim,) if vector_shape(getattr(env, "state_space", None)) else None
        self._of_bytes = all(map(is_bytes, observed))
        self._dtype: Any = None
        self._state_dtype: Any = None
        self.spec = EnvSpec(
            n_agents=n,
            n_actions=max(counts),
            obs_dim=max(sizes),
            state_dim=state_dim,
            obs_dims=sizes,
            action_counts=counts,
            agent_names=tuple(str(agent) for agent in self._agents),
            group_of_agent=unit_groups(self._agents, sizes, counts),
            episode_limit=episode_limit or own_limit(env),
            episode_metrics=tuple(metadata.get("episode_metrics", ())),
            state_is_joined_obs=self._state_reader is None and not self._stateless,
            obs_entities=read_entities(metadata.get("obs_entities", ()), self._what),
            team=team_of_spec,
            pictures=pictures.pop() if len(pictures) == 1 else (),
            obs_dtype="uint8" if self._of_bytes else "float32",
            state_is_features=self._stateless,
            obs_keys=keys_out_of_order([observed[i] for i in self._team]),
        )
        self._legal = np.arange(max(counts)) < np.array(counts)[:, None]  # [N, A]
        self._only_no_op = np.arange(max(counts)) == NO_OP  # [A]

    def reset(self, seed: int, row: Row) -> None:
        """Start the episode of ``seed`` and write its first observation."""
        self.reading = False
        result = self.env.reset(seed=int(seed))
        self._end_copy()
        self.reading = True
        if not isinstance(result, tuple) or len(result) != 2:
            raise EnvironmentContractError(f"{self._what}: reset must return (observations, infos)")
        observations, infos = result
        if not hasattr(self.env, "agents"):
            raise EnvironmentContractError(f"{self._what}: reset must set env.agents, the agents that take part")
        self._steps = 0
        self._acting = self._present()
        if self._team.isdisjoint(self._acting):
            nobody = "is empty" if not self._acting else "holds nobody of env.team"
            raise EnvironmentContractError(f"{self._what}: env.agents {nobody} after reset")
        row.agent_reward[...] = 0.0
        self._write(row, self._acting, observations, infos, at_end=False)

    def step(self, actions: Sequence[int], row: Row) -> Outcome:
        """Take one joint step with ``actions [N]`` (those of masked agents are dropped); write the true successor."""
        agents, starts = self._agents, self._starts
        acting = self._acting
        given: dict[Any, Any] = {agents[i]: actions[i] + starts[i] for i in acting}
        if self._in_parts:
            given = {agents[i]: self._in_its_space(i, actions[i]) for i in acting}
        self.reading = False
        result = self.env.step(given)
        self._end_copy()
        self.reading = True
        if not isinstance(result, (tuple, list)) or len(result) != 5:
            raise not_five(result, self._what)
        observations, rewards, terminations, truncations, infos = result
        self._steps += 1

        shares = [0.0] * len(agents)
        reward = total = 0.0
        ended = []  # slots of agents that acted and were terminated or truncated
        timed_out = []  # of these, the ones that were not terminated
        for i in acting:
            agent = agents[i]
            try:
                reward, terminated, truncated = rewards[agent], terminations[agent], truncations[agent]
            except (KeyError, IndexError, TypeError):
                raise missing_outcome(agent, result, self._what) from None
            # Nearly always what they should be; a call to look closer would cost more than the rest of the loop.
            if reward.__class__ is np.float64:
                reward = float(reward)
            elif reward.__class__ is not float:
                reward = read_number(reward, f"{self._what}: the reward of agent '{agent}'")
            if not -LARGEST <= reward <= LARGEST:
                raise InvalidEpisodeError(f"the reward of agent '{agent}' is {reward}, which no float32 holds")
            if terminated.__class__ is not bool:
                terminated = read_flag(terminated, f"{self._what}: the termination of agent '{agent}'")
            if truncated.__class__ is not bool:
                truncated = read_flag(truncated, f"{self._what}: the truncation of agent '{agent}'")
            shares[i] = reward
            if i in self._team:
                total = reward if self._shared_reward else total + reward
            if terminated or truncated:
                ended.append(i)
                if not terminated:
                    timed_out.append(i)
        row.agent_reward[:] = shares
        reward = total if self._shared_reward else total / self._divisor
        if not -LARGEST <= reward <= LARGEST:
            raise InvalidEpisodeError(f"the team's reward is {reward}, which no float32 holds")

        present = self._present()
        if ended or present != acting:
            self._acting = self._still_acting(acting, present, ended, terminations, truncations)
        if self._team.isdisjoint(self._acting) or self._steps == self._episode_limit:
            return self._ended(reward, row, timed_out, observations, infos)
        self._write(row, self._acting, observations, infos, at_end=False)
        self._check_limit()
        return Outcome(reward, False, False)

    def _ended(self, reward: float, row: Row, timed_out: list[int], observations: Any, infos: Any) -> Outcome:
        """Write what follows an episode's last step; where others, or all at the adapter's own limit, still act."""
        at_limit = not self._team.isdisjoint(self._acting)
        self._write(row, sorted({*timed_out, *self._acting}), observations, infos, at_end=True)
        terminated = self._timeout_is_terminal or not (at_limit or not self._team.isdisjoint(timed_out))
        unaware = bool(self._acting)  # the environment itself goes on
        return Outcome(reward, terminated, not terminated, self._metrics(infos, unaware))

    def _still_acting(
        self, acting: list[int], present: list[int], ended: list[int], terminations: Any, truncations: Any
    ) -> list[int]:
        """Return the slots that act in the next step.

        Raises:
            EnvironmentContractError: none of the team is among them, and nothing of it has ended.
        """
        acted = set(acting)
        # Some environments go on listing who died long ago.
        still = [
            i
            for i in present
            if i not in ended and (i in acted or not self._is_over(self._agents[i], terminations, truncations))
        ]
        if self._team.isdisjoint(still) and self._team.isdisjoint(ended):
            raise EnvironmentContractError(
                f"{self._what}: env.agents is {shortened(list(self.env.agents), 60)} after step {self._steps}, so no "
                "agent is left, but none was terminated or truncated"
            )
        return still

    def render(self) -> Any:
        """Return what the environment draws of its present state, as it gives it.

        Raises:
            ConfigurationError: it cannot draw.
        """
        draw = getattr(self.env, "render", None)
        if not callable(draw):
            raise ConfigurationError(f"{self._what} has no render()")
        return draw()

    def close(self) -> None:
        """Close the environment; may be called twice."""
        if not self._closed:
            self._closed = True
            close_if_it_can(self.env)

    def _end_copy(self) -> None:
        """End this process if a simulator forked it and came back in both; the original goes on.

        Right after each call: a copy must not write a single row, which may be in memory that both share.
        """
        if os.getpid() != self._process:
            try:
                os.write(2, f"{self._what} forked and returned in the copy too, which is ended\n".encode())
            finally:
                os._exit(1)

    # Writing ------------------------------------------------------------------------------------------------

    def _present(self) -> list[int]:
        """Return the slots of the agents in ``env.agents``."""
        listed = self.env.agents
        if listed == self._agents:
            return list(range(len(self._agents)))
        now = set(listed)
        present = [i for i, agent in enumerate(self._agents) if agent in now]
        if len(present) < len(listed):
            strangers = sorted(map(str, now.difference(self._agents)))
            who = f"'{shortened(strangers[0], 40)}', which is not in possible_agents" if strangers else "an agent twice"
            raise EnvironmentContractError(f"{self._what}: env.agents holds {who}")
        return present

    def _is_over(self, agent: Any, terminations: Any, truncations: Any) -> bool:
        """Return whether an agent that did not act is terminated or truncated."""
        over = (("termination", terminations), ("truncation", truncations))
        return any(read_flag(v.get(agent, False), f"{self._what}: the {word} of agent '{agent}'") for word, v in over)

    def _write(self, row: Row, alive: list[int], observations: Any, infos: Any, *, at_end: bool) -> None:
        """Write observation, state and masks with the slots ``alive`` and all others masked."""
        if len(alive) == len(self._agents):
            row.avail_actions[...] = self._legal
            row.agent_mask[...] = True
        else:
            row.obs[...] = 0.0
            row.avail_actions[...] = self._only_no_op
            row.avail_actions[alive] = self._legal[alive]
            row.agent_mask[...] = False
            row.agent_mask[alive] = True
        for i in alive:
            agent = self._agents[i]
            try:
                value = observations[agent]
            except KeyError:
                raise EnvironmentContractError(
                    f"{self._what}: agent '{agent}' is alive but has no observation; step and reset must return one"
                ) from None
            target = row.agent_obs[i]
            if value.__class__ is np.ndarray and value.dtype is self._dtype and value.shape == self._vector_shapes[i]:
                target[:] = value
            else:
                flat = self._readers[i](value)
                # Checked here because numpy would silently spread a single value over the whole row.
                if flat.size != target.size:
                    raise EnvironmentContractError(
                        f"{self._what}: the observation of agent '{agent}' has {flat.size} values, "
                        f"its observation_space says {target.size}"
                    )
                # A replay of bytes would make zeros of a picture that has been divided by 255.
                if self._of_bytes:
                    require_bytes(flat, f"{self._what}: the observation of agent '{agent}'")
                target[:] = flat
                self._dtype = flat.dtype if not self._of_bytes or flat.dtype == np.uint8 else None
            if self._mask_in_observation[i]:
                self._write_mask(row, i, value[MASK_KEY], at_end)
            elif (info := infos.get(agent)) and (mask := info.get(MASK_KEY)) is not None:
                self._write_mask(row, i, mask, at_end)
        if self._stateless:
            return
        if self._state_reader is None:
            if self._unpadded:
                row.state[:] = row.obs.reshape(-1)
            else:
                for i, part in enumerate(self._joined):
                    row.state[part] = row.agent_obs[i]
        else:
            self.reading = False
            try:
                state = self.env.state()
            except NotImplementedError:
                raise EnvironmentContractError(f"{self._what}: there is a state_space but no state()") from None
            self.reading = True
            if state.__class__ is np.ndarray and state.dtype is self._state_dtype and state.shape == self._state_shape:
                row.state[:] = state
                return
            flat = self._state_reader(state)
            if flat.size != row.state.size:
                raise EnvironmentContractError(
                    f"{self._what}: state() has {flat.size} values, expected {row.state.size}"
                )
            row.state[...] = flat
            self._state_dtype = flat.dtype

    def _write_mask(self, row: Row, i: int, mask: Any, at_end: bool) -> None:
        if mask.__class__ is not np.ndarray or mask.dtype is not BOOL or mask.ndim != 1:
            mask = read_mask(mask, f"{self._what}: the action_mask of agent '{self._agents[i]}'")
        target = row.agent_avail[i]
        if mask.size != target.size:
            raise EnvironmentContractError(
                f"{self._what}: the action_mask of agent '{self._agents[i]}' has {mask.size} entries "
                f"for {target.size} actions"
            )
        if any(mask.tolist()):  # several times faster than mask.any() on a few actions
            target[:] = mask
        elif not at_end:  # at the end an empty mask means that none is given
            raise EnvironmentContractError(
                f"{self._what}: the action_mask of agent '{self._agents[i]}' leaves no legal action"
            )

    def _metrics(self, infos: Any, unaware: bool) -> tuple[float, ...]:
        values = []
        told = [infos.get(self._agents[i]) for i in sorted(self._team)] + list(infos.values())
        for name in self.spec.episode_metrics:
            found = next((info[name] for info in told if info and name in info), None)
            if found is None and not unaware:
                raise EnvironmentContractError(
                    f"{self._what}: metadata names the episode metric '{name}', but no agent's info has it at the end"
                )
            value = 0.0 if found is None else read_number(found, f"{self._what}: the episode metric '{name}'")
            if not -LARGEST <= value <= LARGEST:
                raise InvalidEpisodeError(f"the episode metric '{name}' is {value}")
            if name == "won" and value not in (0.0, 1.0):
                raise EnvironmentContractError(f"{self._what}: the episode metric 'won' is {value:g}, not 0 or 1")
            values.append(value)
        return tuple(values)

    def _check_limit(self) -> None:
        limit = self.spec.episode_limit
        if limit is not None and self._steps >= limit:
            raise EnvironmentContractError(
                f"{self._what}: an episode goes on after {self._steps} joint steps, but the environment's own limit "
                f"says {limit}; set env.episode_limit"
            )

    # Reading the spaces -------------------------------------------------------------------------------------

    def _in_its_space(self, i: int, action: int) -> Any:
        """Return the action of a slot as its own space has it: with parts, an array of a part each."""
        return action + self._starts[i] if (parts := self._parts[i]) is None else parts[action].copy()

    def _find_state(self, joined: int, pictures: Sequence[Picture]) -> int:
        """Return the size of the global state; decide whether it is ``state()``, the joined observations, or none."""
        size, self._state_reader = state_reader(self.env, f"{self._what}: state()") or (joined, None)
        if size > LARGEST_STATE or is_bytes(getattr(self.env, "state_space", None)):
            size, self._state_reader = joined, None
        # Layers over all of the agents' pictures would be larger than all networks together, and a mixer that reads
        # bytes, which nobody has scaled, begins with values in the hundreds.
        of_bytes = self._state_reader is None and any(picture.scale < 1.0 for picture in pictures)
        self._stateless = bool(pictures) and (size > LARGEST_STATE or of_bytes)
        return 0 if self._stateless else size
