"""Stand-ins for SMAC, SMACv2 and pysc2: their documented behaviour and every trap of it, without a game.

``install(monkeypatch)`` puts them into ``sys.modules``. ``SERVER`` is the machine that games run on: it knows which
games run, and plays the faults it is told to.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class ProtocolError(Exception):
    """The game answered with an error."""


class LaunchError(Exception):
    """pysc2's SC2LaunchError, by another name in the traceback only."""


LaunchError.__name__ = "SC2LaunchError"


class NoMapError(Exception):
    """pysc2 does not know a map."""


@dataclass
class Game:
    """A running game process."""

    loops: int = 0
    running: bool = True
    seed: int | None = None

    def close(self) -> None:
        self.running = False


@dataclass
class Server:
    """Where games run. Faults are played once each, in the order given."""

    games: list[Game] = field(default_factory=list)
    launch_errors: deque[Exception] = field(default_factory=deque)
    observe_errors: deque[int] = field(default_factory=deque)  # at which first observations (counted from 1) to fail
    step_errors: deque[int] = field(default_factory=deque)  # at which steps (counted from 1) to fail
    late_units: int = 0  # looks at the start of an episode before the last enemy is there
    replays: list[str] = field(default_factory=list)
    first_observations: int = 0
    steps: int = 0
    ended: list[int] = field(default_factory=list)  # steps of every episode that was played to its end
    spawned: list[dict[str, Any]] = field(default_factory=list)  # SMACv2: what each episode was given

    @property
    def running(self) -> int:
        return sum(game.running for game in self.games)


SERVER = Server()

# Allies, enemies, limit, race of the allies, of the enemies, unit types, map type.
_MAPS: dict[str, tuple[int, int, int, str, str, int, str]] = {
    "3m": (3, 3, 60, "T", "T", 0, "marines"),
    "8m": (8, 8, 120, "T", "T", 0, "marines"),
    "8m_vs_9m": (8, 9, 120, "T", "T", 0, "marines"),
    "2s3z": (5, 5, 120, "P", "P", 2, "stalkers_and_zealots"),
    "3s5z": (8, 8, 150, "P", "P", 2, "stalkers_and_zealots"),
    "1c3s5z": (9, 9, 180, "P", "P", 3, "colossi_stalkers_zealots"),
    "3s_vs_5z": (3, 5, 250, "P", "P", 0, "stalkers"),
    "6h_vs_8z": (6, 8, 150, "Z", "P", 0, "hydralisks"),
    "corridor": (6, 24, 400, "P", "Z", 0, "zealots"),
    "5m_vs_6m": (5, 6, 70, "T", "T", 0, "marines"),
    "3s5z_vs_3s6z": (8, 9, 170, "P", "P", 2, "stalkers_and_zealots"),
    "MMM": (10, 10, 150, "T", "T", 3, "MMM"),
    "MMM2": (10, 12, 180, "T", "T", 3, "MMM"),
    "27m_vs_30m": (27, 30, 180, "T", "T", 0, "marines"),
    "2c_vs_64zg": (2, 64, 400, "P", "Z", 0, "colossus"),
}
_MAPS_V2 = {f"10gen_{race}": (10, 10, 200, race[0].upper(), race[0].upper(), 3, f"{race}_gen") for race in
            ("protoss", "terran", "zerg")}  # fmt: skip
_REACH, _WIDTH = 4.0, 16.0


