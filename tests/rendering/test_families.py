"""A picture of every family here, without a display; those of JAX are with their environments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from qmix_lightning.components import env_maker
from qmix_lightning.envs import smac
from qmix_lightning.rendering.frames import FrameRenderer, action_names, environment_that_draws
from qmix_lightning.vector.factory import make_vector_env
from support import fake_smac
from support.pictures import drawn
from support.playing import CONF

KAZ = "pettingzoo.butterfly.knights_archers_zombies_v11"


@pytest.fixture(autouse=True)
def _no_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)


def opened(name: str, **changes):
    section = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | changes
    return environment_that_draws(section, lambda section: env_maker(section, evaluation=True)(1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages' own drawing
@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("two_step", {}, "1"),
        ("climbing", {}, "1"),
        ("mpe", {}, "left"),
        ("mpe", {"scenario": "simple_reference", "kwargs": {}}, "1"),
        ("lbf", {}, "north"),
        ("rware", {}, "forward"),
        ("overcooked", {}, "down"),
        ("magent2", {"team": ["red_*"]}, "1"),
        ("vmas", {}, "down"),
        ("gymnasium", {"id": "Foraging-8x8-2p-3f-v3"}, "north"),
        pytest.param("pettingzoo", {"id": KAZ}, "1", marks=pytest.mark.slow),
    ],
)
def test_it_draws_itself(name: str, changes: dict, word: str):
    env = opened(name, **changes)
    drawn(env)
    assert action_names(env)[0][1] == word
    env.close()


def test_starcraft_is_drawn_from_the_units_that_the_game_reports(monkeypatch):
    fake_smac.install(monkeypatch)
    env = make_vector_env(smac.make, {"map_name": "2s3z"}, num_envs=1, name="smac")
    shown = env.reset(torch.ones(1, dtype=torch.bool), torch.tensor([3]))
    picture = FrameRenderer(env)(shown, None)
    for colour in ((31, 110, 190), (200, 60, 50)):
        assert (np.abs(picture.astype(int) - colour).max(-1) < 12).sum() > 200, "both sides are there"
    env.close()


def test_a_game_of_three_is_drawn_by_what_is_observed(capsys):
    env = opened("matrix", payoff=np.arange(8.0).reshape(2, 2, 2).tolist())
    shown = env.reset(torch.ones(1, dtype=torch.bool), torch.tensor([3]))
    assert FrameRenderer(env)(shown, None).shape[1] == 640
    assert capsys.readouterr().err == ""
