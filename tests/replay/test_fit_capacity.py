"""A replay that nobody has sized is made to fit; one that somebody has is left, to be refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from qmix_lightning.replay import memory_estimate
from qmix_lightning.replay.factory import fit_capacity
from qmix_lightning.types import EnvSpec
from support.compositions import run_config

SPEC = EnvSpec(
    n_agents=1, n_actions=2, obs_dim=1000, state_dim=0, obs_dims=(1000,), action_counts=(2,), agent_names=("a",),
    group_of_agent=(0,), episode_limit=99,
)  # fmt: skip
EPISODE = 100 * 1000 * 4


@pytest.mark.parametrize(
    ("room", "capacity"),
    [
        (10_000 * EPISODE, 5000),  # it fits
        (4_000 * EPISODE, 1900),  # half of the room, in two digits: a step has some bytes more
        (100 * EPISODE, 5000),  # too little for a few batches of 32: left, and refused
    ],
)
def test_half_of_the_room_decides(room: int, capacity: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_estimate, "available_memory", lambda: room)
    config = run_config("preset=pymarl", "replay.capacity=5000", "replay.batch_size=32")
    assert fit_capacity(config, SPEC, Path()).replay.capacity == capacity


def test_a_round_is_never_shortened(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_estimate, "available_memory", lambda: 1000)
    config = run_config("algorithm=mappo")
    assert fit_capacity(config, SPEC, Path()) is config


def test_episodes_of_unknown_length_are_not_made_to_fit_by_having_fewer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_estimate, "available_memory", lambda: 10**9)
    config = run_config("preset=pymarl", "replay.capacity=5000", "replay.batch_size=32", "total_env_steps=1000000")
    assert fit_capacity(config, replace(SPEC, episode_limit=None), Path()) is config
