"""IPPO and MAPPO: advantages, the clipped losses, what a round is prepared with, and the critics' inputs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qmix_lightning.algorithms.networks.ppo import critic_spec
from qmix_lightning.algorithms.ppo import clipped_surrogate, clipped_value_error, generalized_advantages
from qmix_lightning.algorithms.returns import continuation_mask
from qmix_lightning.components import build_learner
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.nn.running_moments import RunningMoments
from qmix_lightning.types import EntityBlock, Picture, TrajectoryBatch
from support import inprocess
from support.batches import LENGTHS, double_batch
from support.cases import every_value, pairwise
from support.compositions import run_config
from support.garbage import GARBAGE, INF, NAN, assert_unchanged, dirty_dead, dirty_padding
from support.on_policy_learners import changed_since, make_ppo, with_round
from support.plain_losses import ppo as plain
from support.small_policies import AGENTS, SPEC, N

NAMES = ("ippo", "mappo")


def batch(seed: int = 0, lengths: list[int] = LENGTHS, epsilon: float = 0.0) -> TrajectoryBatch:
    return with_round(double_batch(seed, lengths), seed, epsilon)


def prepared(learner, data: TrajectoryBatch) -> TrajectoryBatch:
    return replace(data, extras=data.extras | learner.prepare_round(data))


# Advantages -----------------------------------------------------------------------------------------------------------


def test_advantages_worked_out_by_hand():
    """gamma 0.5, lambda 0.5; rewards 1, 2, 4; values 8, 4, 2 and 16 at the last observation."""
    reward = torch.tensor([[1.0, 2.0, 4.0, NAN]]).repeat(3, 1)
    filled, terminated, truncated = torch.zeros(3, 3, 4, dtype=torch.bool)
    filled[:, :3] = truncated[1, 2] = True  # the third row is cut there by nothing but its end
    terminated[0, 2] = True
    value = torch.tensor([[8.0, 4.0, 2.0, 16.0, NAN]]).repeat(3, 1)
    continues = continuation_mask(filled, terminated, truncated)
    advantage = generalized_advantages(reward, terminated, continues, value, gamma=0.5, lambda_=0.5)
    # delta: 1 + 2 - 8 = -5; 2 + 1 - 4 = -1; terminated 4 - 2 = 2, else 4 + 8 - 2 = 10.
    # terminated: 2; -1 + 0.25 * 2 = -0.5; -5 + 0.25 * -0.5 = -5.125. Else: 10; -1 + 2.5 = 1.5; -5 + 0.375 = -4.625.
    assert advantage[0, :3].tolist() == [-5.125, -0.5, 2.0]
    assert advantage[1, :3].tolist() == advantage[2, :3].tolist() == [-4.625, 1.5, 10.0]


def test_lambda_spans_from_one_step_errors_to_returns():
    g = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 5, generator=g), torch.randn(2, 6, 3, generator=g)
    terminated = torch.zeros(2, 5, dtype=torch.bool)
    terminated[0, 4] = True
    continues = torch.ones(2, 5, dtype=torch.bool)
    continues[:, 4] = False
    bootstrap = torch.where(terminated[..., None], 0.0, value[:, 1:])
    one_step = reward[..., None] + 0.9 * bootstrap - value[:, :-1]
    torch.testing.assert_close(generalized_advantages(reward, terminated, continues, value, 0.9, 0.0), one_step)
    whole = generalized_advantages(reward, terminated, continues, value, 0.9, 1.0)
    for row in range(2):
        for t in range(5):
            played = sum(0.9 ** (k - t) * float(reward[row, k]) for k in range(t, 5))
            end = 0.9 ** (5 - t) * bootstrap[row, 4]
            torch.testing.assert_close(whole[row, t], played + end - value[row, t])


class Given(torch.nn.Module):
    """A critic whose values are told, ``[B, T+1, N]``."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, batch: TrajectoryBatch) -> Tensor:
        return self.value

    def observe(self, *_) -> None:
        pass


def death(limit: bool) -> TrajectoryBatch:
    """Two steps and one of padding; agent 0 dies at the first, and the team is paid 8 at the second."""
    data = batch(0, [2]).map(lambda x: x[:, :3] if x.dim() == 2 and x.shape[1] == 9 else x)
    data = replace(data, actions=data.actions[:, :3], **{
        name: getattr(data, name)[:, :4] for name in ("obs", "state", "avail_actions", "agent_mask")
    })  # fmt: skip
    data.reward = torch.tensor([[1.0, 8.0, NAN]], dtype=torch.float64)
    data.agent_mask[:] = True
    data.agent_mask[0, 1:, 0] = False
    data.terminated[:] = data.truncated[:] = False
    (data.truncated if limit else data.terminated)[0, 1] = True
    return data


