"""VMAS: one simulator for all environments, and yet an episode that is its seed and its actions."""

import numpy as np
import pytest
import torch
import vmas as own

from qmix_lightning.environment import VectorEnv
from qmix_lightning.envs import vmas
from qmix_lightning.errors import ConfigurationError, EnvironmentContractError
from support.vector_play import snapshot

E = 4
EVERYONE = torch.ones(E, dtype=torch.bool)


def make(scenario="balance", num_envs=E, **settings):
    return vmas.make(num_envs=num_envs, scenario=scenario, **settings)


def random_actions(spec, generator, num_envs=E):
    draws = torch.rand(num_envs, spec.n_agents, generator=generator)
    return (draws * torch.tensor(spec.action_counts)).long()


def test_balance_is_its_own_step_and_the_last_observation_is_true():
    """By hand, one environment of VMAS alone: seeded, reset, stepped to its end."""
    env = make(max_steps=30)
    assert isinstance(env, VectorEnv)
    spec = env.spec
    assert (spec.n_agents, spec.n_actions, spec.obs_dims, spec.state_dim) == (3, 9, (16,) * 3, 48)
    assert spec.episode_limit == 30
    assert spec.group_of_agent == (0, 0, 0)
    slot, seed, generator = 2, 77, torch.Generator().manual_seed(0)
    one = own.make_env(
        "balance", 1, continuous_actions=False, max_steps=30, dict_spaces=True, terminated_truncated=True
    )
    one.seed(seed)
    shown = one.reset_at(0)
    observation = env.reset(EVERYONE, torch.tensor([3, 3, seed, 5]))
    names = spec.agent_names
    torch.testing.assert_close(observation.obs[slot], torch.stack([shown[a][0] for a in names]))
    assert torch.equal(observation.obs[0], observation.obs[1])
    assert observation.avail_actions.all()
    assert observation.agent_mask.all()
    for _ in range(30):
        actions = random_actions(spec, generator)
        transition = env.step(actions, EVERYONE)
        shown, rewards, terminated, truncated, _ = one.step(
            {a: actions[slot, i].view(1, 1) for i, a in enumerate(names)}
        )
        obs = torch.stack([shown[a][0] for a in names])
        torch.testing.assert_close(transition.next.obs[slot], obs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(transition.next.state[slot], obs.flatten(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            transition.agent_reward[slot], torch.stack([rewards[a][0] for a in names]), atol=1e-3, rtol=1e-3
        )
        # All are paid the same here, and the mean is it.
        torch.testing.assert_close(transition.reward, transition.agent_reward[:, 0], atol=1e-5, rtol=1e-5)
        assert bool(transition.terminated[slot]) == bool(terminated[0])
        assert bool(transition.truncated[slot]) == bool(truncated[0] & ~terminated[0])
        if terminated[0] or truncated[0]:
            break
    # The bar has fallen or the time is up; nothing was reset: stepping the others leaves it where it was.
    last = transition.next.obs[slot].clone()
    after = env.step(actions, torch.arange(E) != slot)
    assert torch.equal(after.next.obs[slot], last)
    assert not after.reward[slot]
    assert not after.terminated[slot]


def test_the_limit_is_a_truncation_unless_it_is_said_to_be_an_end():
    still = torch.zeros(2, 4, dtype=torch.int64)
    both = torch.ones(2, dtype=torch.bool)
    for terminal in (False, True):
        env = make("navigation", 2, max_steps=5, timeout_is_terminal=terminal, reward_aggregation="sum")
        env.reset(both, torch.tensor([1, 2]))
        for t in range(1, 6):
            transition = env.step(still, both)
            torch.testing.assert_close(transition.reward, transition.agent_reward.sum(1))
            assert (transition.terminated | transition.truncated).tolist() == [t == 5] * 2
        assert transition.truncated.tolist() == [not terminal] * 2
        # Its own clock begins anew with the episode, for that environment alone.
        env.reset(torch.tensor([True, False]), torch.tensor([3, 4]))
        transition = env.step(still, both)
        assert not (transition.terminated | transition.truncated)[0]


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        ("flocking", {}),
        ("simple_reference", {}),  # agents that talk
        ("football", {"kwargs": {"n_blue_agents": 2, "n_red_agents": 1}}),  # draws while stepping: isolated by itself
    ],
)
def test_an_episode_is_its_seed_and_its_actions(scenario, settings):
    """The same episode with neighbours who do other things, and pauses in which they play on and begin anew.

    So do ``balance`` and ``navigation``, which the checker plays.
    """

    def play(seeds, other, pauses):
        env = make(scenario, max_steps=50, **settings)
        mine, others = torch.Generator().manual_seed(1), torch.Generator().manual_seed(other)
        slot = torch.arange(E) == 1
        observation = env.reset(EVERYONE, seeds)
        seen = [observation.obs[1].clone()]
        for t in range(6):
            if t in pauses:
                env.step(random_actions(env.spec, others), ~slot)
                observation = env.reset(torch.tensor([True, False, True, False]), seeds + t)
                assert torch.equal(observation.obs[1], seen[-1])
            actions = torch.where(slot[:, None], random_actions(env.spec, mine), random_actions(env.spec, others))
            transition = env.step(actions, EVERYONE)
            seen.append(transition.next.obs[1].clone())
            rewards.append(float(transition.reward[1]))
        return torch.stack(seen)

    rewards: list[float] = []
    left = play(torch.tensor([1, 22, 3, 4]), 5, ())
    right = play(torch.tensor([9, 22, 8, 7]), 6, (2, 3, 5))
    assert torch.equal(left, right)
    assert rewards[:6] == rewards[6:]
    other = make(scenario, max_steps=50, **settings).reset(EVERYONE, torch.tensor([1, 23, 3, 4]))
    assert not torch.equal(left[0], other.obs[1])


