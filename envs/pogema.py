"""Create lifelong path-finding tasks (package ``pogema``): agents on a grid walk to one goal after another.

pogema pins versions of its dependencies that do not go with this project's, so it lives in a Python of its own
(``rollout.python``); this file keeps to numpy and to the syntax of Python 3.8.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

import numpy as np

from qmix_lightning.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    Cell = tuple[int, int]  # row and column

__all__ = ["Lifelong", "make"]

BOARDS = ("random", "mazes")


class Box:
    """A space of arrays of numbers."""

    def __init__(self, low: float, high: float, shape: tuple[int, ...]) -> None:
        self.low, self.high, self.shape = np.full(shape, low, np.float32), np.full(shape, high, np.float32), shape
        self.dtype = np.dtype(np.float32)


class Discrete:
    """A space of whole numbers from zero."""

    def __init__(self, n: int) -> None:
        self.n = n


class Lifelong:
    """A ``ParallelEnv`` of the package's lifelong task; each episode is on a map of its own.

    * An agent sees the square around it: obstacles, other agents, and the direction of its goal, which is shown at the
      border when it is farther away: ``[3, 2 r + 1, 2 r + 1]``. The state is each agent's place and goal, as shares of
      the map.
    * With ``show_path`` it sees obstacles as -1 and the shortest path to its goal as 1, and other agents:
      ``[2, 2 r + 1, 2 r + 1]``, after the preprocessing of Follower (Skrynnik et al. 2024), whose planner knows the
      whole map; here the path does not avoid crowded cells, and other agents do not block it.
    * A goal reached pays its agent 1 and is replaced by another one. ``throughput``, at the end of an episode: goals
      that the team reached, a step; it is what the board publishes.
    * The limit of steps is a truncation: the task goes on for ever.

    Args:
        create: makes the package's environment for a map (``None``: obstacles by chance), its size, its density of
            obstacles and a seed.
        maps: of which an episode takes one by its seed; none: obstacles by chance.
        size, density: lowest and highest of maps that are made by chance.
        num_agents, obs_radius, max_steps: of the task.
        progress_reward: paid for each step nearer to the goal on the shortest path, taken for each step away from it.
        show_path: whether an agent is shown that path.
        version: of the package.
    """

    def __init__(
        self,
        create: Any,
        maps: Sequence[str],
        *,
        size: Sequence[int],
        density: Sequence[float],
        num_agents: int,
        obs_radius: int,
        max_steps: int,
        progress_reward: float,
        show_path: bool,
        version: str,
    ) -> None:
        self._create, self._maps, self._size, self._density = create, maps, size, density
        self._progress_reward, self._show_path = progress_reward, show_path
        self._radius = obs_radius
        self.max_steps = max_steps
        self.metadata = {"name": "pogema", "episode_metrics": ("throughput",), "versions": {"pogema": version}}
        self.possible_agents = [f"agent_{i}" for i in range(num_agents)]
        width = 2 * obs_radius + 1
        self._observation_space = Box(-1, 1, (2, width, width)) if show_path else Box(0, 1, (3, width, width))
        self._action_space = Discrete(5)
        self.state_space = Box(0, 1, (4 * num_agents,))
        self._game: Any = None

    def observation_space(self, agent: str) -> Box:
        return self._observation_space

    def action_space(self, agent: str) -> Discrete:
        return self._action_space

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the episode of ``seed``, which decides the map, the places and the goals."""
        rng = np.random.RandomState(seed)
        chosen = self._maps[rng.randint(len(self._maps))] if self._maps else None
        size = int(rng.randint(self._size[0], self._size[1] + 1))
        density = float(rng.uniform(self._density[0], self._density[1]))
        # The package's own reset does not seed: its configuration does.
        self._game = self._create(chosen, size, density, int(rng.randint(2**31 - 1)))
        observations, _ = self._game.reset()
        self._grid = self._game.unwrapped.grid
        self._free = self._grid.get_obstacles() == 0
        self._neighbours = _neighbours_of(self._free)
        self._steps, self._reached = 0, 0
        self.agents = list(self.possible_agents)
        self._to_goal: list[dict[Cell, int]] = [{} for _ in self.agents]
        self._goals: list[Any] = [None] * len(self.agents)
        self._before = self._remaining()
        return self._by_agent(observations), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[dict[str, Any], ...]:
        """Take a joint step; agents of which no action is given stay where they are."""
        given = [int(actions.get(agent, 0)) for agent in self.possible_agents]
        observations, rewards, _, _, _ = self._game.step(given)
        self._steps += 1
        self._reached += int(sum(rewards))
        paid = [float(reward) for reward in rewards]
        if self._progress_reward:
            now = self._remaining()
            for i, reward in enumerate(rewards):
                # Towards a goal that was reached, what remained was one step.
                nearer = 1.0 if reward else self._before[i] - now[i]
                paid[i] += self._progress_reward * nearer
            self._before = now
        over = self._steps >= self.max_steps
        agents = self.possible_agents
        # In every step: env.episode_limit may end the episode sooner.
        infos = {agent: {"throughput": self._reached / self._steps} for agent in agents}
        self.agents = [] if over else list(agents)
        return (
            self._by_agent(observations),
            dict(zip(agents, paid)),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            infos,
        )

    def state(self) -> np.ndarray:
        """Return each agent's place and goal as shares of the map, ``[4 N]`` float32."""
        radius = self._radius
        places = np.array([*self._grid.positions_xy, *self._grid.finishes_xy], np.float32) - radius
        sides = np.array(self._free.shape, np.float32) - 2 * radius
        pairs = (places / sides).reshape(2, -1, 2).transpose(1, 0, 2)  # [N, place and goal, 2]
        return np.ascontiguousarray(pairs, np.float32).reshape(-1)

    def render(self) -> np.ndarray:
        """Return the grid as a picture of 12 x 12 points a field: agents in colours, their goals as rings."""
        inside = slice(self._radius, -self._radius)
        free = self._free[inside, inside]
        picture = np.where(free[..., None], 245, 60).astype(np.uint8).repeat(3, axis=2).repeat(12, 0).repeat(12, 1)
        for i, (place, goal) in enumerate(zip(self._grid.positions_xy, self._grid.finishes_xy)):
            colour = _colour(i, len(self.possible_agents))
            (row, column), (goal_row, goal_column) = [(x - self._radius, y - self._radius) for x, y in (place, goal)]
            ring = picture[goal_row * 12 + 1 : goal_row * 12 + 11, goal_column * 12 + 1 : goal_column * 12 + 11]
            ring[:2], ring[-2:], ring[:, :2], ring[:, -2:] = colour, colour, colour, colour
            picture[row * 12 + 3 : row * 12 + 9, column * 12 + 3 : column * 12 + 9] = colour
        return picture

    def close(self) -> None:
        """Do nothing: there is no process behind it."""

    def _by_agent(self, observations: Sequence[Any]) -> dict[str, Any]:
        seen = [np.asarray(observation, np.float32) for observation in observations]
        if self._show_path:
            seen = [self._with_path(i, observation) for i, observation in enumerate(seen)]
        return dict(zip(self.possible_agents, seen))

    def _with_path(self, i: int, observation: np.ndarray) -> np.ndarray:
        """Return what agent ``i`` sees with the shortest path to its goal, as far as that lies in its square."""
        seen, radius = observation[:2].copy(), self._radius
        ground = seen[0]
        ground *= -1.0
        distances, cell = self._distances(i), self._grid.positions_xy[i]
        top, left = cell[0] - radius, cell[1] - radius
        for distance in range(distances[cell] - 1, -1, -1):
            cell = next(neighbour for neighbour in self._neighbours[cell] if distances[neighbour] == distance)
            row, column = cell[0] - top, cell[1] - left
            if not (0 <= row < len(ground) and 0 <= column < len(ground)):
                break
            ground[row, column] = 1.0
        return seen

    def _distances(self, i: int) -> dict[Cell, int]:
        goal = self._grid.finishes_xy[i]
        if self._goals[i] != goal:
            self._goals[i], self._to_goal[i] = goal, _distances_to(goal, self._neighbours)
        return self._to_goal[i]

    def _remaining(self) -> list[int]:
        """Return each agent's distance to its goal past obstacles, others not counted."""
        return [self._distances(i)[place] for i, place in enumerate(self._grid.positions_xy)]