@pytest.mark.parametrize("limit", [False, True])
def test_what_the_team_earns_after_a_death_reaches_the_dead(limit: bool):
    """gamma 0.5, lambda 0.5; the critic says 4, 2 and, of the last observation, 16, in every slot."""
    learner = make_ppo("mappo", gamma=0.5, gae_lambda=0.5, normalize_values=False, normalize_advantages=False)
    learner.critic = Given(torch.tensor([4.0, 2.0, 16.0, NAN], dtype=torch.float64)[None, :, None].expand(1, 4, N))
    made = learner.prepare_round(death(limit))
    # Second step: 8 - 2 = 6, or at a limit 8 + 8 - 2 = 14. First: 1 + 0.5 * 2 - 4 = -2, and 0.25 of the second.
    second = 14.0 if limit else 6.0
    first = -2.0 + 0.25 * second
    for agent in range(N):
        assert made["advantage"][0, :, agent].tolist() == [first, second, 0.0]
        assert made["target"][0, :, agent].tolist() == [first + 4, second + 2, 0.0]
    assert made["old_log_pi"][0, 1, 0] == 0.0  # the dead take the no-op for sure


def test_the_dead_are_not_counted_where_advantages_are_normalised():
    """The values above but for agent 0's at the second step, where it is dead: it changes nobody else's advantage."""
    found = []
    for value in (2.0, 1000.0):
        learner = make_ppo("mappo", gamma=0.5, gae_lambda=0.0, normalize_values=False)
        values = torch.tensor([4.0, 2.0, 16.0, NAN], dtype=torch.float64)[None, :, None].repeat(1, 1, N)
        values[0, 1, 0] = value
        learner.critic = Given(values)
        found.append(learner.prepare_round(death(False))["advantage"])
    # Alive: -2 and 6 of agents 1 and 2; of agent 0 1 + 0.5 * value - 4.
    for advantage, own in zip(found, (-2.0, 497.0), strict=True):
        counted = torch.tensor([own, -2.0, -2.0, 6.0, 6.0], dtype=torch.float64)
        mean, deviation = counted.mean(), counted.std(correction=0)
        torch.testing.assert_close(advantage[0, 0], (counted[:3] - mean) / deviation)
        torch.testing.assert_close(advantage[0, 1, 1:], (counted[3:] - mean) / deviation)


# Clipping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.5, 2.0, 2.5, 0.0),  # 1.25 at most
        (0.5, 2.0, 1.0, 1.0),  # worse than before: all of it, and the way back
        (1.5, -2.0, -3.0, -3.0),
        (0.5, -2.0, -1.5, 0.0),  # 0.75 at least
    ],
)
def test_the_surrogate_worked_out_by_hand(ratio: float, advantage: float, value: float, slope: float):
    """epsilon 0.25; the slope is that over the logarithm of the ratio."""
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    got = clipped_surrogate(log_ratio, torch.tensor([advantage], dtype=torch.float64), 0.25)
    assert got.item() == pytest.approx(value)
    assert torch.autograd.grad(got.sum(), log_ratio)[0].item() == pytest.approx(slope)


def test_values_clipped_by_hand():
    value, old = torch.tensor([1.0, 3.0, 3.0, -3.0]), torch.tensor([0.75, 0.0, 0.0, 0.0])
    target = torch.tensor([2.0, 4.0, 1.0, 4.0])
    # Within 0.5: its own error. Beyond: at least the error of 0.5, but its own if that is larger.
    assert clipped_value_error(value, old, target, 0.5).tolist() == [1.0, 12.25, 4.0, 49.0]
    assert clipped_value_error(value, old, target, None).tolist() == [1.0, 1.0, 4.0, 49.0]


# Rounds and losses beside loops ---------------------------------------------------------------------------------------

VARIANTS = [{}, {"normalize_values": False, "value_clip": None}, {"normalize_advantages": False, "entropy_coef": 0.0}]


