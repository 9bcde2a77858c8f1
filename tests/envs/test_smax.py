"""SMAX: what lands in torch is what SMAX's own step gives, and nothing that a neighbour does can be seen."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from qmix_lightning.environment import VectorEnv
from qmix_lightning.envs import smax
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.rendering.frames import action_names
from support import inprocess, runs
from support.checks import check_registered
from support.collecting import legal
from support.pictures import drawn
from support.vector_play import snapshot

E = 3
LIMIT = 20  # most battles are over by then
STOP = 4  # SMAX's own no-op of the dead; 0 to 3 are moves
EVERYONE = torch.ones(E, dtype=torch.bool)


def make(**settings):
    """Environments; equal settings share what was compiled, by the checker too, which steps as many."""
    return smax.make(num_envs=E, **({"max_steps": LIMIT} | settings))


def attack(avail):
    """Shoot the first enemy in range, otherwise stand."""
    targets = avail[..., STOP + 1 :]
    idle = torch.where(avail[..., STOP], STOP, 0)
    return torch.where(targets.any(-1), STOP + 1 + targets.int().argmax(-1), idle)


@pytest.fixture(scope="module")
def battle():
    """A whole battle of random play: the actions, what was shown before each, and the outcome of each."""
    env = make()
    generator = torch.Generator().manual_seed(0)
    observation = env.reset(EVERYONE, torch.arange(E) + 100)
    first = observation.obs.clone()
    joint_actions, shown, outcomes, done = [], [], [], torch.zeros(E, dtype=torch.bool)
    while not done.all():
        joint_actions.append(legal(observation, generator))
        shown.append([observation.avail_actions.clone(), observation.agent_mask.clone()])
        transition = env.step(joint_actions[-1], EVERYONE)
        outcomes.append(snapshot(transition))
        observation = transition.next
        done |= transition.terminated | transition.truncated
    return first, joint_actions, shown, outcomes


# -- the shape of things ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "n", "enemies", "groups"), [("2s3z", 5, 5, (0, 0, 1, 1, 1)), ("5m_vs_6m", 5, 6, (0,) * 5)]
)
def test_sizes_and_unit_types(scenario, n, enemies, groups):
    spec = smax.make(num_envs=2, scenario=scenario).spec
    units = n + enemies
    assert (spec.n_agents, spec.n_actions) == (n, 5 + enemies)
    assert spec.obs_dims == (13 * (units - 1) + 10,) * n  # 7 features and 6 types of every other, 4 and 6 of its own
    assert spec.state_dim == 12 * units
    assert spec.group_of_agent == groups
    assert spec.agent_names == tuple(f"ally_{i}" for i in range(n))
    assert spec.episode_limit == 100
    assert spec.natively_batched
    assert spec.episode_metrics == ("won", "dead_allies", "dead_enemies")


def test_the_state_is_scaled_unless_it_is_not_wanted():
    """SMAX gives places on a map of 32 by 32; values that a mixing network makes of them start in the hundreds."""
    simulator = SimpleNamespace(
        **{"num_allies": 1, "num_enemies": 1, "scenario": None, "unit_type_names": "mMsZzh"},
        **{"map_width": 32, "map_height": 16, "unit_type_weapon_cooldowns": [0.5, 2.0]},
    )
    unit = [1, 1 / 32, 1 / 16, 1 / 2, *[1] * 6]
    rules = smax.SmaxRules(simulator)
    assert (rules.state_scale, rules.state_bounds) == ([*unit, *unit, 1, 1, 1 / 6, 1 / 6], (0.0, 1.0))
    unbounded = smax.SmaxRules(simulator, bound_state=False)
    assert unbounded.state_scale is not None
    assert (unbounded.state_scale[3], unbounded.state_bounds) == (1, None)
    plain = smax.SmaxRules(simulator, scale_state=False)
    assert (plain.state_scale, plain.state_bounds) == (None, None)


@pytest.mark.parametrize("bounded", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_state_stays_within_its_bounds(bounded):
    """Allies that stand still do not shoot, and SMAX's own cooldowns fall by half a second a step."""
    env = make(bound_state=bounded)
    state = env.reset(EVERYONE, torch.arange(E)).state
    for _ in range(8):
        transition = env.step(torch.full((E, 3), STOP), EVERYONE)
        state = torch.cat([state, transition.next.state])
        if (transition.terminated | transition.truncated).any():
            break
    assert state.max() <= 1.0
    assert bool(state.min() >= 0.0) is bounded