def _colour(i: int, count: int) -> np.ndarray:
    """Return one of ``count`` colours of equal lightness."""
    angle = 2.0 * np.pi * (i / count + np.array([0.0, 1.0, 2.0]) / 3.0)
    return (128.0 + 100.0 * np.cos(angle)).astype(np.uint8)


def _neighbours_of(free: np.ndarray) -> dict[Cell, list[Cell]]:
    """Return the free cells next to each free cell, up, down, left and right of it in this order."""
    cells = {(row, column) for row, column in np.argwhere(free).tolist()}
    found: dict[Cell, list[Cell]] = {}
    for row, column in cells:
        around = (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)
        found[row, column] = [cell for cell in around if cell in cells]
    return found


def _distances_to(goal: Cell, neighbours: Mapping[Cell, Sequence[Cell]]) -> dict[Cell, int]:
    """Return the distance to ``goal`` of every cell from which it can be reached: a breadth-first search."""
    distances = {goal: 0}
    for cell in (queue := [goal]):
        for neighbour in neighbours[cell]:
            if neighbour not in distances:
                distances[neighbour] = distances[cell] + 1
                queue.append(neighbour)
    return distances


def make(
    board: str | None = None,
    num_agents: int = 8,
    size: Sequence[int] = (17, 21),
    density: Sequence[float] = (0.1, 0.3),
    max_steps: int = 256,
    obs_radius: int = 5,
    collision_system: str = "soft",
    progress_reward: float = 0.0,
    show_path: bool = False,
) -> Lifelong:
    """Create the lifelong task, on maps by chance or on those of the published board.

    Args:
        board: ``random`` or ``mazes``: each episode takes one of the board's 128 maps; ``null``: maps by chance.
        num_agents: how many walk.
        size: lowest and highest side of maps by chance.
        density: lowest and highest share of obstacles of maps by chance.
        max_steps: of an episode; the board's are 256 on random maps and 128 in mazes.
        obs_radius: how far an agent sees.
        collision_system: what happens when two want the same cell: ``soft``, ``priority`` or ``block_both``.
        progress_reward: paid beside the goals for each step nearer on the shortest path; 0 in what the board publishes.
        show_path: whether observations show each agent the shortest path to its goal over the whole map.
    """
    if board is not None and board not in BOARDS:
        raise ConfigurationError(f"env.board must be one of {', '.join(BOARDS)} or null, not '{board}'")
    for name, bounds, lowest, highest in (("size", size, 3, 512), ("density", density, 0.0, 0.9)):
        if len(bounds) != 2 or not lowest <= bounds[0] <= bounds[1] <= highest:
            raise ConfigurationError(f"env.{name} must be two numbers from {lowest} to {highest}, not {list(bounds)}")
    for name, value in (("num_agents", num_agents), ("max_steps", max_steps), ("obs_radius", obs_radius)):
        if value < 1:
            raise ConfigurationError(f"env.{name} must be at least 1, not {value}")
    if importlib.util.find_spec("pogema") is None:
        raise MissingDependencyError(
            "environment 'pogema' needs the package 'pogema', which wants a Python of its own: "
            "pip install pogema==1.4.0 there, and rollout.python=PATH here"
        )
    from importlib.metadata import version

    package: Any = importlib.import_module("pogema")
    make_game: Any = importlib.import_module("pogema.envs")._make_pogema

    def create(text: str | None, side: int, share: float, seed: int) -> Any:
        return make_game(
            package.GridConfig(
                map=text,
                size=side,
                density=share,
                seed=seed,
                num_agents=num_agents,
                obs_radius=obs_radius,
                collision_system=collision_system,
                max_episode_steps=max_steps + 1,  # the end is this class's own, so that it cannot reset itself
                on_target="restart",
                observation_type="default",
            )
        )

    return Lifelong(
        create,
        read_maps(board) if board else [],
        size=size,
        density=density,
        num_agents=num_agents,
        obs_radius=obs_radius,
        max_steps=max_steps,
        progress_reward=progress_reward,
        show_path=show_path,
        version=version("pogema"),
    )


def read_maps(board: str) -> list[str]:
    """Return the maps of a board, lines of dots and hashes each; the file is read without a package for YAML."""
    text = (Path(__file__).parent / "maps" / f"pogema_{board}.yaml").read_text()
    blocks = re.split(r'^"[\w-]+": \|-\n', text, flags=re.MULTILINE)[1:]
    return ["\n".join(line.strip() for line in block.splitlines() if line.strip()) for block in blocks]
