"""Compile simulators written in JAX with JaxMARL's interface, many at once: reset and the step without auto-reset.

Imports JAX: only factories import this module, when they are called.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from qmix_lightning.envs.jax_flat_state import FlatState
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError
from qmix_lightning.runtime.text import error_line, shortened
from qmix_lightning.types import NO_OP, EntityBlock, EnvSpec
from qmix_lightning.worker.parallel_adapter import unit_groups

__all__ = ["JaxProgram", "JaxmarlRules", "Rules", "Slots", "shared_program"]

_NO_LIMIT = 2**30
"""A time limit that is never reached."""
_PROGRAMS_KEPT = 8


class Slots(NamedTuple):
    """Everything that ``E`` environments carry from one call to the next; every leaf begins with ``E``.

    ``words`` and ``others`` hold the :class:`SimulatorEpisode` of each, flattened. What is shown goes to torch in two
    pieces, as each costs a transfer: ``numbers [E, N*O + S + N + 1 + M]`` holds observations, state, rewards of agents
    and team, metrics; ``flags [E, N*A + N + 2]`` holds legal actions, who is alive, terminated, truncated.
    """

    words: jax.Array
    others: tuple[jax.Array, ...]
    numbers: jax.Array
    flags: jax.Array


class SimulatorEpisode(NamedTuple):
    """State of the episode of one environment.

    ``key`` is the episode's own: folding in 0 starts it, folding in ``t`` draws its ``t``-th step. ``idle [N]`` is the
    simulator's own action for who cannot act.
    """

    sim: Any
    key: jax.Array
    t: jax.Array
    idle: jax.Array


class Rules(Protocol):
    """Ends, agents alive and metrics of a family of simulators; pure functions of one environment's simulator state.

    Attributes:
        group_of_agent: unit type of each agent; ``None``: decided by names and sizes.
        state_scale: what the simulator's state is multiplied by, ``[S]``; ``None``: nothing.
        state_bounds: the least and the most that a scaled state's numbers may be; ``None``: anything.
        metric_names: keys of what :meth:`metrics` returns.
        obs_entities: which parts of an observation are sets of entities.
    """

    @property
    def group_of_agent(self) -> tuple[int, ...] | None: ...
    @property
    def state_scale(self) -> list[float] | None: ...
    @property
    def state_bounds(self) -> tuple[float, float] | None: ...
    @property
    def metric_names(self) -> tuple[str, ...]: ...
    @property
    def obs_entities(self) -> tuple[EntityBlock, ...]: ...

    def task_over(self, before: Any, after: Any, key: jax.Array, actions: Mapping[str, jax.Array], dones: Any) -> Any:
        """Return whether the task ended in this step, for another reason than a time limit."""
        ...

    def alive(self, after: Any, dones: Any, ended: Any, alive_before: Any) -> Any:
        """Return the agents that act in the next step, ``[N]`` bool."""
        ...

    def metrics(self, after: Any) -> dict[str, Any]:
        """Return the values reported when an episode ends."""
        ...

    def draw(self, sim: Any) -> Any:
        """Return a picture, uint8 ``[H, W, 3]``, or raise ``NotImplementedError``; not traced."""
        ...

    def action_names(self) -> dict[str, list[str]]:
        """Return the word for each action by agent; empty: they are numbers."""
        ...


class JaxmarlRules:
    """Rules that hold for any JaxMARL environment.

    There is one done flag. To tell the task's end from the time limit, a twin of the simulator whose ``max_steps`` is
    never reached is stepped too, for its flag only; the compiler drops whatever else it would compute. Without
    ``max_steps`` a done flag is the task's end.
    """

    group_of_agent: tuple[int, ...] | None = None
    state_scale: list[float] | None = None
    state_bounds: tuple[float, float] | None = None
    metric_names: tuple[str, ...] = ()
    obs_entities: tuple[EntityBlock, ...] = ()

    def __init__(self, simulator: Any) -> None:
        self._agents = list(simulator.agents)
        self._radii = getattr(simulator, "rad", None)  # of a particle world
        self._unlimited: Any = None
        if isinstance(getattr(simulator, "max_steps", None), int):
            self._unlimited = copy.copy(simulator)
            self._unlimited.max_steps = _NO_LIMIT

    def task_over(self, before: Any, after: Any, key: jax.Array, actions: Mapping[str, jax.Array], dones: Any) -> Any:
        if self._unlimited is None:
            return dones["__all__"]
        return self._unlimited.step_env(key, before, actions)[3]["__all__"]

    def alive(self, after: Any, dones: Any, ended: Any, alive_before: Any) -> Any:
        # At the end every flag is raised, for those still alive too.
        return jnp.where(ended, alive_before, ~jnp.stack([dones[agent] for agent in self._agents]))

    def metrics(self, after: Any) -> dict[str, Any]:
        return {}

    def draw(self, sim: Any) -> Any:
        """Draw a particle world; nothing is known of others."""
        if not hasattr(sim, "p_pos"):
            raise NotImplementedError
        from qmix_lightning.rendering.particles import Particle, draw_particles

        places, radii, n = np.asarray(sim.p_pos), np.asarray(self._radii), len(self._agents)
        return draw_particles(
            [
                Particle(float(x), float(y), float(radius), i if i < n else None)
                for i, ((x, y), radius) in enumerate(zip(places, radii, strict=True))
            ]
        )

    def action_names(self) -> dict[str, list[str]]:
        if self._radii is None:
            return {}
        return {agent: ["none", "left", "right", "down", "up"] for agent in self._agents}


class JaxProgram:
    """The compiled reset and step of one simulator; vector environments with the same settings share it.

    Args:
        simulator: a JaxMARL environment: ``reset``, ``step_env``, ``agents``, ``action_space``.
        rules: creates the :class:`Rules` of the simulator's family.
        name: what messages call it.
        reward_aggregation: the team reward: ``sum`` or ``mean`` over all agents, the dead included.
        timeout_is_terminal: count the time limit as a true end.
        episode_limit: joint steps after which an episode ends; ``None``: the simulator's ``max_steps``.

    Attributes:
        traces: how often ``begin``, ``put`` and ``step`` were traced, and so compiled.
    """

    def __init__(
        self,
        simulator: Any,
        rules: Callable[[Any], Rules],
        *,
        name: str,
        reward_aggregation: str,
        timeout_is_terminal: bool,
        episode_limit: int | None = None,
    ) -> None:
        if episode_limit is not None and episode_limit < 1:
            raise ConfigurationError(f"{name}: episode_limit must be at least 1, not {episode_limit}")
        self._simulator = simulator
        self._mean = reward_aggregation == "mean"
        self._timeout_is_terminal = timeout_is_terminal
        own_limit = getattr(simulator, "max_steps", None)
        limit = episode_limit or (own_limit if isinstance(own_limit, int) and own_limit > 0 else None)
        self._limit = limit or _NO_LIMIT
        self._agents, shapes, counts, state_dim, self._mask_of = _layout(simulator, name)
        self.traces: Counter[str] = Counter()
        self._rules = family = rules(simulator)
        n = len(self._agents)
        self.spec = spec = EnvSpec(
            n_agents=n,
            n_actions=max(counts),
            obs_dim=max(shapes),
            state_dim=state_dim,
            obs_dims=tuple(shapes),
            action_counts=tuple(counts),
            agent_names=tuple(self._agents),
            group_of_agent=family.group_of_agent or unit_groups(self._agents, shapes, counts),
            episode_limit=limit,
            episode_metrics=family.metric_names,
            natively_batched=True,
            obs_entities=family.obs_entities,
        )
        # Where each thing begins in Slots.numbers and Slots.flags.
        self.number_sizes = (n * spec.obs_dim, spec.state_dim, n, 1 + len(spec.episode_metrics))
        self.flag_sizes = (n * spec.n_actions, n, 2)
        self._flat_state = FlatState(
            jax.eval_shape(lambda seed: self._begun(seed)[0], jax.ShapeDtypeStruct((), jnp.uint32))
        )
        self.begin = jax.jit(self._begin, compiler_options=_compiler_options())
        self.put = jax.jit(self._put, compiler_options=_compiler_options())
        self.step = jax.jit(self._step, compiler_options=_compiler_options())

    def empty(self, num_envs: int) -> Slots:
        """Return slots in which nothing was started yet."""
        shapes = jax.eval_shape(jax.vmap(self._begin_one), jax.ShapeDtypeStruct((num_envs,), jnp.uint32))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def draw(self, slots: Slots) -> Any:
        """Return a picture of the first of ``slots``, uint8 ``[H, W, 3]``, or raise ``NotImplementedError``."""
        episode = self._flat_state.unflatten(slots.words[0], tuple(other[0] for other in slots.others))
        return self._rules.draw(episode.sim)

    def action_names(self) -> dict[str, list[str]]:
        """Return the word for each action by agent; empty if the family has none."""
        return self._rules.action_names()

    # -- traced: many environments ---------------------------------------------------------------------------------

    def _begin(self, seeds: jax.Array) -> Slots:
        """Return slots at the start of new episodes, one for each of ``seeds [K]``."""
        self.traces["begin"] += 1
        return jax.vmap(self._begin_one)(seeds.astype(jnp.uint32))

    def _put(self, slots: Slots, begun: Slots, rows: jax.Array) -> Slots:
        """Put the episode ``rows [E]`` of ``begun`` into each slot; where that is negative all is as it was."""
        self.traces["put"] += 1
        return jax.tree.map(lambda new, old: _choose(rows >= 0, new[rows], old), begun, slots)

    def _step(self, slots: Slots, actions: jax.Array, active: jax.Array) -> Slots:
        """Take a joint step where ``active [E]``; the others are as they were."""
        self.traces["step"] += 1
        stepped = jax.tree.map(functools.partial(_choose, active), jax.vmap(self._advance)(slots, actions), slots)
        # Rewards and ends are of this step only.
        shown, alive = sum(self.number_sizes[:2]), sum(self.flag_sizes[:2])
        numbers = jnp.where(active[:, None], stepped.numbers, stepped.numbers.at[:, shown:].set(0.0))
        flags = jnp.where(active[:, None], stepped.flags, stepped.flags.at[:, alive:].set(False))
        return stepped._replace(numbers=numbers, flags=flags)

    # -- traced: one environment -----------------------------------------------------------------------------------

    def _begin_one(self, seed: jax.Array) -> Slots:
        episode, numbers, flags = self._begun(seed)
        return Slots(*self._flat_state.flatten(episode), numbers, flags)

    def _begun(self, seed: jax.Array) -> tuple[SimulatorEpisode, jax.Array, jax.Array]:
        key = jax.random.PRNGKey(seed)
        shown, sim = self._simulator.reset(jax.random.fold_in(key, 0))
        nothing = jnp.zeros(self.number_sizes[2] + self.number_sizes[3])
        alive, over = jnp.ones(self.spec.n_agents, bool), jnp.zeros(2, bool)
        idle, numbers, flags = self._show(shown, sim, alive, nothing, over)
        return SimulatorEpisode(sim, key, jnp.zeros((), jnp.int32), idle), numbers, flags

    def _advance(self, slots: Slots, actions: jax.Array) -> Slots:
        before: SimulatorEpisode = self._flat_state.unflatten(slots.words, slots.others)
        alive = slots.flags[self.flag_sizes[0] : -2]  # [N]
        # Who is dead plays our no-op; the simulator's may have another number.
        actions = jnp.where(alive, actions, before.idle)
        played = {agent: actions[i] for i, agent in enumerate(self._agents)}
        t = before.t + 1
        key = jax.random.fold_in(before.key, t)
        # Not `step`: that resets by itself and overwrites the last observation.
        shown, sim, rewards, dones, _ = self._simulator.step_env(key, before.sim, played)
        over = self._rules.task_over(before.sim, sim, key, played, dones)
        ended = over | dones["__all__"] | (t >= self._limit)
        terminated = ended if self._timeout_is_terminal else over
        alive = self._rules.alive(sim, dones, ended, alive)
        agent_reward = jnp.stack([jnp.asarray(rewards[a], jnp.float32).reshape(()) for a in self._agents])  # [N]
        reward = agent_reward.mean() if self._mean else agent_reward.sum()
        metrics = self._rules.metrics(sim)
        values = jnp.stack([reward, *(metrics[k].astype(jnp.float32) for k in self.spec.episode_metrics)])
        earned = jnp.concatenate([agent_reward, values])
        ends = jnp.stack([terminated, ended & ~terminated])
        idle, numbers, flags = self._show(shown, sim, alive, earned, ends)
        return Slots(*self._flat_state.flatten(SimulatorEpisode(sim, before.key, t, idle)), numbers, flags)

    def _show(
        self, shown: Mapping[str, Any], sim: Any, alive: jax.Array, earned: jax.Array, ends: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return ``idle [N]``, and what is shown of an environment: the rows of ``numbers`` and ``flags``."""
        spec = self.spec
        flat = [jnp.ravel(shown[agent]).astype(jnp.float32) for agent in self._agents]
        flat = [jnp.where(alive[i], values, 0.0) for i, values in enumerate(flat)]
        obs = [jnp.pad(values, (0, spec.obs_dim - values.size)) for values in flat]  # N times [O]
        own_state = shown.get("world_state")
        state = flat if own_state is None else [jnp.ravel(own_state).astype(jnp.float32)]  # together [S]
        if self._rules.state_scale is not None:
            state = [jnp.concatenate(state) * jnp.asarray(self._rules.state_scale, jnp.float32)]
        if self._rules.state_bounds is not None:
            state = [jnp.clip(jnp.concatenate(state), *self._rules.state_bounds)]
        counts = jnp.asarray(spec.action_counts)
        legal = jnp.arange(spec.n_actions) < counts[:, None]  # [N, A]
        if self._mask_of is not None:
            masks = self._mask_of(sim)
            rows = [jnp.ravel(masks[agent]).astype(bool) for agent in self._agents]
            legal &= jnp.stack([jnp.pad(row, (0, spec.n_actions - row.size)) for row in rows])
        idle = jnp.argmax(legal, axis=-1).astype(jnp.int32)  # [N]
        only_no_op = jnp.arange(spec.n_actions) == NO_OP  # [A]
        # After the last move of a game nothing may be legal; nobody has to act then.
        finished = ends.any() & ~legal.any(axis=-1)  # [N]
        avail = jnp.where((alive & ~finished)[:, None], legal, only_no_op)
        return (
            idle,
            jnp.concatenate([*obs, *state, earned]),
            jnp.concatenate([avail.ravel(), alive, ends]),
        )


