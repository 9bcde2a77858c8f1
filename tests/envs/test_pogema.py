"""POGEMA: what this project adds to the package's lifelong task, on a grid of the test's own."""

from types import SimpleNamespace

import numpy as np
import pytest

from qmix_lightning.envs import pogema, smaclite
from qmix_lightning.envs.pogema import BOARDS, Lifelong, read_maps
from qmix_lightning.errors import ConfigurationError

RADIUS = 2
MAP = (
    "....",
    ".##.",
    ".##.",
    "....",
)
"""A ring, whose shortest paths are unlike straight ones."""
STAY, UP, DOWN, LEFT, RIGHT = range(5)
MOVES = {STAY: (0, 0), UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}


class Ring:
    """The parts of the package's game that the environment reads; places are counted from the border's corner."""

    def __init__(self, place: tuple[int, int], goal: tuple[int, int]) -> None:
        self.obstacles = np.pad(np.array([[field == "#" for field in line] for line in MAP], float), RADIUS)
        self.obstacles[:RADIUS] = self.obstacles[-RADIUS:] = 1
        self.obstacles[:, :RADIUS] = self.obstacles[:, -RADIUS:] = 1
        self.positions_xy, self.finishes_xy = [self.from_corner(place)], [self.from_corner(goal)]
        self.unwrapped = SimpleNamespace(grid=self)

    @staticmethod
    def from_corner(field: tuple[int, int]) -> tuple[int, int]:
        return field[0] + RADIUS, field[1] + RADIUS

    def get_obstacles(self) -> np.ndarray:
        return self.obstacles

    def observations(self) -> list[np.ndarray]:
        (row, column), seen = self.positions_xy[0], np.zeros((3, 5, 5))
        seen[0] = self.obstacles[row - RADIUS : row + RADIUS + 1, column - RADIUS : column + RADIUS + 1]
        seen[1, RADIUS, RADIUS] = 1
        return [seen]

    def reset(self):
        return self.observations(), {}

    def step(self, actions: list[int]):
        (row, column), (down, right) = self.positions_xy[0], MOVES[actions[0]]
        if not self.obstacles[row + down, column + right]:
            self.positions_xy = [(row + down, column + right)]
        return self.observations(), [float(self.positions_xy == self.finishes_xy)], [False], [False], [{}]


def lifelong(*, show_path: bool, progress_reward: float = 0.0, goal: tuple[int, int] = (3, 3)) -> Lifelong:
    return Lifelong(
        lambda *_: Ring((0, 0), goal), [], size=(4, 4), density=(0.0, 0.0), num_agents=1, obs_radius=RADIUS,
        max_steps=8, progress_reward=progress_reward, show_path=show_path, version="0",
    )  # fmt: skip


def test_the_shortest_path_is_shown_as_far_as_the_agent_sees():
    game = lifelong(show_path=True)
    ground, others = game.reset(seed=0)[0]["agent_0"]
    # From the corner both ways round are as short; down comes first. The path leaves the square two cells on.
    assert np.argwhere(ground == 1).tolist() == [[3, 2], [4, 2]]
    assert np.argwhere(ground == -1).tolist() == np.argwhere(Ring((0, 0), (3, 3)).observations()[0][0]).tolist()
    assert np.argwhere(others).tolist() == [[2, 2]]
    assert game.observation_space("agent_0").shape == (2, 5, 5)
    assert ground.min() >= game.observation_space("agent_0").low.min()


def test_the_path_ends_at_the_goal_and_is_none_at_it():
    shown = lifelong(show_path=True, goal=(0, 1)).reset(seed=0)[0]["agent_0"][0]
    assert np.argwhere(shown == 1).tolist() == [[2, 3]]
    at_it = lifelong(show_path=True, goal=(0, 0)).reset(seed=0)[0]["agent_0"][0]
    assert not (at_it == 1).any()


def test_following_the_path_reaches_the_goal_in_as_many_steps_and_is_paid_for_each():
    game = lifelong(show_path=True, progress_reward=0.05)
    seen, paid = game.reset(seed=0)[0]["agent_0"], []
    for _ in range(6):
        action = next(a for a, (down, right) in MOVES.items() if a and seen[0, RADIUS + down, RADIUS + right] == 1)
        observations, rewards, *_ = game.step({"agent_0": action})
        seen = observations["agent_0"]
        paid.append(rewards["agent_0"])
    assert paid == pytest.approx([0.05] * 5 + [1.05])


def test_without_it_observations_are_the_packages():
    seen = lifelong(show_path=False).reset(seed=0)[0]["agent_0"]
    assert np.array_equal(seen, Ring((0, 0), (3, 3)).observations()[0])


def test_throughput_is_told_at_the_limit_which_is_no_end_of_the_task():
    game = lifelong(show_path=False, goal=(0, 1))
    game.reset(seed=0)
    for _ in range(7):
        assert game.step({"agent_0": STAY})[4]["agent_0"] == {"throughput": 0.0}  # should a limit of ours end it here
    _, _, terminated, truncated, infos = game.step({"agent_0": RIGHT})
    assert (terminated["agent_0"], truncated["agent_0"], infos["agent_0"]) == (False, True, {"throughput": 1 / 8})
    assert game.agents == []


@pytest.mark.parametrize("board", BOARDS)
def test_each_board_has_its_128_maps(board):
    maps = read_maps(board)
    assert len(set(maps)) == 128
    assert {character for text in maps for character in text} == {".", "#", "\n"}


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (pogema.make, {"num_agents": 0}, "env.num_agents must be at least 1, not 0"),
        (pogema.make, {"obs_radius": -1}, "env.obs_radius must be at least 1, not -1"),
        (pogema.make, {"density": (0.1, 1.0)}, r"env.density must be two numbers from 0.0 to 0.9, not \[0.1, 1.0\]"),
        (pogema.make, {"board": "maze"}, "env.board must be one of random, mazes or null, not 'maze'"),
        (pogema.make, {"max_steps": 0}, "env.max_steps must be at least 1, not 0"),
        (smaclite.make, {"max_steps": 0}, "env.max_steps must be at least 1, not 0"),
    ],
)
def test_what_no_map_can_have_is_refused_before_the_package_is_looked_for(make, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**settings)
