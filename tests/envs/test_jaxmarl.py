"""JaxMARL by id: its own step, padded sizes, legal moves, and the two ends that it has one flag for."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from qmix_lightning.environment import VectorEnv
from qmix_lightning.envs import jaxmarl
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError
from qmix_lightning.rendering.frames import action_names
from support.checks import check_registered
from support.collecting import legal
from support.pictures import drawn

SPREAD = "MPE_simple_spread_v3"


def make(id=SPREAD, num_envs=3, **settings):
    return jaxmarl.make(num_envs=num_envs, id=id, **settings)


def everyone(env):
    return torch.ones(env.num_envs, dtype=torch.bool)


def to_the_end(env, seeds, generator):
    """Random play until every environment has ended once; the step and the flags of each end."""
    observation, active, ends = env.reset(everyone(env), seeds), everyone(env), {}
    for t in range(1, 200):
        transition = env.step(legal(observation, generator), active)
        observation = transition.next
        assert torch.isfinite(observation.obs).all()
        assert not (transition.terminated & transition.truncated).any()
        for e in torch.nonzero((transition.terminated | transition.truncated) & active).flatten().tolist():
            ends[e] = (t, bool(transition.terminated[e]))
            active[e] = False
        if not active.any():
            return ends, observation
    raise AssertionError("no end")


def test_simple_spread_is_its_own_step_and_the_limit_is_a_truncation():
    """JaxMARL's MPE looks at the clock before it moves it: left alone, `max_steps=25` lasts 26 steps."""
    from jaxmarl.environments.mpe import SimpleSpreadMPE

    env = make()
    assert isinstance(env, VectorEnv)
    spec = env.spec
    assert (spec.n_agents, spec.n_actions, spec.obs_dims, spec.state_dim) == (3, 5, (18,) * 3, 54)
    assert spec.episode_limit == 25
    assert spec.group_of_agent == (0, 0, 0)
    own, slot, generator = SimpleSpreadMPE(), 1, torch.Generator().manual_seed(0)
    step = jax.jit(own.step_env)
    seeds = torch.tensor([4, 5, 6])
    observation = env.reset(everyone(env), seeds)
    key = jax.random.PRNGKey(5)
    obs, state = own.reset(jax.random.fold_in(key, 0))
    np.testing.assert_allclose(observation.obs[slot], np.stack([obs[a] for a in own.agents]), atol=1e-5)
    for t in range(1, 26):
        actions = legal(observation, generator)
        transition = env.step(actions, everyone(env))
        played = {a: np.int32(actions[slot, i]) for i, a in enumerate(own.agents)}
        obs, state, rewards, dones, _ = step(jax.random.fold_in(key, t), state, played)
        observation = transition.next
        by_hand = np.stack([obs[a] for a in own.agents])
        np.testing.assert_allclose(observation.obs[slot], by_hand, atol=1e-4)
        np.testing.assert_allclose(observation.state[slot], by_hand.reshape(-1), atol=1e-4)
        np.testing.assert_allclose(transition.agent_reward[slot], [rewards[a] for a in own.agents], atol=1e-4)
        np.testing.assert_allclose(transition.reward[slot], sum(float(rewards[a]) for a in own.agents), atol=1e-4)
        assert not dones["__all__"]
        assert bool(transition.truncated[slot]) == (t == 25)
        assert not transition.terminated.any()
    assert observation.agent_mask.all()  # the value of the true last observation is bootstrapped
    assert env.program.traces == {"begin": 1, "put": 1, "step": 1}


def test_the_limit_as_an_end_the_mean_and_a_limit_of_ones_own():
    env = make("switch_riddle", 2, reward_aggregation="mean", timeout_is_terminal=True, episode_limit=4)
    assert env.spec.episode_limit == 4
    nothing, tell = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[0, 0, 0], [2, 2, 2]])
    env.reset(everyone(env), torch.tensor([1, 2]))
    for t in range(1, 5):
        transition = env.step(tell if t == 4 else nothing, everyone(env))
        assert transition.terminated.tolist() == [t == 4] * 2
        assert not transition.truncated.any()
    assert transition.agent_reward[1].any()
    torch.testing.assert_close(transition.reward, transition.agent_reward.mean(1))


def test_ragged_observations_and_actions_are_padded():
    env = make("MPE_simple_speaker_listener_v4")
    spec = env.spec
    assert (spec.obs_dims, spec.action_counts, spec.state_dim) == ((3, 11), (3, 5), 14)
    assert (spec.obs_dim, spec.n_actions) == (11, 5)
    assert spec.group_of_agent == (0, 1)
    observation = env.reset(everyone(env), torch.arange(3))
    assert observation.avail_actions[:, 0].tolist() == [[True, True, True, False, False]] * 3
    assert observation.avail_actions[:, 1].all()
    assert not observation.obs[:, 0, 3:].any()
    assert torch.equal(observation.state, torch.cat([observation.obs[:, 0, :3], observation.obs[:, 1]], 1))


