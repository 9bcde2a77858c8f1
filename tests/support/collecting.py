"""Small environments, policies that play them, and what was collected, copied and compared."""

import torch

from qmix_lightning.environment import VectorEnv
from qmix_lightning.envs.two_step import TwoStep
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.types import Episode
from qmix_lightning.vector.factory import make_vector_env
from support.episodes import TENSORS
from support.fakes import VaryingLength
from support.small_policies import build_policy


def varying(num_envs, **settings) -> VectorEnv:
    return make_vector_env(VaryingLength, settings, num_envs=num_envs, name="varying")


def two_step(num_envs) -> VectorEnv:
    return make_vector_env(TwoStep, {}, num_envs=num_envs, name="two_step")


def make_policy(spec, seed=0):
    torch.manual_seed(seed)
    policy = build_policy(sizes=(spec.n_agents, spec.n_actions, spec.obs_dim), groups=spec.group_of_agent)
    with torch.no_grad():
        policy.agent.head.weight *= 10  # values that differ enough for the order of sums not to matter
    return policy


def copied(episode: Episode) -> Episode:
    values = {n: getattr(episode, n).clone() for n in TENSORS}
    return Episode(terminated=episode.terminated, truncated=episode.truncated, **values)


def collect(source, count, epsilon=0.5):
    """The next ``count`` rounds' episodes, copied, in the order in which they ended."""
    found, returns, steps = [], [], 0
    while len(found) < count:
        got = source.collect(epsilon)
        assert len(got.episodes) == len(got.stats) >= 1
        found += [copied(e) for e in got.episodes]
        returns += list(zip(got.stats.returns, got.stats.lengths, strict=True))
        steps += got.env_steps
    return found, returns, steps


def play_round(collector: Collector) -> tuple[list[Episode], int]:
    """Everything of the round that is dealt, and the joint steps taken."""
    episodes, steps = [], 0
    while True:
        got = collector.collect(0.5)
        steps += got.env_steps
        if not got.episodes:
            assert got.env_steps == 0
            return episodes, steps
        episodes += [copied(e) for e in got.episodes]


def make_collector(num_envs: int, round_episodes: int | None = None, make_env=varying) -> Collector:
    env = make_env(num_envs)
    return Collector(env, make_policy(env.spec), seed=11, rank=0, round_episodes=round_episodes)


def legal(shown, generator):
    """A random legal action for each agent."""
    flat = shown.avail_actions.flatten(0, 1).float()
    return torch.multinomial(flat, 1, generator=generator).reshape(shown.agent_mask.shape)
