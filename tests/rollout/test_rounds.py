"""Rounds that are dealt beforehand: each slot's share, who waits, and what fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qmix_lightning.types import Episode
from qmix_lightning.vector.factory import Backend, make_vector_env
from qmix_lightning.worker.fault_tolerance import FaultLimit
from support import faulty
from support.collecting import copied, make_collector, play_round
from support.episodes import assert_same
from support.fakes import VaryingLength


@pytest.mark.parametrize(("num_envs", "size"), [(3, 7), (4, 4), (1, 5)])
def test_a_round_is_the_first_episodes_of_every_slot(num_envs: int, size: int):
    """Each slot plays its share and waits, however long the others take; the next round goes on from there."""
    dealt = [size // num_envs + (slot < size % num_envs) for slot in range(num_envs)]
    expected: list[list[Episode]] = []
    for slot in range(num_envs):  # what the slot plays when nobody waits
        free = make_collector(num_envs)
        expected.append([])
        while len(expected[slot]) < 2 * dealt[slot]:
            free.collect(0.5)
            if free._ended[slot]:
                expected[slot].append(copied(free._recorder.episode(slot, True, False)))
    source = make_collector(num_envs, size)
    for number in range(2):
        episodes, steps = play_round(source)
        assert len(episodes) == size
        assert steps == sum(e.length for e in episodes)
        wanted = [
            e for slot, own in enumerate(expected) for e in own[number * dealt[slot] : (number + 1) * dealt[slot]]
        ]
        assert len(wanted) == size
        for episode in episodes:
            (match,) = [e for e in wanted if torch.equal(e.obs[0], episode.obs[0]) and e.length == episode.length]
            assert torch.equal(match.actions, episode.actions)
            assert torch.equal(match.reward, episode.reward)
        source.begin_round()


def test_a_slot_that_waits_is_not_stepped():
    source = make_collector(2, 4)
    step, active = source.env.step, []

    def watched(actions, mask):
        active.append(mask.clone())
        return step(actions, mask)

    source.env.step = watched
    episodes, steps = play_round(source)
    assert torch.stack(active).sum() == steps == sum(e.length for e in episodes)
    assert not torch.stack(active).all()


def test_processes_collect_the_same_rounds():
    def process(num_envs: int):
        backend = Backend("process", 2, 20.0, FaultLimit(5, 600.0))
        return make_vector_env(VaryingLength, {}, num_envs=num_envs, name="varying", backend=backend)

    here, there = make_collector(3, 5), make_collector(3, 5, process)
    try:
        for _ in range(2):
            (left, steps), (right, same_steps) = play_round(here), play_round(there)
            assert steps == same_steps
            for a, b in zip(left, right, strict=True):
                assert_same(a, b)
            here.begin_round()
            there.begin_round()
    finally:
        there.env.close()


def test_an_episode_that_fails_is_dealt_again(tmp_path: Path):
    backend = Backend("sync", 1, 20.0, FaultLimit(5, 600.0))
    settings = {"fault": "raise", "folder": str(tmp_path), "times": 2}

    def failing(num_envs: int):
        return make_vector_env(faulty.Faulty, settings, num_envs=num_envs, name="faulty", backend=backend)

    source = make_collector(3, 6, failing)
    episodes, steps = play_round(source)
    assert source.env.faults["raised"] == 2
    assert len(episodes) == 6
    assert steps == sum(e.length for e in episodes)  # what was played of the others is taken back