def test_what_would_depend_on_the_neighbours_is_refused():
    env = make("discovery", isolate=False)
    env.reset(EVERYONE, torch.arange(E))
    generator = torch.Generator().manual_seed(0)

    def steps():
        for _ in range(50):
            env.step(random_actions(env.spec, generator), EVERYONE)

    with pytest.raises(EnvironmentContractError, match=r"draws random numbers while stepping.*env\.isolate=true"):
        steps()


def test_what_is_shared_between_environments_is_noticed():
    """A landmark's place that is one number for all of them."""

    class Shared:
        def __init__(self, make):
            self.make = make

        def __call__(self, size):
            simulator = self.make(size)
            scenario, observation = simulator.scenario, simulator.scenario.observation
            reset = scenario.reset_world_at

            def reset_world_at(env_index=None):
                reset(env_index)
                scenario.wind = float(np.random.rand())

            scenario.wind = 0.0
            scenario.reset_world_at = reset_world_at
            scenario.observation = lambda agent: observation(agent) + scenario.wind
            return simulator

    def balance(size):
        return own.make_env(
            "balance", size, continuous_actions=False, max_steps=9, dict_spaces=True, terminated_truncated=True
        )

    def build(isolate):
        return vmas.VmasVectorEnv(
            Shared(balance),
            num_envs=E,
            name="windy",
            reward_aggregation="mean",
            timeout_is_terminal=False,
            isolate=isolate,
        )

    for isolate in (False, True):
        env = build(isolate)
        env.reset(EVERYONE, torch.arange(E))
        if isolate:
            env.reset(torch.arange(E) == 0, torch.arange(E) + 9)
            continue
        with pytest.raises(EnvironmentContractError, match="windy shares something between its environments"):
            env.reset(torch.arange(E) == 0, torch.arange(E) + 9)


