"""How the agents act that do not learn, and that a run against them goes on as it was."""

import copy

import numpy as np
import pytest
import torch

from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.rendering.recorder import record_episode
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.rollout.evaluation import evaluate_episodes
from qmix_lightning.rollout.opponents import FunctionOpponents, PolicyOpponents, opponent_maker
from qmix_lightning.rollout.rollout_policy import RolloutPolicy
from qmix_lightning.vector.env_section import OpponentSettings
from qmix_lightning.vector.factory import make_vector_env
from qmix_lightning.vector.team_env import TeamEnv, spec_of_slots, team_env
from support.collecting import collect, make_policy
from support.episodes import assert_same
from support.sides import Duel, Sides

POLICIES = {
    "random": OpponentSettings("random"),
    "no_op": OpponentSettings("no_op"),
    "function": OpponentSettings("support.sides:first_or_second"),
    "class": OpponentSettings("support.sides:Counting"),
    "self": OpponentSettings("self", versions=2, interval=30),
}


def sides(opponents, num_envs=3, team=("red_*",), factory=Sides) -> TeamEnv:
    env = make_vector_env(factory, {}, num_envs=num_envs, name="sides", team=list(team))
    made = team_env(env, opponent_maker(opponents) if isinstance(opponents, OpponentSettings) else opponents)
    assert isinstance(made, TeamEnv)
    return made


def later(policy, seed):
    """The policy as an update makes it."""
    generator, changed = torch.Generator().manual_seed(seed), copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return changed


@pytest.mark.parametrize("name", POLICIES)
def test_a_run_goes_on_as_if_it_had_not_stopped(name):
    """Episodes in flight are played again against the versions they began with; what is kept of these is the same."""
    env = sides(POLICIES[name])
    policies = [make_policy(env.spec)]
    for seed in range(6):
        policies.append(later(policies[-1], seed))
    whole = Collector(env, policies[0], seed=11, rank=0)
    for policy in policies[1:4]:
        whole.publish(policy)
        collect(whole, 6)
    whole.publish(policies[4])
    whole.collect(0.5, max_steps=7)
    state = whole.state_dict()
    assert not state["ended"].all()

    resumed = Collector(sides(POLICIES[name]), policies[4], seed=11, rank=0)
    resumed.load_state_dict(copy.deepcopy(state))
    for policy in policies[5:]:
        for one in (whole, resumed):
            one.publish(policy)
        for left, right in zip(collect(whole, 4)[0], collect(resumed, 4)[0], strict=True):
            assert_same(left, right)
    left, right = whole.state_dict()["team"], resumed.state_dict()["team"]
    assert left["env_steps"] == right["env_steps"]
    assert str(left["opponents"]) == str(right["opponents"])


def test_opponents_that_differ_play_other_episodes():
    def found(name):
        env = sides(POLICIES[name])
        return collect(Collector(env, make_policy(env.spec), seed=11, rank=0), 6)[0]

    played = {name: torch.cat([e.reward for e in found(name)]) for name in POLICIES}
    assert len({tuple(r.tolist()) for r in played.values()}) == len(POLICIES)


def test_a_policy_acts_as_its_team_would():
    """Opponents by a policy choose what the policy chooses, with a memory of their own for each environment."""
    blue = make_policy(_blue_spec())
    env = sides(lambda spec, num_envs: PolicyOpponents.fixed(blue, spec, num_envs, name="x"), num_envs=2)
    whole = make_vector_env(Sides, {}, num_envs=2, name="sides")
    on, seeds = torch.ones(2, dtype=torch.bool), torch.tensor([3, 4])
    shown, all_shown = env.reset(on, seeds), whole.reset(on, seeds)
    state, last = blue.initial_state(2), torch.full((2, 2), -1)
    for _ in range(3):
        reds = shown.avail_actions.to(torch.uint8).argmax(-1)
        with torch.no_grad():
            q, state = blue(all_shown.obs[:, 3:], last, state)
        alive = all_shown.agent_mask[:, 3:]
        state = tuple(part * alive[..., None] for part in state)
        last = torch.where(all_shown.avail_actions[:, 3:], q, -torch.inf).argmax(-1)
        shown = env.step(reds, on).next
        all_shown = whole.step(torch.cat([reds, last], 1), on).next
        assert torch.equal(shown.obs, all_shown.obs[:, :3])