@pytest.mark.slow  # the sizes of other maps are above; that 3m plays to its end, below and in test_checker
@pytest.mark.parametrize("scenario", ["2s3z", "5m_vs_6m"])
def test_other_maps_play_to_the_end(scenario):
    env = smax.make(num_envs=2, scenario=scenario)
    assert isinstance(env, VectorEnv)
    everyone, generator = torch.ones(2, dtype=torch.bool), torch.Generator().manual_seed(1)
    observation = env.reset(everyone, torch.tensor([3, 4]))
    assert observation.agent_mask.all()
    for _ in range(100):
        assert torch.isfinite(observation.obs).all()
        assert torch.isfinite(observation.state).all()
        assert observation.avail_actions.any(-1).all()
        transition = env.step(legal(observation, generator), everyone)
        observation = transition.next
        if (transition.terminated | transition.truncated).any():
            break
    assert transition.terminated.sum() >= 1  # random play loses long before the limit
    assert env.program.traces == {"begin": 1, "put": 1, "step": 1}


# -- what SMAX itself says -------------------------------------------------------------------------------------------


def test_every_step_is_smax_own_and_the_last_observation_is_true(battle):
    """By hand: keys from the seed and the step alone, `step_env`, the dead told to stop."""
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

    first, joint_actions, shown, outcomes = battle
    slot = next(e for e in range(E) if any(outcome[6][e] for outcome in outcomes))  # it is over before the limit
    own = HeuristicEnemySMAX(scenario=map_name_to_scenario("3m"), max_steps=LIMIT)

    @jax.jit
    def begin(key):
        obs, state = own.reset(key)
        return obs, state, own.get_avail_actions(state)

    @jax.jit
    def step(key, state, actions):
        obs, state, rewards, dones, _ = own.step_env(key, state, actions)
        return obs, state, rewards, dones, own.get_avail_actions(state)

    key = jax.random.PRNGKey(100 + slot)
    obs, state, legal = begin(jax.random.fold_in(key, 0))
    np.testing.assert_allclose(first[slot], np.stack([obs[a] for a in own.agents]), atol=1e-5)
    died_early = False
    for t, (chosen, (avail, alive), outcome) in enumerate(zip(joint_actions, shown, outcomes, strict=True), start=1):
        units_alive = np.asarray(state.state.unit_alive)[:3]
        for i, agent in enumerate(own.agents):
            if units_alive[i]:
                np.testing.assert_array_equal(avail[slot, i], np.asarray(legal[agent], bool))
            else:
                assert avail[slot, i].tolist() == [True] + [False] * 7
                assert np.flatnonzero(legal[agent]).tolist() == [STOP]
        np.testing.assert_array_equal(alive[slot], units_alive)
        died_early |= not units_alive.all()
        played = {a: np.int32(chosen[slot, i] if units_alive[i] else STOP) for i, a in enumerate(own.agents)}
        obs, state, rewards, dones, legal = step(jax.random.fold_in(key, t), state, played)
        by_hand = np.stack([obs[a] for a in own.agents])
        np.testing.assert_allclose(outcome[0][slot], by_hand, atol=1e-5)
        state_by_hand = np.array(obs["world_state"])
        units_by_hand = state_by_hand[:60].reshape(6, 10)
        units_by_hand[:, 1:3] /= 32  # places as shares of the map
        units_by_hand[:, 3] = np.clip(units_by_hand[:, 3] / 1.87, 0, 1)  # the longest cooldown is a stalker's
        state_by_hand[66:] /= 6  # unit types
        np.testing.assert_allclose(outcome[1][slot], state_by_hand, atol=1e-5)
        np.testing.assert_allclose(outcome[4][slot], rewards["ally_0"], atol=1e-6)
        assert bool(outcome[6][slot] | outcome[7][slot]) == bool(dones["__all__"])
        if dones["__all__"]:
            break
    assert dones["__all__"]
    assert died_early
    # Random play is wiped out: the true last observation is all zeros. A reset one would not be.
    assert not outcome[3][slot].any()
    assert not outcome[0][slot].any()
    assert outcome[1][slot].any()


