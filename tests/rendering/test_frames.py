"""Which picture is taken, and what happens to one that cannot be."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from qmix_lightning.components import env_maker
from qmix_lightning.environment import register
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.rendering.battle import Unit, draw_battle
from qmix_lightning.rendering.frames import FrameRenderer, action_names, draws_itself, environment_that_draws
from qmix_lightning.rendering.particles import Particle, draw_particles
from qmix_lightning.rendering.tables import draw_payoffs
from qmix_lightning.vector.factory import make_vector_env
from support.fakes import VaryingLength
from support.pictures import drawn

RED = np.full((120, 200, 3), (250, 20, 30), np.uint8)


class Drawn(VaryingLength):
    """Brings a picture, and words for its actions."""

    action_names = ("wait", "run", "jump", "hide")
    picture = RED

    def render_frame(self):
        return self.picture


class Pixels(VaryingLength):
    """Renders as PettingZoo's environments do."""

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return RED


class Torn(Drawn):
    def render_frame(self):
        raise RuntimeError("no GL context")


class DrawsNothing(Drawn):
    def render_frame(self):
        return None


class ExitsWhileDrawing(Drawn):
    def render_frame(self):
        sys.exit(0)


class Shy(Drawn):
    def render_frame(self):
        raise NotImplementedError


def made(factory, **settings):
    return make_vector_env(factory, settings, num_envs=1, name="drawn")


def one_picture(env):
    shown = env.reset(torch.ones(1, dtype=torch.bool), torch.tensor([3]))
    return FrameRenderer(env)(shown, None)


def test_a_plugin_draws_itself():
    env = made(Drawn)
    assert np.array_equal(one_picture(env), RED)
    assert action_names(env) == [["wait", "run", "jump", "hide"]] * 3


def test_render_mode_is_asked_for_where_it_can_be():
    register("pixels_for_a_test", Pixels, overwrite=True)
    register("no_pixels_for_a_test", VaryingLength, overwrite=True)

    def make(section):
        return env_maker(section)(1)

    assert np.array_equal(one_picture(environment_that_draws({"name": "pixels_for_a_test"}, make)), RED)
    for other in ("no_pixels_for_a_test", "two_step"):
        env = environment_that_draws({"name": other}, make)
        assert draws_itself(env) is (other == "two_step")


def test_others_are_drawn_by_what_is_observed():
    env = made(VaryingLength)
    drawn(env, own=False)
    assert action_names(env)[0] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("factory", "why"),
    [(Torn, "no GL context"), (DrawsNothing, "it gave no picture"), (ExitsWhileDrawing, "SystemExit: 0")],
)
def test_one_that_cannot_draw_says_so_once_and_is_drawn_by_what_it_shows(factory, why, capsys):
    env = made(factory)
    shown = env.reset(torch.ones(1, dtype=torch.bool), torch.tensor([3]))
    draw = FrameRenderer(env)
    pictures = [draw(shown, None) for _ in range(3)]
    assert np.array_equal(pictures[0], one_picture(made(VaryingLength)))
    told = capsys.readouterr().err
    assert told.count(why) == 1
    one_picture(made(Shy))
    assert capsys.readouterr().err == "", "it has no picture, which is nothing to tell"


@pytest.mark.parametrize("picture", [RED.astype(np.float32), RED[..., 0], RED[:, :0], RED[..., :2]])
def test_what_is_no_picture_is_refused(picture, monkeypatch):
    monkeypatch.setattr(Drawn, "picture", picture)
    with pytest.raises(ConfigurationError, match=r"render_frame\(\) must return uint8"):
        one_picture(made(Drawn))


def test_transparency_is_dropped(monkeypatch):
    monkeypatch.setattr(Drawn, "picture", np.dstack([RED, RED[..., 0]]))
    assert np.array_equal(one_picture(made(Drawn)), RED)


def of_colour(picture, colour) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) < 12).sum())


def test_a_battle_shows_both_sides_health_shots_and_the_fallen():
    ours, theirs, full = (31, 110, 190), (200, 60, 50), (60, 170, 80)
    whole = [Unit(8, 16, True, "m1", 1.0), Unit(20, 16, False, "m1", 1.0)]
    picture = draw_battle(whole, 32, 32)
    assert of_colour(picture, ours) > 200
    assert of_colour(picture, theirs) > 200
    hurt = draw_battle([whole[0], Unit(20, 16, False, "m1", 0.5)], 32, 32)
    assert of_colour(hurt, full) < of_colour(picture, full)
    shot = draw_battle([Unit(8, 16, True, "m1", 1.0, target=1), whole[1]], 32, 32)
    assert of_colour(shot, ours) > of_colour(picture, ours) + 100
    fallen = draw_battle([whole[0], Unit(20, 16, False, "m1", 0.0)], 32, 32)
    assert of_colour(fallen, theirs) < of_colour(picture, theirs) / 2


def test_a_battle_without_survivors_is_drawn():
    assert draw_battle([Unit(8, 16, True, "m1", 0.0)], 32, 24).shape == (480, 720, 3)


def test_particles_far_away_are_in_the_picture():
    near, far = Particle(0, 0, 0.15, 0), Particle(6, -6, 0.15, 1)
    assert of_colour(draw_particles([near, far]), (214, 96, 20)) > 50


def test_payoffs_show_where_the_game_is_and_what_was_played():
    tables = [[[0.0, 1.0], [1.0, 8.0]]]
    green, yellow = (60, 150, 80), (255, 226, 150)
    at_start, over = draw_payoffs(["1"], tables, 0, None), draw_payoffs(["1"], tables, None, (0, 1, 1))
    assert of_colour(at_start, yellow) > 1000
    assert of_colour(at_start, green) == 0
    assert of_colour(over, green) > 1000
    assert of_colour(over, yellow) == 0
