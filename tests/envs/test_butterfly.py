"""PettingZoo's butterfly games through ``env=pettingzoo``: agents that leave early, no screen, pixels."""

import os
import subprocess
import sys

import pytest

from qmix_lightning.envs import pettingzoo
from support.playing import Player

KAZ = "pettingzoo.butterfly.knights_archers_zombies_v11"


@pytest.fixture(autouse=True)
def _no_screen(monkeypatch):
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def kaz(**kwargs):
    return pettingzoo.make(KAZ, kwargs)


def test_sizes():
    spec = Player(kaz()).spec
    assert spec.agent_names == ("archer_0", "archer_1", "knight_0", "knight_1")
    assert spec.group_of_agent == (0, 0, 1, 1)
    assert (spec.n_actions, spec.obs_dim, spec.state_dim, spec.episode_limit) == (6, 135, 104, 900)


def test_whoever_is_caught_leaves_and_the_others_go_on():
    player = Player(kaz(spawn_delay=5)).reset(0)
    counts = []
    for _ in range(900):
        before = player.row.agent_mask.copy()
        outcome = player.step()
        if outcome.terminated or outcome.truncated:
            break
        mask = player.row.agent_mask
        assert not (mask & ~before).any()  # nobody comes back
        for i in (~mask).nonzero()[0]:
            assert not player.row.obs[i].any()
            assert player.row.avail_actions[i].tolist() == [True] + [False] * 5
        assert player.row.avail_actions[mask].all()
        assert player.row.obs[mask].any(axis=1).all()
        counts.append(int(mask.sum()))
    assert outcome.terminated
    assert len(set(counts)) > 1  # some left while others went on


def test_max_cycles_is_a_truncation():
    steps, outcome, _ = Player(kaz(max_cycles=12)).episode()
    assert (steps, outcome.terminated, outcome.truncated) == (12, False, True)


def test_pixels_are_no_state():
    env = pettingzoo.make("pettingzoo.butterfly.cooperative_pong_v6")
    spec, pixels = Player(env).spec, 280 * 480 * 3
    assert (spec.n_agents, spec.obs_dim, spec.state_dim, spec.n_actions) == (2, pixels, 0, 3)
    env.close()


DRIVER = f"""
import os
from qmix_lightning.envs import pettingzoo
env = pettingzoo.make("{KAZ}", {{}})
env.reset(seed=0)
print(os.environ["SDL_VIDEODRIVER"])
"""


@pytest.mark.parametrize(("given", "used"), [(None, "dummy"), ("offscreen", "offscreen")])
def test_no_screen_is_needed_unless_one_is_asked_for(given, used):
    environ = {k: v for k, v in os.environ.items() if k not in ("SDL_VIDEODRIVER", "DISPLAY")}
    if given:
        environ["SDL_VIDEODRIVER"] = given
    code = [sys.executable, "-W", "error", "-c", DRIVER]
    printed = subprocess.check_output(code, env=environ, text=True, stderr=subprocess.STDOUT)
    assert printed.splitlines()[-1] == used


def test_other_environments_leave_the_driver_alone(monkeypatch):
    monkeypatch.delenv("SDL_VIDEODRIVER")
    pettingzoo.make("support.fakes:VaryingLength")
    assert "SDL_VIDEODRIVER" not in os.environ