@pytest.mark.parametrize(("agent", "changed", "name"), pairwise(AGENTS, VARIANTS, NAMES))
def test_round_and_loss_equal_plain_loops(name: str, changed: dict, agent: str):
    learner = make_ppo(name, agent, **changed)
    data = batch(1, [9, 1, 5, 7], epsilon=0.0 if changed else 0.3)
    assert not data.agent_mask.all()
    assert data.truncated.any()
    assert data.terminated.any()
    lengths = [9, 1, 5, 7]
    whole = prepared(learner, data)
    mean, deviation = 0.0, 1.0
    if learner.value_moments is not None:
        returns = plain.discounted_returns(data, lengths, learner.settings.gamma)
        mean = sum(returns) / len(returns)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in returns) / len(returns))
    expected = plain.plain_round(learner, data, lengths, mean, deviation)
    for key in learner.round_extras:
        for b, length in enumerate(lengths):
            assert whole.extras[key][b, length:].eq(0).all()
            got, wanted = whole.extras[key][b, :length], torch.tensor(expected[key][b], dtype=torch.float64)
            torch.testing.assert_close(got, wanted, msg=key)
    terms = changed_since(learner).loss(whole)
    total, count = plain.plain_loss(learner, whole, lengths)
    assert terms.count.item() == count
    assert terms.total.item() == pytest.approx(total, rel=1e-9)
    assert terms.sums["clipped"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_first_update_of_a_round_is_a_plain_policy_gradient(name: str):
    learner = make_ppo(name, entropy_coef=0.0)
    whole = prepared(learner, batch())
    terms = learner.loss(whole)
    assert terms.sums["kl"] == pytest.approx(0.0, abs=1e-12)
    assert terms.sums["clipped"] == 0
    terms.total.backward()
    got = [p.grad.clone() for p in learner.policy.parameters()]
    learner.zero_grad()
    clean = whole.mask_invalid()
    log_pi = learner._log_policy(clean).gather(-1, clean.actions[..., None])[..., 0]
    acting = clean.agent_mask[:, :-1] & clean.filled[..., None]
    (-(log_pi * whole.extras["advantage"])[acting].sum()).backward()
    for left, right in zip(got, learner.policy.parameters(), strict=True):
        torch.testing.assert_close(left, right.grad)


@pytest.mark.parametrize(("garbage", "name"), every_value(GARBAGE, NAMES))
def test_padding_and_dead_agents_change_nothing(name: str, garbage):
    learner = make_ppo(name)
    clean = batch()
    dirty = dirty_dead(dirty_padding(clean, garbage), garbage)
    made, other = learner.prepare_round(clean), make_ppo(name).prepare_round(dirty)
    assert all(torch.equal(made[key], other[key]) for key in learner.round_extras)
    empty = ~clean.filled[..., None]
    spoiled = {key: torch.where(empty, INF if garbage == "random" else garbage, made[key]) for key in made}
    assert_unchanged(
        changed_since(learner),
        replace(clean, extras=clean.extras | made),
        replace(dirty, extras=dirty.extras | spoiled),
    )


def test_a_dead_agents_policy_learns_nothing_and_its_critic_does():
    """Alone in its parameter set, an agent that is dead throughout."""
    learner, data = make_ppo("mappo"), batch()
    data.agent_mask[:, :, 1] = False
    changed_since(learner).loss(prepared(learner, data)).total.backward()
    policy, critic = learner.policy.agent.encode.weight.grad, learner.critic.network.agent.encode.weight.grad
    assert policy[1].abs().max() == 0
    assert policy[0].abs().max() > 0
    assert critic[1].abs().max() > 0


# What the networks see ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "critic_obs", "reads"),
    [("ippo", True, {"obs"}), ("mappo", True, {"obs", "state"}), ("mappo", False, {"state"})],
)
def test_what_the_critic_reads(name: str, critic_obs: bool, reads: set[str]):
    learner, clean = make_ppo(name, critic_obs=critic_obs), batch().mask_invalid()
    before, logits = learner.critic(clean), learner.policy.unroll(clean)
    for field in ("obs", "state"):
        other = replace(clean, **{field: getattr(clean, field) + 1.0})
        assert torch.equal(learner.critic(other), before) == (field not in reads), field
        assert torch.equal(learner.policy.unroll(other), logits) == (field == "state")