_programs: dict[str, JaxProgram] = {}


def shared_program(key: str, build: Callable[[], JaxProgram]) -> JaxProgram:
    """Return the program of these settings; training and evaluation with equally many environments compile once."""
    if key not in _programs:
        made = build()
        while len(_programs) >= _PROGRAMS_KEPT:
            del _programs[next(iter(_programs))]
        _programs[key] = made
    return _programs[key]


@functools.cache
def _compiler_options() -> dict[str, Any]:
    """Return XLA's options, as far as it knows them: on a CPU, one kernel after the other.

    XLA would hand kernels to other threads, which have gone to sleep meanwhile: with 0.7 ms between two steps of SMAX a
    step takes 40 % longer. Fewer copies in loops save another 4 %.
    """
    options: dict[str, Any] = {
        "xla_cpu_scheduler_type": 1,  # memory-optimised; the other choice is concurrency
        "xla_cpu_copy_insertion_use_region_analysis": True,
    }
    return {name: value for name, value in options.items() if _compiles_with({name: value})}


def _compiles_with(options: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # another version of XLA
        return False
    return True


def _choose(rows: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Return ``new [E, ...]`` where ``rows [E]``, else ``old``; in one dtype, so that nothing is traced twice."""
    return jnp.where(rows.reshape(rows.shape + (1,) * (old.ndim - 1)), new.astype(old.dtype), old)


def _layout(
    simulator: Any, name: str
) -> tuple[list[str], list[int], list[int], int, Callable[[Any], Mapping[str, Any]] | None]:
    """Return agents, observation sizes, action counts, state size and the function that returns legal actions.

    Runs nothing: shapes only.

    Raises:
        EnvironmentContractError: the simulator does not fit, in one line.
    """
    agents = list(simulator.agents)
    try:
        shown, sim = jax.eval_shape(simulator.reset, jax.random.PRNGKey(0))
    except Exception as error:
        raise EnvironmentContractError(
            f"{name} does not fit: its reset fails: {shortened(error_line(error), 200)}"
        ) from error
    if not isinstance(shown, dict) or not all(isinstance(agent, str) and agent in shown for agent in agents):
        raise EnvironmentContractError(f"{name} does not fit: its observations are not given by agent name")
    counts = []
    for agent in agents:
        space = simulator.action_space(agent)
        if type(space).__name__ != "Discrete":
            raise EnvironmentContractError(
                f"{name} does not fit: actions must be discrete, '{agent}' has {type(space).__name__}"
            )
        counts.append(int(space.n))
    zeros = {agent: jax.ShapeDtypeStruct((), jnp.int32) for agent in agents}
    try:
        stepped = jax.eval_shape(simulator.step_env, jax.random.PRNGKey(0), sim, zeros)
    except Exception as error:
        raise EnvironmentContractError(
            f"{name} does not fit: its step fails: {shortened(error_line(error), 200)}"
        ) from error
    if not isinstance(stepped[2], dict) or not all(agent in stepped[2] for agent in agents):
        raise EnvironmentContractError(f"{name} does not fit: its rewards are not given by agent name")
    if jax.tree.structure(stepped[1]) != jax.tree.structure(sim):
        raise EnvironmentContractError(f"{name} does not fit: its state changes its structure in a step")
    sizes = [shown[agent].size for agent in agents]
    state_dim = shown["world_state"].size if "world_state" in shown else sum(sizes)
    return agents, sizes, counts, state_dim, _mask_function(simulator, sim, agents, counts)


def _mask_function(
    simulator: Any, sim: Any, agents: list[str], counts: list[int]
) -> Callable[[Any], Mapping[str, Any]] | None:
    """Return ``get_legal_moves`` (Hanabi) or ``get_avail_actions`` (SMAX), if there is one for these actions."""
    for attribute in ("get_legal_moves", "get_avail_actions"):
        function = getattr(simulator, attribute, None)
        if function is None:
            continue
        try:
            masks = jax.eval_shape(function, sim)
        except NotImplementedError:
            continue
        # JaxNav has one for actions that it does not have.
        if all(masks[agent].shape == (count,) for agent, count in zip(agents, counts, strict=True)):
            return function
    return None