class _StarCraft2:
    """A battle on a line: units walk, and shoot what is within reach. Health 45, 9 for a shot, enemies shoot too."""

    n_actions_no_attack = 6
    maps = _MAPS

    def _set_up(self, settings: dict[str, Any], n_agents: int | None = None, n_enemies: int | None = None) -> None:
        allies, enemies, limit, race, enemy_race, types, kind = self.maps[settings["map_name"]]
        self.settings = SimpleNamespace(**settings)
        self.n_agents, self.n_enemies = n_agents or allies, n_enemies or enemies
        self.episode_limit = limit
        self.map_x, self.map_y = 32, 32
        self.map_type = kind
        self._shields = (int(race == "P"), int(enemy_race == "P"))
        self._types = types
        self.n_actions = self.n_actions_no_attack + self.n_enemies
        self.max_reward = self.n_enemies * self.settings.reward_death_value + self.settings.reward_win
        self.force_restarts = 0
        self.agents: dict[int, Any] = {}
        self.enemies: dict[int, Any] = {}
        self._episode_count = self._episode_steps = 0
        self._game: Game | None = None
        self._last = np.zeros((self.n_agents, self.n_actions))

    # The game process

    def _launch(self) -> None:
        if SERVER.launch_errors:
            raise SERVER.launch_errors.popleft()
        self._game = Game(seed=self.settings.seed)  # one that runs already is forgotten, and goes on
        SERVER.games.append(self._game)

    def full_restart(self) -> None:
        assert self._game is not None
        self._game.close()
        self._launch()
        self.force_restarts += 1

    def close(self) -> None:
        if self._game:
            self._game.close()

    def _advance(self, loops: int | None) -> None:
        assert self._game is not None
        self._game.loops += loops or 1
        if self._game.loops >= 2**19:
            raise ProtocolError("Game has already ended")

    def _observe_first(self) -> None:
        SERVER.first_observations += 1
        if SERVER.observe_errors and SERVER.observe_errors[0] == SERVER.first_observations:
            SERVER.observe_errors.popleft()
            raise ProtocolError("observation failed")

    # Episodes

    def _start(self) -> None:
        self._episode_steps = 0
        if self._episode_count == 0:
            self._launch()
        else:
            try:
                self._advance(2)
            except ProtocolError:
                self.full_restart()
        self._last = np.zeros((self.n_agents, self.n_actions))
        try:
            self._observe_first()
            self._spawn()
        except ProtocolError:
            self.full_restart()

    def _spawn(self) -> None:
        for look in range(SERVER.late_units + 1):
            there = self.n_enemies - (look < SERVER.late_units)
            self.agents = {i: _unit(self, i, 0.0 + i % 3) for i in range(self.n_agents)}
            self.enemies = {i: _unit(self, i, 6.0 + i % 3, enemy=True) for i in range(there)}
            if self._episode_count == 0:
                for enemy in self.enemies.values():
                    self.max_reward += enemy.health_max + enemy.shield_max
            if there == self.n_enemies:
                return
            self._advance(1)

    def step(self, actions: list[int]) -> tuple[float, bool, dict[str, Any]]:
        actions = [int(a) for a in actions]
        for i, action in enumerate(actions):
            assert self.get_avail_agent_actions(i)[action] == 1, f"Agent {i} cannot perform action {action}"
        self._last = np.eye(self.n_actions)[actions]
        SERVER.steps += 1
        try:
            if SERVER.step_errors and SERVER.step_errors[0] == SERVER.steps:
                SERVER.step_errors.popleft()
                raise ProtocolError("no answer")
            self._advance(self.settings.step_mul)
        except ProtocolError:
            self.full_restart()
            return 0, True, {}
        self._episode_steps += 1
        damage = self._fight(actions)
        dead = [sum(u.health == 0 for u in side.values()) for side in (self.agents, self.enemies)]
        info: dict[str, Any] = {"battle_won": False, "dead_allies": dead[0], "dead_enemies": dead[1]}
        reward, over = float(damage), False
        if dead[1] == self.n_enemies or dead[0] == self.n_agents:
            over = True
            if dead[1] == self.n_enemies:
                info["battle_won"] = True
                reward += self.settings.reward_win
        elif self._episode_steps >= self.episode_limit:
            over = True
            if self.settings.continuing_episode:
                info["episode_limit"] = True
        self._episode_count += over
        if over:
            SERVER.ended.append(self._episode_steps)
        return reward / (self.max_reward / self.settings.reward_scale_rate), over, info

    def _fight(self, actions: list[int]) -> float:
        earned = 0.0
        for i, action in enumerate(actions):
            unit = self.agents[i]
            if action in (4, 5):
                unit.x += self.settings.move_amount * (1 if action == 4 else -1)
                unit.pos.x = unit.x
            elif action >= 6 and self._heals(unit):
                self.agents[action - 6].health = 45.0
            elif action >= 6:
                target = self.enemies[action - 6]
                hit = min(9.0, target.health)
                target.health -= hit
                earned += hit + (10 if hit and target.health == 0 else 0)
        for enemy in self.enemies.values():
            near = [u for u in self.agents.values() if u.health > 0 and abs(u.x - enemy.x) <= _REACH]
            if enemy.health > 0 and near:
                near[0].health = max(0.0, near[0].health - 6.0)
        return earned

    def _heals(self, unit: Any) -> bool:
        return self.map_type == "MMM" and unit.number == self.n_agents - 1

    # What is seen

    def get_avail_agent_actions(self, agent_id: int) -> list[int]:
        unit = self.agents[agent_id]  # KeyError where nothing was observed
        if unit.health == 0:
            return [1] + [0] * (self.n_actions - 1)
        east, west = unit.x + 2 <= _WIDTH, unit.x - 2 >= 0
        legal = [0, 1, 0, 0, int(east), int(west)] + [0] * self.n_enemies
        targets = self.agents if self._heals(unit) else self.enemies
        for i, target in targets.items():
            if target is not unit and target.health > 0 and abs(target.x - unit.x) <= _REACH:
                legal[6 + i] = 1
        return legal

    def get_avail_actions(self) -> list[list[int]]:
        return [self.get_avail_agent_actions(i) for i in range(self.n_agents)]

    def _obs_parts(self) -> tuple[int, int, int, int]:
        s = self.settings
        health = (1 + self._shields[0] if s.obs_all_health else 0, 1 + self._shields[1] if s.obs_all_health else 0)
        ally = 4 + self._types + health[0] + (self.n_actions if s.obs_last_action else 0)
        enemy = 4 + self._types + health[1]
        move = 4 + (8 if s.obs_pathing_grid else 0) + (9 if s.obs_terrain_height else 0)
        own = self._types + 1 + self._shields[0]
        return move, enemy * self.n_enemies, ally * (self.n_agents - 1), own

    def get_obs_move_feats_size(self) -> int:
        return self._obs_parts()[0]

    def get_obs_enemy_feats_size(self) -> tuple[int, int]:
        return self.n_enemies, self._obs_parts()[1] // self.n_enemies

    def get_obs_ally_feats_size(self) -> tuple[int, int]:
        return self.n_agents - 1, self._obs_parts()[2] // (self.n_agents - 1)

    def get_obs_size(self) -> int:
        return sum(self._obs_parts()) + int(self.settings.obs_timestep_number)

    def get_obs_agent(self, agent_id: int) -> np.ndarray:
        unit = self.agents[agent_id]
        # The last of its own features is left free for the time step, which is then appended all the same.
        obs = np.zeros(self.get_obs_size(), np.float32)
        if unit.health > 0:
            obs[:4] = self.get_avail_agent_actions(agent_id)[2:6]
            obs[4], obs[5] = unit.health / 45.0, unit.x
        if self.settings.obs_timestep_number and self.declares_too_little:
            obs = np.append(obs, self._episode_steps / self.episode_limit)
        return obs

    declares_too_little = True

    def get_obs(self) -> list[np.ndarray]:
        return [self.get_obs_agent(i) for i in range(self.n_agents)]

    def get_state_size(self) -> int:
        if self.settings.obs_instead_of_state:
            return self.get_obs_size() * self.n_agents
        ally, enemy = 4 + self._shields[0] + self._types, 3 + self._shields[1] + self._types
        last = self.n_agents * self.n_actions if self.settings.state_last_action else 0
        return ally * self.n_agents + enemy * self.n_enemies + last + int(self.settings.state_timestep_number)

    def get_state(self) -> np.ndarray:
        if self.settings.obs_instead_of_state:
            return np.concatenate(self.get_obs()).astype(np.float32)
        state = np.zeros(self.get_state_size())  # float64
        for i, unit in self.agents.items():
            state[i] = unit.health / 45.0
        if self.settings.state_last_action:
            state[-self._last.size :] = self._last.ravel()
        return state

    def get_env_info(self) -> dict[str, Any]:
        return {
            "state_shape": self.get_state_size(),
            "obs_shape": self.get_obs_size(),
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def save_replay(self) -> None:
        assert self._game is not None
        if not self._game.running:
            raise ProtocolError("no game")
        SERVER.replays.append(self.settings.replay_prefix or self.settings.map_name)

    def seed(self) -> int | None:
        return self.settings.seed

    def get_stats(self) -> dict[str, Any]:
        return {"restarts": self.force_restarts, "win_rate": 0 / self._episode_count}


def _unit(env: _StarCraft2, number: int, x: float, enemy: bool = False) -> Any:
    assert env._game is not None
    jitter = random.Random(f"{env._game.seed} {env._episode_count} {number} {enemy}").random()
    place = SimpleNamespace(x=x + jitter, y=2.0 + 12.0 * (number + 1) / 12)
    return SimpleNamespace(
        number=number, x=x + jitter, pos=place, health=45.0, health_max=45.0, shield=0.0, shield_max=0.0
    )


class StarCraft2Env(_StarCraft2):
    """SMAC's, with its settings by name."""

    def __init__(
        self, map_name="8m", step_mul=8, move_amount=2, difficulty="7", game_version=None, seed=None,
        continuing_episode=False, obs_all_health=True, obs_own_health=True, obs_last_action=False,
        obs_pathing_grid=False, obs_terrain_height=False, obs_instead_of_state=False, obs_timestep_number=False,
        state_last_action=True, state_timestep_number=False, reward_sparse=False, reward_only_positive=True,
        reward_death_value=10, reward_win=200, reward_defeat=0, reward_negative_scale=0.5, reward_scale=True,
        reward_scale_rate=20, replay_dir="", replay_prefix="", window_size_x=1920, window_size_y=1200,
        heuristic_ai=False, heuristic_rest=False, debug=False,
    ) -> None:  # fmt: skip
        self._set_up({k: v for k, v in locals().items() if k != "self"})

    def reset(self) -> tuple[Any, Any]:
        self._start()
        return self.get_obs(), self.get_state()


class StarCraft2EnvV2(_StarCraft2):
    """SMACv2's: its episodes are given by what the wrapper draws."""

    maps = _MAPS_V2
    declares_too_little = False

    def __init__(
        self, map_name="8m", step_mul=8, move_amount=2, difficulty="7", game_version=None, seed=None,
        continuing_episode=False, obs_all_health=True, obs_own_health=True, obs_last_action=False,
        obs_pathing_grid=False, obs_terrain_height=False, obs_instead_of_state=False, obs_timestep_number=False,
        obs_own_pos=False, conic_fov=False, num_fov_actions=12, state_last_action=True, state_timestep_number=False,
        reward_death_value=10, reward_win=200, reward_scale=True, reward_scale_rate=20, use_unit_ranges=False,
        min_attack_range=2, capability_config={}, replay_dir="", replay_prefix="", prob_obs_enemy=1.0,  # noqa: B006
    ) -> None:  # fmt: skip
        settings = {k: v for k, v in locals().items() if k != "self"}
        team = capability_config["team_gen"]
        self.n_actions_no_attack = 6 + (num_fov_actions if conic_fov else 0)
        self._set_up(settings, team["n_units"], team["n_enemies"])

    def get_avail_agent_actions(self, agent_id: int) -> list[int]:
        legal = super().get_avail_agent_actions(agent_id)
        extra = self.n_actions_no_attack - 6
        return legal[:6] + [legal[1]] * extra + legal[6:] if extra else legal

    def _fight(self, actions: list[int]) -> float:
        extra = self.n_actions_no_attack - 6
        return super()._fight([a if a < 6 else max(a - extra, 1) if a - extra >= 6 else 1 for a in actions])

    def reset(self, episode_config: dict[str, Any] | None = None) -> tuple[Any, Any]:
        SERVER.spawned.append(episode_config or {})
        self._start()
        return self.get_obs(), self.get_state()


class Weighted:
    """Draws a team, with its own generator and a shuffle by Python's."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.rng = config, np.random.default_rng()

    def generate(self) -> dict[str, Any]:
        c = self.config
        team = [str(u) for u in self.rng.choice(c["unit_types"], size=c["n_units"], p=c["weights"])]
        random.shuffle(team)
        return {"team_gen": {"ally_team": team, "enemy_team": team[: c["n_enemies"]], "id": 0}}


class Positions:
    """Draws positions."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.rng = config, np.random.default_rng()

    def generate(self) -> dict[str, Any]:
        return {"ally_start_positions": {"item": self.rng.uniform(size=(self.config["n_units"], 2)).tolist()}}


class Mixed:
    """One of two distributions, each with a generator of its own."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.p, self.rng = config["p"], np.random.default_rng()
        self.surrounded, self.reflect = Positions(config), Positions(config)

    def generate(self) -> dict[str, Any]:
        return (self.surrounded if self.rng.random() > self.p else self.reflect).generate()


class Wrapper:
    """SMACv2's ``StarCraftCapabilityEnvWrapper``."""

    def __init__(self, **kwargs: Any) -> None:
        config = kwargs["capability_config"]
        kinds = {"weighted_teams": Weighted, "surrounded_and_reflect": Mixed}
        self.env_key_to_distribution_map = {}
        for key, part in config.items():
            if key in ("n_units", "n_enemies"):
                continue
            part["env_key"] = key  # writes into what it was given
            part["n_units"], part["n_enemies"] = config["n_units"], config["n_enemies"]
            self.env_key_to_distribution_map[key] = kinds[part["dist_type"]](part)
        self.env = StarCraft2EnvV2(**kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self) -> Any:
        config: dict[str, Any] = {}
        for distribution in self.env_key_to_distribution_map.values():
            config |= distribution.generate()
        return self.env.reset(config)

    def get_avail_actions(self) -> Any:
        actions, truth = self.env.get_avail_actions()  # as the package has it: too many values to unpack
        return actions, truth


@dataclass
class Flags:
    """absl's flags, with pysc2's."""

    sc2_timeout: int = 360
    parsed: bool = False

    def is_parsed(self) -> bool:
        return self.parsed

    def __call__(self, argv: list[str]) -> None:
        self.parsed = True

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)