def test_a_critic_without_anything_to_see():
    with pytest.raises(ValueError, match="so the critic needs the observations: set critic_obs=true"):
        critic_spec(replace(SPEC, state_dim=0), obs=False, state=True)
    assert critic_spec(replace(SPEC, state_dim=0), obs=True, state=True).obs_dim == SPEC.obs_dim


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        ("entity_attention", {"obs_entities": (EntityBlock("food", 0, 2, 2),)}),
        ("convolutional", {"pictures": (Picture("grid", 0, (2, 2, 1)),)}),
    ],
)
def test_a_critic_that_looks_at_observations_it_is_not_given(agent: str, shown: dict):
    config = run_config("env=two_step", "algorithm=mappo", f"agent={agent}", "algorithm.critic_obs=false")
    with pytest.raises(ConfigurationError, match=f"'mappo' with agent={agent}: .* algorithm.critic_obs must be true"):
        build_learner(config, replace(SPEC, **shown))


# Statistics -----------------------------------------------------------------------------------------------------------


def test_values_keep_their_meaning_when_their_scale_moves():
    learner = make_ppo("mappo")
    learner.prepare_round(batch(0))
    clean = batch(2).mask_invalid()
    moments = learner.value_moments
    before, mean = moments.restore(learner.critic(clean)), float(moments.mean)
    data = batch(1)
    data.reward = 50.0 + 7.0 * data.reward
    made = learner.prepare_round(data)
    assert float(moments.mean) > mean + 1.0
    after, valid = moments.restore(learner.critic(clean)), clean.row_valid()
    torch.testing.assert_close(after[valid], before[valid])
    # No update of the round moves it again.
    moved = moments.mean.clone()
    learner.observe(data)
    learner.loss(replace(data, extras=data.extras | made))
    assert torch.equal(moments.mean, moved)


def test_the_behaviour_is_that_of_the_statistics_it_acted_with():
    """Observations are normalised in the policy that acted by what was seen before the round."""
    learner, data = make_ppo("ippo"), batch()
    learner.policy.inputs.moments = RunningMoments(data.obs.shape[-1])
    clean = data.mask_invalid()
    acted = learner._log_policy(clean).gather(-1, clean.actions[..., None])[..., 0].detach()
    made = learner.prepare_round(data)
    assert learner.policy.inputs.moments.count > 0
    torch.testing.assert_close(made["old_log_pi"][clean.filled], acted[clean.filled])


# Settings -------------------------------------------------------------------------------------------------------------


def test_parameter_groups():
    assert [g["name"] for g in make_ppo("ippo").parameter_groups()] == ["policy", "critic"]
    optimizer = torch.optim.Adam(make_ppo("mappo", critic_lr=0.25).parameter_groups(), lr=0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.25]


def test_it_asks_for_a_prepared_round():
    with pytest.raises(ValueError, match="use replay=on_policy"):
        make_ppo("ippo").loss(batch())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], not 1.5"),
        ({"gae_lambda": -0.5}, r"gae_lambda must be in \[0, 1\], not -0.5"),
        ({"clip_epsilon": 0.0}, "clip_epsilon must be above 0, not 0.0"),
        ({"value_clip": -1.0}, "value_clip must be above 0, not -1.0"),
        ({"value_coef": 0.0}, "value_coef must be above 0, not 0.0"),
        ({"critic_lr": -1.0}, "critic_lr must be above 0, not -1.0"),
        ({"entropy_coef": -0.1}, "entropy_coef must not be negative, but is -0.1"),
    ],
)
def test_bad_settings(settings: dict, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_ppo("mappo", **settings)


# Learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_agent_gives_itself_up_for_what_the_team_earns_later(tmp_path: Path):
    """Were the advantage cut at its death, the sure 0.1 would be the better choice."""
    arguments = [
        "env=pettingzoo",
        "env.id=support.fakes:Sacrifice",
        "agent=feedforward",
        "agent.hidden_dim=16",
        "algorithm=ippo",
        "optimizer.lr=1e-2",
        "rollout.num_envs=8",
        "replay.capacity=32",
        "replay.batch_size=32",
        "rollout.updates=4",
        "total_env_steps=1500",
        "eval_interval=1500",
        "eval_episodes=2",
        "logger=none",
        "trainer.accelerator=cpu",
        f"run_dir={tmp_path}",
    ]
    inprocess.succeed(arguments)
    assert json.loads((tmp_path / "summary.json").read_text())["eval"]["return_mean"] == 1.0