def test_the_dead_are_masked_and_see_nothing(battle):
    *_, outcomes = battle
    seen_dead = 0
    for obs, _, avail, alive, *_ in outcomes:
        dead = ~alive
        seen_dead += int(dead.sum())
        assert not obs[dead].any()
        assert (avail[dead] == torch.tensor([True] + [False] * 7)).all()
        assert avail[alive][:, STOP].all()  # who lives may always stop
        assert obs[alive].any(-1).all()
    assert seen_dead > 5


def test_wins_limits_and_returns():
    """Battles are played until one was won, one lost, and one cut off by the clock, which shooting back takes."""
    env, generator, kinds = make(), torch.Generator().manual_seed(0), set()
    for first in range(0, 40 * E, E):
        observation, active = env.reset(EVERYONE, torch.arange(E) + first), EVERYONE.clone()
        returns, lengths = torch.zeros(E), torch.zeros(E, dtype=torch.int64)
        while active.any():
            actions = attack(observation.avail_actions)
            actions[0] = legal(observation, generator)[0]  # who plays at random often lasts longer
            transition = env.step(actions, active)
            observation = transition.next
            returns += transition.reward
            lengths += active
            # Every ally is paid the team's reward, and their mean is it.
            torch.testing.assert_close(transition.agent_reward, transition.reward[:, None].expand(E, 3))
            ended = (transition.terminated | transition.truncated) & active
            for e in ended.nonzero().flatten().tolist():
                metrics = {name: values[e].item() for name, values in transition.metrics.items()}
                won, fallen = metrics["won"] == 1.0, metrics["dead_allies"]
                assert won == (metrics["dead_enemies"] == 3.0 and fallen < 3.0)
                assert transition.terminated[e] == (won or fallen == 3.0)
                assert transition.truncated[e] == (not transition.terminated[e])
                assert lengths[e] == LIMIT if transition.truncated[e] else lengths[e] <= LIMIT
                # 1 for the enemy's health, 1 for winning.
                assert returns[e].item() == pytest.approx(2.0, abs=1e-5) if won else returns[e] < 1.0
                assert observation.agent_mask[e].sum() == 3 - fallen  # whose values are bootstrapped
                kinds.add("won" if won else "lost" if transition.terminated[e] else "cut off")
            active &= ~ended
        if len(kinds) == 3:
            return
    raise AssertionError(f"only {kinds}")


def test_the_end_of_the_task_at_the_limit_is_an_end():
    """A time limit and a battle that is over may fall together; a draw is an end and no win."""
    rules = smax.SmaxRules(SimpleNamespace(num_allies=2, scenario=None), scale_state=False)

    def after(*alive):
        return SimpleNamespace(state=SimpleNamespace(unit_alive=np.array(alive)))

    for allies, enemies, ended, won in [
        ((True, False), (True, True), False, False),
        ((True, False), (False, False), True, True),
        ((False, False), (True, False), True, False),
        ((False, False), (False, False), True, False),
    ]:
        state = after(*allies, *enemies)
        assert bool(rules.task_over(None, state, None, {}, {"__all__": True})) is ended
        assert bool(rules.metrics(state)["won"]) is won
        assert rules.metrics(state)["dead_allies"] == allies.count(False)