def test_a_reference_is_opened_once_and_plays():
    blue, opened = make_policy(_blue_spec()), []
    make = opponent_maker(OpponentSettings("outputs/x"), lambda reference: opened.append(reference) or blue)
    fixed = sides(lambda spec, num_envs: PolicyOpponents.fixed(blue, spec, num_envs, name="x"))
    played = [collect(Collector(env, make_policy(env.spec), seed=11, rank=0), 4)[0] for env in (sides(make), fixed)]
    assert opened == ["outputs/x"]
    for left, right in zip(*played, strict=True):
        assert_same(left, right)


def _blue_spec():
    return spec_of_slots(make_vector_env(Sides, {}, num_envs=1, name="sides").spec, [3, 4])


def test_self_plays_against_the_last_versions():
    env = sides(POLICIES["self"], num_envs=4)
    policy = make_policy(env.spec)
    collector = Collector(env, policy, seed=1, rank=0)
    for seed in range(5):
        collect(collector, 10)
        policy = later(policy, seed)
        collector.publish(policy)
    state = collector.state_dict()["team"]["opponents"]
    newest = sorted(map(int, state["weights"]))[-1]
    assert newest >= 3
    collect(collector, 10)  # by now every episode has begun after the last version came
    state = collector.state_dict()["team"]["opponents"]
    assert {newest - 1, newest} >= set(state["version"].tolist())
    assert set(map(int, state["weights"])) == {newest - 1, newest}
    for name, value in policy.state_dict().items():
        assert torch.equal(state["weights"][str(newest)][name], value)


def test_an_evaluation_against_self_is_against_the_present_policy():
    env = sides(POLICIES["self"])
    policies = [make_policy(env.spec, seed) for seed in (0, 1)]
    returns = []
    for policy in (policies[0], policies[1], policies[0]):
        acting = RolloutPolicy(policy, 3, env.device)
        returns.append(evaluate_episodes(env, acting, list(range(9)), seed=4).returns)
    assert returns[0] == returns[2]
    assert returns[0] != returns[1]


def test_an_episode_against_self_is_recorded_as_it_is_evaluated():
    env = sides(POLICIES["self"], num_envs=1)
    policy = make_policy(env.spec)
    evaluated = evaluate_episodes(env, RolloutPolicy(policy, 1, env.device), [0, 1], seed=4)
    fresh = sides(POLICIES["self"], num_envs=1)
    recorded = [record_episode(fresh, policy, seed=4, number=number, gamma=0.9) for number in (0, 1)]
    assert [episode.total_reward for episode in recorded] == pytest.approx(evaluated.returns)


def test_more_opponents_than_the_team_has_agents_are_several_teams():
    env = sides(POLICIES["self"], team=("blue_0",))
    found, *_ = collect(Collector(env, make_policy(env.spec), seed=1, rank=0), 6)
    assert found[0].actions.shape[1] == 1


def test_a_policy_of_another_size_is_refused():
    env = sides(POLICIES["random"], team=("right_0",), factory=Duel)
    with pytest.raises(ConfigurationError, match="see 3 numbers and have 3 actions, the policy takes 2 and knows 2"):
        Collector(sides(POLICIES["self"], team=("right_0",), factory=Duel), make_policy(env.spec), seed=1, rank=0)


def test_a_function_that_breaks_the_rules_ends_the_run():
    env = sides(OpponentSettings("support.sides:illegal"))
    with pytest.raises(RunError, match="illegal action"):
        collect(Collector(env, make_policy(env.spec), seed=1, rank=0), 1)


def test_a_function_is_shown_what_the_agent_sees():
    told = []

    def watched(agent, observation, action_mask, rng):
        told.append((agent, observation.shape, action_mask.dtype, action_mask.shape))
        return int(np.flatnonzero(action_mask)[0])

    env = sides(
        lambda spec, num_envs: FunctionOpponents(watched, spec, num_envs, name="f"), team=("left_*",), factory=Duel
    )
    collect(Collector(env, make_policy(env.spec), seed=1, rank=0), 1)
    assert set(told) == {("right_0", (2,), np.dtype(bool), (2,))}


def test_unknown_opponents_are_refused_before_anything_is_created():
    for name in ("support.sides:nothing", "nowhere_at_all:x", "randm"):
        with pytest.raises(Exception, match=r"env\.opponents") as caught:
            opponent_maker(OpponentSettings(name))
        assert caught.value.exit_status == 2
