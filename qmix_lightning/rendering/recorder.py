"""Play one episode with a policy and record it, a picture for every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qmix_lightning.agents.base import forget_dead
from qmix_lightning.agents.policy import Policy
from qmix_lightning.agents.stochastic_policy import StochasticPolicy
from qmix_lightning.environment import VectorEnv
from qmix_lightning.errors import RunError
from qmix_lightning.rendering.canvas import Frame
from qmix_lightning.rendering.episode import RecordedEpisode, discounted_returns
from qmix_lightning.rendering.frames import FrameRenderer, action_names
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.types import Observation, TrajectoryBatch, Transition
from qmix_lightning.vector.team_env import let_self_follow

__all__ = ["FrameSink", "Moment", "record_episode"]


@dataclass(frozen=True)
class Moment:
    """Where an episode stands when a picture is drawn: joint steps taken, the last reward, the rewards so far.

    ``outcome`` is what the environment reports at the episode's end, such as ``won``.
    """

    step: int
    reward: float
    total_reward: float
    alive: int
    n_agents: int
    over: bool
    outcome: Mapping[str, float] = field(default_factory=dict)


FrameSink = Callable[[Frame, Moment], None]
"""Takes each picture as it is drawn: episodes are long, and pictures large."""

TeamValues = Callable[[TrajectoryBatch], "tuple[Tensor, Tensor] | None"]
"""``batch -> (q_tot [1, T], sensitivities [1, T, N])``, see :mod:`qmix_lightning.rendering.team_values`."""


@torch.no_grad()
def record_episode(
    env: VectorEnv,
    policy: Policy,
    *,
    seed: int,
    gamma: float,
    number: int = 0,
    epsilon: float = 0.0,
    team_values: TeamValues | None = None,
    on_frame: FrameSink | None = None,
    max_steps: int = 10_000,
) -> RecordedEpisode:
    """Play an episode in the first environment of ``env``, by values as the policy has them.

    Args:
        env: one environment.
        policy: the acting network, in evaluation mode.
        seed, number: decide how the episode starts: evaluations with this seed play it as their episode ``number``.
        gamma: discount of the returns that followed.
        epsilon: the chance of another legal action for each agent; above 0 a stochastic policy is sampled.
        team_values: gives the mixer's view of the whole episode.
        on_frame: takes the picture before each step, and the one after the last.
        max_steps: where recording stops, for tasks without an end.

    Raises:
        RunError: the simulator failed.
    """
    one = torch.ones(1, dtype=torch.bool)
    episode_key = np.array([number], np.uint64)
    reset_seed = prng.to_seed(prng.fold(prng.derive_key(seed, Purpose.EVAL_RESET), episode_key))
    explore_key = prng.fold(prng.derive_key(seed, Purpose.EXPLORE), episode_key)
    draw = FrameRenderer(env) if on_frame is not None else None
    n = env.spec.n_agents
    step_draws = prng.StepDraws(1, n, 2)
    let_self_follow(env, policy)
    shown = _kept(env.reset(one, torch.from_numpy(reset_seed)))
    observations, transitions, values, chosen = [shown], [], [], []
    memory, last = policy.initial_state(1), torch.full((1, n), -1)
    acted = last
    total, reward, over, told = 0.0, 0.0, False, {}
    while True:
        if draw is not None and on_frame is not None:
            moment = Moment(len(chosen), reward, total, int(shown.agent_mask.sum()), n, over, told)
            on_frame(draw(shown, acted[0].tolist() if chosen else None), moment)
        if over or len(chosen) >= max_steps:
            break
        q, memory = policy(shown.obs, last, memory)
        memory = forget_dead(memory, shown.agent_mask)
        draws = None
        if epsilon > 0.0:
            draws = torch.from_numpy(step_draws(explore_key, np.array([len(chosen)])))
        last = policy.select(q, shown.avail_actions, epsilon, draws)
        acted = torch.where(shown.agent_mask, last, -1)
        values.append(_readable(policy, q, shown))
        chosen.append(last)
        outcome = env.step(last, one)
        if outcome.failed is not None and bool(outcome.failed.any()):
            raise RunError(f"the environment failed in step {len(chosen)} of the episode that was being recorded")
        shown = _kept(outcome.next)
        observations.append(shown)
        transitions.append(
            Transition(shown, _copy(outcome.reward), _copy(outcome.terminated), _copy(outcome.truncated))
        )
        reward = float(outcome.reward[0])
        total += reward
        over = bool((outcome.terminated | outcome.truncated)[0])
        told = {name: float(value[0]) for name, value in outcome.metrics.items()} if over else {}
    batch = _as_batch(observations, transitions, chosen)
    rewards = batch.reward[0].double().numpy()
    mixed = None if team_values is None else team_values(batch)
    final = transitions[-1]
    return RecordedEpisode(
        spec=env.spec,
        action_names=action_names(env),
        seed=int(reset_seed[0]),
        probabilities=isinstance(policy, StochasticPolicy),
        values=torch.cat(values).double().numpy(),
        actions=batch.actions[0].numpy(),
        alive=batch.agent_mask[0].numpy(),
        rewards=rewards,
        returns=discounted_returns(rewards, gamma),
        q_tot=None if mixed is None else mixed[0][0].double().numpy(),
        sensitivities=None if mixed is None else mixed[1][0].double().numpy(),
        metrics=told,
        ending="terminated" if final.terminated[0] else "truncated" if final.truncated[0] else "not ended",
    )


def _kept(shown: Observation) -> Observation:
    return Observation(_copy(shown.obs), _copy(shown.state), _copy(shown.avail_actions), _copy(shown.agent_mask))


def _copy(part: Tensor) -> Tensor:
    """Return a copy on the CPU: environments reuse their buffers."""
    return part.to("cpu", copy=True)


def _readable(policy: Policy, q: Tensor, shown: Observation) -> Tensor:
    """Return what people read of one step, ``[1, N, A]``: values, or chances, of legal actions; NaN elsewhere."""
    read = q
    if isinstance(policy, StochasticPolicy):
        read = policy.log_policy(q, shown.avail_actions, q.new_zeros(())).exp()
    legal = shown.avail_actions & shown.agent_mask[..., None]
    return torch.where(legal, read, float("nan"))


def _as_batch(observations: list[Observation], transitions: list[Transition], actions: list[Tensor]) -> TrajectoryBatch:
    """Return the episode as one row of ``T`` steps."""

    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, dim=1)  # [1, T, ...]

    reward = stacked([step.reward for step in transitions])  # [1, T]
    return TrajectoryBatch(
        obs=stacked([shown.obs for shown in observations]),
        state=stacked([shown.state for shown in observations]),
        avail_actions=stacked([shown.avail_actions for shown in observations]),
        agent_mask=stacked([shown.agent_mask for shown in observations]),
        actions=stacked(actions),
        reward=reward,
        terminated=stacked([step.terminated for step in transitions]),
        truncated=stacked([step.truncated for step in transitions]),
        filled=torch.ones_like(reward, dtype=torch.bool),
    )