# -- batching --------------------------------------------------------------------------------------------------------


def test_nothing_is_compiled_twice(caplog):
    env, other = make(), make()
    observation = env.reset(torch.arange(E) == 0, torch.arange(E))
    env.step(torch.full((E, 3), STOP), EVERYONE)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for k in range(3):
            observation = env.reset(torch.arange(E) == k, torch.arange(E) * k)
            observation = other.reset(EVERYONE, torch.arange(E))
            env.step(attack(observation.avail_actions), torch.arange(E) != k)
            other.step(attack(observation.avail_actions).int(), torch.zeros(E, dtype=torch.bool))
    assert not [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()]
    assert env.program is other.program
    assert env.program.traces == {"begin": 1, "put": 1, "step": 1}


def test_torch_sees_jax_memory():
    env = make()
    for begin in (True, False):
        stand = torch.full((E, 3), STOP)
        observation = env.reset(EVERYONE, torch.arange(E)) if begin else env.step(stand, EVERYONE).next
        numbers, flags = (env._slots.numbers, env._slots.flags)
        for field, array, before in [
            (observation.obs, numbers, 0),
            (observation.state, numbers, 3 * 75),
            (observation.avail_actions, flags, 0),
            (observation.agent_mask, flags, 3 * 8),
        ]:
            assert field.data_ptr() == array.unsafe_buffer_pointer() + before * field.element_size()
    assert observation.obs.dtype == observation.state.dtype == torch.float32
    assert observation.avail_actions.dtype == observation.agent_mask.dtype == torch.bool


def test_what_was_returned_outlives_the_next_step():
    """JAX's memory is never written again: a torch tensor keeps it alive."""
    env = make()
    generator = torch.Generator().manual_seed(2)
    observation = env.reset(EVERYONE, torch.arange(E))
    kept, copies = [], []
    for _ in range(10):
        transition = env.step(legal(observation, generator), EVERYONE)
        observation = transition.next
        kept.append(transition)
        copies.append(snapshot(transition))
    env.close()
    env.close()
    for transition, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(snapshot(transition), copy, strict=True))


def test_the_arguments_may_be_reused_at_once():
    """JAX reads the caller's memory; it must have finished when the call returns."""
    env = make()
    actions, active = torch.full((E, 3), STOP, dtype=torch.int32), EVERYONE.clone()
    env.reset(EVERYONE, torch.arange(E))
    expected = []
    for _ in range(20):
        expected.append(env.step(torch.full((E, 3), STOP), EVERYONE).next.obs.clone())
    env.reset(EVERYONE, torch.arange(E))
    for before in expected:
        transition = env.step(actions, active)
        actions.fill_(1), active.fill_(False)
        assert torch.equal(transition.next.obs, before)
        actions.fill_(STOP), active.fill_(True)


def test_what_is_prefetched_changes_nothing():
    """Right hints, wrong ones and none: the episode is the one whose seed `reset` is given."""
    mask, seeds, later = torch.tensor([True, False, True]), torch.arange(E) + 40, torch.arange(E) + 60

    def shown(*hints):
        env = make()
        seen = []
        for hint, chosen, given in zip(hints, (EVERYONE, mask, ~mask), (seeds, later, later), strict=True):
            if hint is not None:
                env.prefetch_resets(hint)
            seen.append(env.reset(chosen, given).obs.clone())
        seen.append(env.step(torch.full((E, 3), STOP), EVERYONE).next.obs.clone())
        return torch.stack(seen)

    plain = shown(None, None, None)
    assert torch.equal(plain, shown(later, later + 9, seeds))
    assert torch.equal(plain, shown(seeds + 7, later, later + 1))


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenario": "3mm"}, "unknown SMAX scenario '3mm'. Did you mean '3m'"),
        ({"kwargs": {"attack_mod": "closest"}}, "SMAX has no setting 'attack_mod'. Did you mean 'attack_mode'"),
        ({"kwargs": {"max_steps": 3}}, "env.max_steps, not env.kwargs.max_steps"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"kwargs": {"num_allies": 7}}, "env.kwargs.num_allies would change nothing: env.scenario decides it"),
        ({"kwargs": {"unit_type_health": [45.0]}}, "unit_type_health needs a number for each of the 6 unit types"),
        ({"kwargs": {"attack_mode": "weakest"}}, "attack_mode must be one of closest, random, not 'weakest'"),
        ({"kwargs": {"action_type": "continuous"}}, "actions must be discrete, 'ally_0' has Box"),
    ],
)
def test_what_does_not_fit_is_one_line(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**settings)