def install(monkeypatch: Any, package: str = "smac") -> Flags:
    """Put ``smac`` or ``smacv2``, pysc2 and absl's flags into ``sys.modules``, and a fresh server beneath them."""
    SERVER.__init__()
    version = SimpleNamespace(game_version="4.10.0", build_version=75689)
    flags = Flags()
    contents: dict[str, dict[str, Any]] = {
        "pysc2": {},
        "pysc2.run_configs": {"get": lambda version=None: SimpleNamespace(version=_version)},
        "absl.flags": {"FLAGS": flags},
    }
    _version = version
    if package == "smac":
        contents |= {
            "smac": {},
            "smac.env": {"StarCraft2Env": StarCraft2Env},
            "smac.env.starcraft2": {},
            "smac.env.starcraft2.maps": {},
            "smac.env.starcraft2.maps.smac_maps": {"get_smac_map_registry": lambda: _MAPS},
        }
    else:
        contents |= {
            "smacv2": {},
            "smacv2.env": {},
            "smacv2.env.starcraft2": {},
            "smacv2.env.starcraft2.wrapper": {
                "StarCraft2Env": StarCraft2EnvV2,
                "StarCraftCapabilityEnvWrapper": Wrapper,
            },
            "smacv2.env.starcraft2.maps": {},
            "smacv2.env.starcraft2.maps.smac_maps": {"get_smac_map_registry": lambda: _MAPS_V2},
        }
    for name, values in contents.items():
        module = ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return flags