def test_one_simulator_and_one_for_each_play_the_same():
    generator = torch.Generator().manual_seed(3)
    together, apart = make("transport", isolate=False), make("transport", isolate=True)
    seeds = torch.tensor([5, 6, 7, 8])
    together.reset(EVERYONE, seeds), apart.reset(EVERYONE, seeds)
    for t in range(15):
        actions, active = random_actions(together.spec, generator), torch.rand(E, generator=generator) < 0.7
        for left, right in zip(
            snapshot(together.step(actions, active)), snapshot(apart.step(actions, active)), strict=True
        ):
            torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
        begin = torch.arange(E) == t
        torch.testing.assert_close(together.reset(begin, seeds + t).obs, apart.reset(begin, seeds + t).obs)


def test_the_process_keeps_its_random_numbers():
    import random

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = torch.rand(3).tolist(), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    env = make("football", 2)
    env.reset(torch.ones(2, dtype=torch.bool), torch.arange(2))
    env.step(torch.zeros(2, env.spec.n_agents, dtype=torch.int64), torch.ones(2, dtype=torch.bool))
    env.close()
    env.close()
    assert (torch.rand(3).tolist(), np.random.rand(), random.random()) == expected


def test_ragged_agents_and_words_as_actions():
    env = make("simple_speaker_listener", 2)
    spec = env.spec
    assert dict(zip(spec.agent_names, spec.action_counts, strict=True)) == {"speaker_0": 27, "listener_0": 9}
    assert spec.obs_dims == (3, 11)
    observation = env.reset(torch.ones(2, dtype=torch.bool), torch.arange(2))
    assert observation.avail_actions.sum(-1).tolist() == [[27, 9]] * 2
    assert not observation.obs[:, 0, 3:].any()
    actions = torch.tensor([[26, 8], [0, 0]])  # the largest of each is taken
    assert torch.isfinite(env.step(actions, torch.ones(2, dtype=torch.bool)).next.obs).all()


def test_inference_mode_and_training_may_take_turns():
    env = make(num_envs=2)
    both = torch.ones(2, dtype=torch.bool)
    with torch.inference_mode():
        env.reset(both, torch.arange(2))
        env.step(torch.zeros(2, 3, dtype=torch.int64), both)
        actions = torch.ones(2, 3, dtype=torch.int64)
    env.step(actions, both)
    env.reset(both, torch.arange(2))
    with torch.inference_mode():
        assert not env.step(actions, torch.tensor([True, False])).next.obs.is_inference()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenario": "balence"}, "unknown VMAS scenario 'balence'. Did you mean 'balance'"),
        ({"kwargs": {"n_agent": 3}}, "VMAS scenario 'balance': .*'n_agent': 3.* not used by the scenario"),
        ({"kwargs": {"seed": 3}}, "'seed' cannot be set in env.kwargs"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
    ],
)
def test_what_does_not_fit_is_one_line(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", sorted(vmas.scenarios()))
def test_every_scenario_plays(scenario):
    if scenario == "vel_control":
        pytest.skip("warns about itself")
    if scenario in ("pollock", "road_traffic", "joint_passage"):
        pytest.skip("seconds for each step")
    env = make(scenario, 2, max_steps=6)
    generator, both = torch.Generator().manual_seed(0), torch.ones(2, dtype=torch.bool)
    env.reset(both, torch.arange(2))
    for _ in range(6):
        transition = env.step(random_actions(env.spec, generator, 2), both)
        assert torch.isfinite(transition.next.obs).all()
        assert torch.isfinite(transition.reward).all()
    assert (transition.terminated | transition.truncated).all()


def test_actions_have_the_names_of_what_they_do():
    """A push to the left moves an agent to the left; simple_spread's agents see their position, then their velocity."""
    env = make("simple_spread", 9)
    (words,) = {tuple(names) for names in env.action_names.values()}
    everyone = torch.ones(9, dtype=torch.bool)
    env.reset(everyone, torch.full((9,), 5))
    each = torch.arange(9)[:, None].expand(-1, env.spec.n_agents)
    velocity = env.step(each, everyone).next.obs[:, 0, 2:4]
    still = velocity[words.index("none")]
    for word, moved in zip(words, velocity - still, strict=True):
        wanted = [("right" in word) - ("left" in word), ("up" in word) - ("down" in word)]
        assert torch.sign(moved).tolist() == wanted, word