def test_a_number_for_each_unit_type_is_written_as_a_list():
    health = [90, 125, 160, 150, 35, 80]
    made = make(kwargs={"unit_type_health": health}).program  # its reset and step have been traced by now
    assert made._simulator.unit_type_health.tolist() == health


def test_jax_starts_with_one_thread_and_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch):
    """In a process of its own: it is not known what started JAX in this one."""
    for name in ("NPROC", "PJRT_NPROC"):
        monkeypatch.delenv(name, raising=False)
    assert runs.run([], "support.jax_start") == ""


@pytest.mark.slow  # lightness: test_packages; silence, with a package in place of JaxMARL: test_jaxmarl
def test_nothing_heavy_is_imported_before_it_is_asked_for():
    """And then it says nothing, replaces nothing and leaves the process's environment alone."""
    script = """
import os, pathlib, sys
from qmix_lightning.envs import jaxmarl, smax
assert not {"jax", "jaxmarl", "flax"} & sys.modules.keys()
class Mine:
    def __init__(self, to): self.write, self.flush = to.write, to.flush
sys.stdout, sys.stderr = mine = Mine(sys.stdout), Mine(sys.stderr)
before = dict(os.environ)
env = smax.make(num_envs=2)
import jax
assert jax.config.read("jax_cpu_enable_async_dispatch") is True
jax.devices()
assert (sys.stdout, sys.stderr) == mine
assert dict(os.environ) == before
threads = [pathlib.Path(f"/proc/self/task/{t}/comm").read_text().strip() for t in os.listdir("/proc/self/task")]
assert threads.count("tf_XLAEigen") <= 1, threads
"""
    environ = {k: v for k, v in os.environ.items() if k not in ("NPROC", "PJRT_NPROC")}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


def test_training_from_the_command_line(tmp_path: Path):
    folder = tmp_path / "run"
    arguments = [
        "experiment=smax_3m",
        f"run_dir={folder}",
        "total_env_steps=200",
        "eval_interval=200",
        "checkpoint_interval=200",
        "eval_episodes=3",
        f"env.max_steps={LIMIT}",
        "env.timeout_is_terminal=false",
        f"rollout.num_envs={E}",
        f"rollout.num_eval_envs={E}",
        "rollout.update_every=3",
        "replay.batch_size=3",
        "replay.capacity=64",
        "agent.hidden_dim=16",
        "trainer.accelerator=cpu",
        "logger=none",
    ]
    inprocess.succeed(arguments)  # in this process: what the tests above have compiled serves it, too
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= 200
    assert summary["updates"] > 2
    assert summary["eval"]["episodes"] == 3
    assert 0.0 <= summary["eval"]["win_rate"] <= 1.0
    assert 0.0 <= summary["eval"]["return_mean"] <= 2.0
    assert 0.0 <= summary["eval"]["dead_allies_mean"] <= 3.0


def test_a_battle_is_drawn():
    env = make()
    drawn(env, steps=2)
    assert action_names(env) == [["up", "right", "down", "left", "stop", "shoot 0", "shoot 1", "shoot 2"]] * 3


def test_it_passes_every_check():
    check_registered("smax")
