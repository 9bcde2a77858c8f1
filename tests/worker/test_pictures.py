"""Observations that are pictures: found in spaces, kept as bytes, and no state of gigabytes made of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from qmix_lightning.errors import EnvironmentContractError
from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.replay.memory_estimate import predict_size
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.types import Picture
from qmix_lightning.vector.factory import make_vector_env
from qmix_lightning.worker.declared import find_pictures, is_bytes, own_limit
from support.collecting import collect, make_policy
from support.fakes import Scripted
from support.pixels import Catch
from support.replays import content_hash


@pytest.mark.parametrize(
    ("space", "found"),
    [
        (spaces.Box(0, 255, (84, 80, 3), np.uint8), (Picture("observation", 0, (84, 80, 3), False, 1 / 255),)),
        (spaces.Box(0, 1, (3, 11, 11), np.float32), (Picture("observation", 0, (3, 11, 11), True),)),
        (spaces.Box(0, 1, (7, 9), np.float32), (Picture("observation", 0, (7, 9, 1)),)),
        (spaces.Box(0, 1, (7, 1), np.float32), ()),
        (spaces.Box(0, 1, (12,), np.float32), ()),
        (spaces.Discrete(3), ()),
        (
            spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Box(0, 1, (4, 4, 2)), "c": spaces.Box(0, 1, (5, 5))}),
            (Picture("b", 2, (4, 4, 2)), Picture("c", 34, (5, 5, 1))),
        ),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 1, (4, 4, 2))}), ()),
    ],
)
def test_pictures_are_found_where_they_lie(space, found):
    assert find_pictures(space) == found
    for picture in found:
        value = space.sample()
        part = value if picture.name == "observation" else value[picture.name]
        flat = spaces.utils.flatten(space, value)
        assert flat[picture.start : picture.end].tolist() == part.ravel().tolist()


def test_a_replay_of_bytes_holds_what_was_seen_in_a_quarter_of_the_room():
    env = make_vector_env(Catch, {}, num_envs=2, name="catch")
    assert env.spec.obs_dtype == "uint8"
    episodes = collect(Collector(env, make_policy(env.spec), seed=1, rank=0), 6)[0]
    replay = EpisodeReplay(env.spec, 10)
    replay.extend(episodes)
    for number, episode in enumerate(episodes):
        assert torch.equal(replay.get(number).obs, episode.obs)
        assert torch.equal(replay.get(number).state, episode.state)
    assert episodes[0].obs.max() == 255.0

    def size(spec):
        given = {"capacity": 100, "dtype": "float32", "prioritized": False, "total_env_steps": 1000, "folder": None}
        return predict_size(spec, **given).floats

    assert size(replace(env.spec, obs_dtype="float32")) == 4 * size(env.spec)


def test_bytes_come_back_from_a_segment():
    env = make_vector_env(Catch, {}, num_envs=1, name="catch")
    replay, other = EpisodeReplay(env.spec, 10), EpisodeReplay(env.spec, 10)
    replay.extend(collect(Collector(env, make_policy(env.spec), seed=1, rank=0), 3)[0])
    other.restore(0, replay.export(0, 3), 0)
    assert content_hash(other) == content_hash(replay)


class Large(Catch):
    """``Catch`` whose pictures are large, so that neither they nor ``state()`` are a state."""

    def observation_space(self, agent):
        return spaces.Box(0, 255, (100, 100, 3), np.uint8)

    def _shown(self):
        return {a: np.full((100, 100, 3), self.t, np.uint8) for a in self.agents}

    def state(self):
        return np.zeros((200, 100, 3), np.uint8)


def test_pictures_are_no_state():
    spec = make_vector_env(Large, {}, num_envs=1, name="large").spec
    assert (spec.state_dim, spec.state_is_features, spec.state_is_joined_obs) == (0, True, False)
    env = make_vector_env(Large, {}, num_envs=2, name="large")
    (episode, *_), *_ = collect(Collector(env, make_policy(env.spec), seed=1, rank=0), 1)
    assert episode.state.shape[-1] == 0


@pytest.mark.parametrize("beside", [False, True])
def test_a_picture_of_bytes_is_no_state_either(beside):
    spec = make_vector_env(Catch, {"beside": beside}, num_envs=1, name="catch").spec
    assert (spec.state_dim, spec.state_is_features) == (0, True)


def test_parts_of_an_action_are_numbered():
    env = Scripted([{}, {}], agents=("a_0",), action_spaces={"a_0": spaces.MultiDiscrete([3, 2], start=[0, 5])})
    made = make_vector_env(lambda: env, {}, num_envs=1, name="multi")
    assert made.spec.n_actions == 6
    on = torch.ones(1, dtype=torch.bool)
    made.reset(on, torch.tensor([1]))
    for action, parts in ((0, [0, 5]), (3, [1, 6])):
        made.step(torch.tensor([[action]]), on)
        assert env.received[-1]["a_0"].tolist() == parts
        assert env.action_space("a_0").contains(env.received[-1]["a_0"])


def test_too_many_combinations_are_refused():
    env = Scripted([], agents=("a_0",), action_spaces={"a_0": spaces.MultiDiscrete([600, 2])})
    with pytest.raises(EnvironmentContractError, match="more than 512 combinations"):
        make_vector_env(lambda: env, {}, num_envs=1, name="multi")


def test_a_box_of_an_environments_own_may_have_a_shape_and_no_dtype():
    box = type("Box", (), {"shape": (8, 9, 3)})()
    assert find_pictures(box) == (Picture("observation", 0, (8, 9, 3)),)
    assert not is_bytes(box)


def test_limits_are_found_behind_wrappers():
    class Inner:
        timestep_limit = 40

    class Outer:
        env = Inner()

    assert own_limit(Outer()) == 40
