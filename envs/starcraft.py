"""Adapt what SMAC and SMACv2 have in common: a StarCraft II game behind an environment that needs careful handling."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from gymnasium import spaces

from qmix_lightning.envs.starcraft_setup import explain, parse_flags, set_timeout
from qmix_lightning.errors import ConfigurationError, InvalidEpisodeError, RunError, StartupError
from qmix_lightning.rendering.battle import Unit, draw_battle
from qmix_lightning.runtime.text import error_line
from qmix_lightning.types import NO_OP
from qmix_lightning.worker.last_words import LastWords

__all__ = ["StarCraft"]

LAST_GAME_LOOP = 2**19
"""The game ends here, whatever is played, and its use of host memory grows all the way."""

_WITH_MEDIVACS = ("MMM", "terran_gen")
"""Here some units' targets are allies, under the action numbers that mean enemies to the others."""

_DEFAULT_STEP_MUL = 8
_BACK_OFF_S = 1.0

_log = logging.getLogger(__name__)


class StarCraft:
    """One game of StarCraft II as a PettingZoo ``ParallelEnv``.

    * Shapes come from ``get_env_info()``, which needs no game; nothing is launched before the first ``reset``.
    * The team has one reward (``metadata["shared_reward"]``). Dead units leave ``agents``; alive ones may never choose
      the no-op. A medivac's targets are its allies, everyone else's are enemies: the same action numbers.
    * ``truncated`` means the step limit, ``terminated`` a battle that was won or lost.
    * SMAC cannot be seeded for an episode: the game's seed is fixed when it is launched (here by the first ``reset``,
      unless ``seed`` is given) and its episodes follow one upon the other (``metadata["seeded"]`` is false). A run
      cannot be replayed exactly.
    * When the game dies or errors, SMAC relaunches it and reports ``(0, True, {})``, or observes units that are not
      there. Neither is an episode: :class:`InvalidEpisodeError`, or ``TimeoutError`` if that took as long as the game
      may take to answer. The next ``reset`` has a new game.
    * SMAC adds up its reward scale in the first episode of a game each time that is reset. So a ``reset`` after another
      one changes nothing (or, where seeds decide the teams, takes a new game), and so does one in a first episode.

    Whoever owns one must ``close()`` it in the end, also when a worker fails (``finally: close()``): the game is a
    process of its own and keeps running by itself otherwise.

    Args:
        new_game: creates the package's environment, given the game's seed; launches nothing.
        name: what messages call it.
        package: ``smac`` or ``smacv2``.
        seed: the game's seed; ``None``: that of the first ``reset``.
        step_mul: game loops in a joint step.
        obs_timestep_slack: values by which observations are longer than declared.
        obs_instead_of_state: the state is the observations, so they are longer there too.
        game_version: the version of the game that was asked for.
        save_replay: call ``save_replay()`` when an episode ends.
        timeout_s: the longest that the game may take to answer or to start; pysc2's own is 360.
        launch_attempts: how often one launch is tried; ports are not reserved and may be taken. If no game has ever
            started by then, the run ends.
        rebuild_after_steps: take a new game, between episodes, after so many joint steps; ``None``: at half of what the
            game can do.
    """

    def __init__(
        self,
        new_game: Callable[[int | None], Any],
        *,
        name: str,
        package: str,
        seed: int | None,
        step_mul: int | None,
        obs_timestep_slack: int,
        obs_instead_of_state: bool,
        game_version: str | None,
        save_replay: bool,
        timeout_s: int,
        launch_attempts: int,
        rebuild_after_steps: int | None,
    ) -> None:
        if timeout_s < 1 or launch_attempts < 1 or (rebuild_after_steps is not None and rebuild_after_steps < 1):
            raise ConfigurationError(
                f"timeout_s ({timeout_s}), launch_attempts ({launch_attempts}) and rebuild_after_steps "
                f"({rebuild_after_steps}) must be at least 1"
            )
        self._new_game = new_game
        self._name = name
        self._package = package
        self._seed = seed
        self._save_replay = save_replay
        self._timeout_s = timeout_s
        self._launch_attempts = launch_attempts
        self._game: Any = new_game(seed)
        info = self._game.get_env_info()
        self._n = n = int(info["n_agents"])
        self._slack = obs_timestep_slack
        self._obs_size = int(info["obs_shape"]) + obs_timestep_slack
        self._state_size = int(info["state_shape"]) + (n * obs_timestep_slack if obs_instead_of_state else 0)
        self._n_actions = int(info["n_actions"])
        self.episode_limit = int(info["episode_limit"])
        self.possible_agents = [f"agent_{i}" for i in range(n)]
        self.agents: list[str] = []
        self._slot = {agent: i for i, agent in enumerate(self.possible_agents)}
        self._observation_space = spaces.Box(-np.inf, np.inf, (self._obs_size,), np.float32)
        self._action_space = spaces.Discrete(self._n_actions)
        self.state_space = spaces.Box(-np.inf, np.inf, (self._state_size,), np.float32)
        half_a_game = LAST_GAME_LOOP // 2 // (step_mul or _DEFAULT_STEP_MUL)
        self.rebuild_after_steps = rebuild_after_steps or half_a_game
        self.steps_since_launch = 0
        self._game_version = game_version
        self._missing: str | None = None  # what a launch would say, as far as that can be told without one
        self.metadata: dict[str, Any] = {
            "name": name,
            "shared_reward": True,
            "episode_metrics": ("won", "dead_allies", "dead_enemies"),
            "rebuild_after_steps": self.rebuild_after_steps,
            "seeded": False,
            "versions": self.versions(),
            "missing": self._missing,
            "obs_entities": self._entities(),
        }
        self._launched = False
        self._finished = 0  # episodes that this game has played to their end
        self._untouched = False  # reset, and no step since
        self._episode_seed: int | None = None
        self._broken = False
        self._closed = False

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._observation_space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._action_space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        """Start an episode; return observations and infos by agent. Launches the game where needed.

        Raises:
            ConfigurationError: the game, its version or the map is missing.
            StartupError: the game could not be launched; the message has the last that it wrote.
            InvalidEpisodeError: the game failed; reset again for a new one.
        """
        if self._closed:
            raise RunError(f"{self._name} was closed; make a new one instead of resetting it")
        if not (self._untouched and self.starts_alike(seed, self._episode_seed)):
            if self._launched and (
                self._broken or self._finished == 0 or self.steps_since_launch >= self.rebuild_after_steps
            ):
                self.rebuild()
            self._begin(seed)
            self._untouched, self._episode_seed = True, seed
        masks = self._avail()
        self.agents = [agent for agent, mask in zip(self.possible_agents, masks) if not mask[NO_OP]]
        return self._observations(), self._infos(masks)

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Take a joint step; return observations, rewards, terminations, truncations and infos by agent.

        Raises:
            InvalidEpisodeError: the game failed, and the episode with it; reset for a new game.
            TimeoutError: so it did, by not answering in time.
        """
        acted = self.agents
        if self._game is None or not acted:
            raise RunError(f"{self._name}: reset it before stepping")
        joint = [NO_OP] * self._n
        for agent in acted:
            joint[self._slot[agent]] = int(actions[agent])
        self._untouched = False
        begun = time.monotonic()
        try:
            reward, over, info = self._game.step(joint)
        except AssertionError:
            raise  # an illegal action
        except Exception as error:
            self._broken, self.agents = True, []
            raise self._failure(f"the game failed in a step: {error_line(error)}", begun) from error
        if over and not info:
            self._broken, self.agents = True, []
            raise self._failure("the game had to be relaunched in the middle of an episode", begun)
        self.steps_since_launch += 1
        masks = self._avail()
        alive = {agent: not masks[self._slot[agent]][NO_OP] for agent in acted}
        timed_out = bool(over and info.get("episode_limit", False))
        terminations = {agent: not alive[agent] or bool(over and not timed_out) for agent in acted}
        truncations = {agent: timed_out and alive[agent] for agent in acted}
        infos = self._infos(masks)
        # In every step: env.episode_limit may end the episode sooner than the game would.
        dead = {name: float(info[name]) for name in ("dead_allies", "dead_enemies")}
        infos[self.possible_agents[0]].update(won=float(info["battle_won"]), **dead)
        if over:
            self._finished += 1
            self._write_replay()
        self.agents = [] if over else [agent for agent in acted if alive[agent]]
        return self._observations(), dict.fromkeys(acted, float(reward)), terminations, truncations, infos

    def _failure(self, what: str, begun: float) -> Exception:
        """Return the error of a step that began at ``begun``; SMAC does not tell a hang from other failures."""
        if time.monotonic() - begun >= self._timeout_s:
            return TimeoutError(f"{self._name}: the game did not answer within {self._timeout_s} s; {what}")
        return InvalidEpisodeError(f"{self._name}: {what}")

    def state(self) -> np.ndarray:
        """Return the global state ``[S]``."""
        return self._vector(self._game.get_state(), self._state_size)

    def render_frame(self) -> np.ndarray:
        """Return a picture of the battle, drawn from the units that the game reports."""
        core = self.core(self._game)
        units = [_seen(unit, i, side == "agents") for side in ("agents", "enemies") for i, unit in _units(core, side)]
        return draw_battle(units, float(core.map_x), float(core.map_y))

    def rebuild(self) -> None:
        """End the game; the next ``reset`` launches a new one."""
        game, self._game = self._game, None
        self._launched = self._broken = self._untouched = False
        self._finished = self.steps_since_launch = 0
        self.agents = []
        if game is not None:
            try:
                game.close()
            except Exception as error:  # a game that is broken may fail here too, and is to be replaced all the same
                _log.warning("%s: closing the game failed: %s", self._name, error_line(error))

    def close(self) -> None:
        """End the game for good; may be called twice."""
        self._closed = True
        self.rebuild()

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages and the game's build, as far as they are known.

        Results of two builds are not comparable.
        """
        found = {}
        for distribution in (self._package, "pysc2"):
            try:
                found[distribution] = version(distribution)
            except PackageNotFoundError:
                continue
        try:
            run_configs: Any = importlib.import_module("pysc2.run_configs")
            parse_flags()
            game = run_configs.get(version=self._game_version).version
            # pysc2 calls the newest that is there "latest", which will be another one tomorrow.
            named = "" if game.game_version == "latest" else f"{game.game_version} "
            found["StarCraft II"] = f"{named}(build {game.build_version})".strip()
        except Exception as error:  # not installed, perhaps: reported when it is launched
            self._missing = explain(error, self._name, self._package)
            _log.debug("%s: the game's build is unknown: %s", self._name, error_line(error))
        return found

    def _entities(self) -> list[dict[str, Any]]:
        """Return the blocks of enemies and allies in an observation, in the package's own sizes; zeros out of sight."""
        core = self.core(self._game)
        try:
            sizes = {name: getattr(core, f"get_obs_{name}_feats_size")() for name in ("enemy", "ally")}
            start = int(core.get_obs_move_feats_size())
        except AttributeError:  # a version without these functions
            return []
        blocks: list[dict[str, Any]] = []
        for name, (count, size) in sizes.items():
            if count:
                blocks.append({"name": name, "start": start, "count": int(count), "size": int(size)})
            start += int(count) * int(size)
        if blocks and core.map_type not in _WITH_MEDIVACS:
            blocks[0]["first_action"] = int(core.n_actions_no_attack)
        return blocks

    # What SMACv2 does otherwise ---------------------------------------------------------------------------------

    def starts_alike(self, seed: int | None, other: int | None) -> bool:
        """Return whether a fresh episode of seed ``other`` may stand for one of ``seed``."""
        return True

    def prepare(self, game: Any, seed: int | None) -> AbstractContextManager[Any]:
        """Prepare ``game`` before each episode; return a context that is held while the episode is set up."""
        return nullcontext()

    def core(self, game: Any) -> Any:
        """Return the ``StarCraft2Env`` itself."""
        return game

    # The game ---------------------------------------------------------------------------------------------------

    def _begin(self, seed: int | None) -> None:
        """Start an episode, with a launch if this is the game's first."""
        attempt = 1
        while True:
            first = not self._launched
            if first:
                set_timeout(self._timeout_s)
                if self._game is None or self._seed is None:
                    self._game = self._new_game(self._seed if self._seed is not None else seed)
            game, core = self._game, self.core(self._game)
            restarts, scale = core.force_restarts, core.max_reward
            self._launched = True
            words: LastWords | None = None
            try:
                with self.prepare(game, seed), _listening() if first else nullcontext() as words:
                    game.reset()
            except KeyError as error:
                self.rebuild()
                raise InvalidEpisodeError(
                    f"{self._name}: the game failed at its first observation (no unit {error})"
                ) from error
            except Exception as error:
                self.rebuild()
                if reason := explain(error, self._name, self._package):
                    raise ConfigurationError(reason) from error
                if not first:
                    raise InvalidEpisodeError(
                        f"{self._name}: the game failed to start an episode: {error_line(error)}"
                    ) from error
                if attempt == self._launch_attempts:
                    raise StartupError(
                        f"{self._name}: the game could not be launched in {attempt} attempts: {error_line(error)}"
                        f"{words.shown() if words else ''}"
                    ) from error
                _log.warning("%s: launch %d failed: %s", self._name, attempt, error_line(error))
                time.sleep(_BACK_OFF_S * attempt)
                attempt += 1
                continue
            if core.force_restarts != restarts:
                # It was relaunched on the way: what is observed now may be the units of the episode before.
                self.rebuild()
                raise InvalidEpisodeError(f"{self._name}: the game had to be relaunched while an episode started")
            if first:
                _settle_reward_scale(core, scale)
            return

    def _write_replay(self) -> None:
        if not self._save_replay:
            return
        try:
            self._game.save_replay()
        except Exception as error:
            _log.warning("%s: the replay was not saved: %s", self._name, error_line(error))

    def _avail(self) -> list[np.ndarray]:
        # One by one: the wrapper of SMACv2 breaks on the call that asks for all.
        return [np.asarray(self._game.get_avail_agent_actions(i), np.bool_) for i in range(self._n)]

    def _infos(self, masks: list[np.ndarray]) -> dict[str, dict[str, Any]]:
        return {agent: {"action_mask": mask} for agent, mask in zip(self.possible_agents, masks)}

    def _observations(self) -> dict[str, np.ndarray]:
        values = self._game.get_obs()
        return {a: self._vector(v, self._obs_size) for a, v in zip(self.possible_agents, values)}

    def _vector(self, values: Any, size: int) -> np.ndarray:
        """Return ``values`` as float32 (SMAC mixes precisions)."""
        vector = np.asarray(values, np.float32).ravel()
        if self._slack and vector.size < size:  # a version that declares what it delivers
            vector = np.pad(vector, (0, size - vector.size))
        return vector


@contextmanager
def _listening() -> Generator[LastWords]:
    """Keep the end of what is written to the standard error meanwhile, by what is launched too; it is shown as well."""
    words = LastWords()
    before = os.dup(2)
    os.dup2(words.descriptor, 2)
    words.release()
    try:
        yield words
    finally:
        os.dup2(before, 2)
        os.close(before)


def _settle_reward_scale(core: Any, before: float) -> None:
    """Set the reward scale to what one look at the enemies gives.

    While units are still appearing, SMAC looks again and adds those it has seen a second time.
    """
    try:
        scale = before + sum(unit.health_max + unit.shield_max for unit in core.enemies.values())
    except AttributeError:
        return
    if abs(core.max_reward - scale) > 1e-6:
        core.max_reward = scale


def _units(core: Any, side: str) -> list[tuple[int, Any]]:
    return sorted(getattr(core, side).items())


def _seen(unit: Any, number: int, ours: bool) -> Unit:
    """Return a unit of the game as it is drawn."""
    shield = unit.shield / unit.shield_max if unit.shield_max else None
    health = unit.health / unit.health_max
    return Unit(unit.pos.x, unit.pos.y, ours, str(number), health, shield, radius=0.6)