def test_an_end_of_the_task_is_told_from_the_limit_even_in_the_last_step():
    """The switch riddle ends when a prisoner speaks, or after six steps; it has one flag for both."""
    env = make("switch_riddle", num_envs=8)
    assert env.spec.episode_limit == 6
    nothing, tell = 0, 2
    for speaks in (False, True):
        observation = env.reset(everyone(env), torch.arange(8))
        for t in range(1, 7):
            actions = torch.full((8, 3), nothing)
            if speaks and t == 6:
                actions[:4] = tell
            transition = env.step(actions, everyone(env))
            observation = transition.next
            ended = transition.terminated | transition.truncated
            assert ended.all() if t == 6 else not ended.any()
        assert transition.terminated.tolist() == [speaks] * 4 + [False] * 4
        assert transition.truncated.tolist() == [not speaks] * 4 + [True] * 4
        assert observation.agent_mask.all()


@pytest.mark.slow
def test_hanabi_tells_its_legal_moves():
    env = make("hanabi", reward_aggregation="mean")
    observation = env.reset(everyone(env), torch.arange(3))
    legal = observation.avail_actions
    assert legal.shape == (3, 2, 21)
    # Who is not to move has the last action only, a no-op.
    assert legal[:, 1].nonzero()[:, 1].tolist() == [20, 20, 20]
    assert not legal[:, 0, 20].any()
    assert legal[:, 0].any(-1).all()
    ends, last = to_the_end(env, torch.arange(3), torch.Generator().manual_seed(0))
    assert all(terminated for _, terminated in ends.values())
    assert last.avail_actions.any(-1).all()


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [{}, {"layout": "coord_ring"}])
def test_the_first_overcooked_comes_by_the_name_of_its_layout(kwargs):
    env = make("overcooked", num_envs=1, kwargs={**kwargs, "max_steps": 5})
    assert env.spec.obs_dim == (520 if not kwargs else 5 * 5 * 26)
    ends, _ = to_the_end(env, torch.tensor([1]), torch.Generator().manual_seed(0))
    assert ends == {0: (5, False)}


def test_importing_the_package_says_nothing_and_replaces_nothing(tmp_path: Path, monkeypatch, capsys):
    """Its part MABrax would put the process's own streams in the place of ours."""
    package = tmp_path / "jaxmarl"
    (package / "environments").mkdir(parents=True)
    (package / "environments" / "__init__.py").touch()
    (package / "environments" / "mabrax.py").write_text("import sys\nsys.stdout = sys.stderr = sys.__stdout__\n")
    (package / "__init__.py").write_text(
        "print('welcome')\n"
        "try:\n    from jaxmarl.environments import mabrax\n"
        "except ImportError:\n    print('brax is not there')\n"
    )
    real = [name for name in sys.modules if name.partition(".")[0] == "jaxmarl"]
    for name in real:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    before = sys.stdout, sys.stderr
    try:
        assert jaxmarl.import_jaxmarl("jaxmarl").__file__ == str(package / "__init__.py")
        assert (sys.stdout, sys.stderr) == before
        assert "jaxmarl.environments.mabrax" not in sys.modules
    finally:
        for name in ("jaxmarl", "jaxmarl.environments"):
            sys.modules.pop(name, None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"id": "MPE_simple_spread"}, ConfigurationError, "unknown JaxMARL environment .* Did you mean 'MPE_simple_sp"),
        ({"id": "storm"}, EnvironmentContractError, "'storm' does not fit: its observations are not given by agent"),
        ({"id": "storm_2p"}, EnvironmentContractError, "observations are not given by agent"),
        ({"id": "ant_4x2"}, EnvironmentContractError, "'ant_4x2' does not fit: its actions are continuous"),
        ({"id": "MPE_simple_facmac_v1"}, EnvironmentContractError, "must be discrete, 'adversary_0' has Box"),
        ({"id": "HeuristicEnemySMAX"}, ConfigurationError, "env=smax"),
        ({"kwargs": {"max_step": 3}}, ConfigurationError, "has no setting 'max_step'. Did you mean 'max_steps'"),
        ({"id": "overcooked", "kwargs": {"layout": "cramped"}}, ConfigurationError, "unknown Overcooked layout"),
        ({"episode_limit": 0}, ConfigurationError, "episode_limit must be at least 1, not 0"),
    ],
)
def test_what_does_not_fit_is_one_line(settings, error, message):
    with pytest.raises(error, match=message) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


def test_a_particle_world_is_drawn():
    env = make()
    drawn(env, steps=2)
    assert action_names(env) == [["none", "left", "right", "down", "up"]] * 3


def test_it_passes_every_check():
    check_registered("jaxmarl")
