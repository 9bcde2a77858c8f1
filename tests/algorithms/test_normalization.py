"""Observations, rewards and values by their running statistics: who sees them, and what the logs show."""

import json
import math
from dataclasses import replace

import pytest
import torch

from qmix_lightning.agents.policy import Policy
from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.algorithms.value_learner import ValueLearner
from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.mixers.none import NoMixer
from qmix_lightning.mixers.qmix import QMixer
from qmix_lightning.mixers.vdn import VDNMixer
from qmix_lightning.nn.layers import AgentLinear
from qmix_lightning.rollout.rollout_policy import RolloutPolicy
from qmix_lightning.types import Observation, TrajectoryBatch
from support import inprocess
from support.batches import double_batch, random_batch, value_settings
from support.cases import every_value, pairwise
from support.learners import make_learner
from support.runs import rows
from support.small_policies import AGENTS, OBS, PLAIN_AGENT, N, S, build_policy

LENGTHS = [4, 9, 6]
SHARING = [True, False, "group"]
EXTRAS = {"layer_norm": True, "dueling": True, "orthogonal_init": True}


def policy(agent="recurrent", *, share=True, dtype=torch.float64, normalize=True, **extras) -> Policy:
    torch.manual_seed(0)
    return build_policy(agent, share=share, inputs={"normalize_obs": normalize}, **extras).to(dtype)


def learner(mixer=None, *, agent="recurrent", share=True, normalize_obs=True, extras=None, **settings) -> QLearning:
    acting = policy(agent, share=share, normalize=normalize_obs, **(extras or {}))
    return QLearning(policy=acting, mixer=mixer or VDNMixer(), settings=value_settings(**settings)).double()


def batch_of(seed: int, scale: float = 5.0, shift: float = 2.0) -> TrajectoryBatch:
    batch = double_batch(seed, LENGTHS)
    return replace(batch, obs=batch.obs * scale + shift, reward=batch.reward * 3.0 + 1.0)


def seen_observations(batch: TrajectoryBatch) -> torch.Tensor:
    """``[K, O]``: of agents that are alive in rows that happened, by loops."""
    rows = []
    for b in range(batch.batch_size):
        for t in range(int(batch.filled[b].sum()) + 1):
            rows += [batch.obs[b, t, n] for n in range(N) if batch.agent_mask[b, t, n]]
    return torch.stack(rows)


# Observations ---------------------------------------------------------------------------------------------------------


def test_inputs_have_mean_zero_and_deviation_one_over_agents_that_are_alive():
    made = learner()
    batches = [batch_of(seed) for seed in range(3)]
    for batch in batches:
        poisoned = batch.obs.masked_fill(~batch.row_valid()[..., None, None], math.nan)
        made.observe(replace(batch, obs=poisoned))
    seen = torch.cat([seen_observations(batch) for batch in batches])
    inputs = made.policy.inputs
    assert inputs.moments is not None
    torch.testing.assert_close(inputs.moments.mean, seen.mean(0))
    torch.testing.assert_close(inputs.moments.deviation(seen), seen.std(0, correction=0))
    last = torch.full(seen.shape[:1], -1)
    everyone = inputs(seen[:, None].expand(-1, N, -1), last[:, None].expand(-1, N))[:, 0, :OBS]
    torch.testing.assert_close(everyone, ((seen - seen.mean(0)) / seen.std(0, correction=0)).clamp(-10, 10))


def test_outliers_are_clipped():
    made = learner()
    made.observe(batch_of(0))
    obs = torch.full((1, N, OBS), 1e9, dtype=torch.float64)
    assert made.policy.inputs(obs, torch.full((1, N), -1))[..., :OBS].unique().tolist() == [10.0]


@pytest.mark.parametrize(("agent", "share", "extras"), pairwise(AGENTS, SHARING, [PLAIN_AGENT, EXTRAS]))
def test_the_collector_computes_what_the_learner_computes(agent, share, extras):
    """A rollout policy made before anything was observed has the statistics as soon as the policy is published."""
    made = learner(agent=agent, share=share, extras=extras).float()
    rollout_policy = RolloutPolicy(made.policy, len(LENGTHS), torch.device("cpu"))
    batch = random_batch(1, LENGTHS)
    batch = replace(batch, obs=batch.obs * 5 + 2, agent_mask=torch.ones_like(batch.agent_mask))
    made.observe(batch)
    rollout_policy.publish(made.policy)
    with torch.no_grad():
        q = made.policy.unroll(batch)
    last = batch.last_actions()
    for t in range(min(LENGTHS) + 1):
        shown = Observation(batch.obs[:, t], batch.state[:, t], batch.avail_actions[:, t], batch.agent_mask[:, t])
        rollout_policy.last_action = last[:, t]
        values = q[:, t].where(batch.avail_actions[:, t], -math.inf)
        chosen = rollout_policy.act(shown, 0.0, None)
        margin = values.amax(-1) - values.gather(-1, chosen[..., None]).squeeze(-1)
        assert margin.max() < 1e-5


def test_both_networks_normalise_alike():
    made = learner(target_update_every=1000)
    for seed in range(2):
        made.observe(batch_of(seed))
        made.after_update(episodes=1, updates=1)
    pairs = zip(made.policy.inputs.buffers(), made.target_policy.inputs.buffers(), strict=True)
    assert all(torch.equal(online, target) for online, target in pairs)
    # Not by a copy of the parameters.
    with torch.no_grad():
        next(made.policy.parameters()).add_(1.0)
    made.after_update(episodes=2, updates=2)
    assert not torch.equal(next(made.policy.parameters()), next(made.target_policy.parameters()))


def test_statistics_are_saved():
    made, other = (learner(normalize_values=True, normalize_rewards="scale") for _ in range(2))
    made.observe(batch_of(0))
    made.loss(batch_of(0))
    other.load_state_dict(made.state_dict())
    batch = batch_of(1)
    for part in (made, other):
        part.observe(batch)
    assert torch.equal(made.loss(batch).total, other.loss(batch).total)


# Rewards --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scale", "standardize"])
def test_rewards_in_the_target(kind):
    """One-step targets of a value of zero are the normalised rewards, zero where no step happened."""
    made = ValueLearner(value_settings(normalize_rewards=kind)).double()
    batches = [batch_of(seed) for seed in range(2)]
    made.policy = policy(normalize=False)
    for batch in batches:
        made.observe(replace(batch, reward=batch.reward.masked_fill(~batch.filled, math.nan)))
    rewards = torch.cat([batch.reward[batch.filled] for batch in batches])
    mean, deviation = rewards.mean(), rewards.std(correction=0)
    batch = batches[1].mask_invalid()
    want = (batch.reward - mean) / deviation if kind == "standardize" else batch.reward / deviation
    got = made.returns(batch, torch.zeros_like(batch.reward))
    torch.testing.assert_close(got, want.masked_fill(~batch.filled, 0.0))


@pytest.mark.parametrize("reward", [-1.0, -0.1, 0.0])
def test_rewards_that_are_all_the_same_are_not_scaled(reward):
    """A cost of each step is all that is seen before the task is first solved."""
    made = ValueLearner(value_settings(normalize_rewards="scale")).double()
    made.policy = policy(normalize=False)
    batch = replace(batch_of(0), reward=torch.full_like(batch_of(0).reward, reward))
    for _ in range(3):
        made.observe(batch)
    batch = batch.mask_invalid()
    assert torch.equal(made.returns(batch, torch.zeros_like(batch.reward)), batch.reward)
    batch.reward[0, 0] += 1.0
    made.observe(batch)
    assert made.reward_moments is not None
    deviation = made.reward_moments.deviation(batch.reward)
    torch.testing.assert_close(made.returns(batch, torch.zeros_like(batch.reward)), batch.reward / deviation)


# Values ---------------------------------------------------------------------------------------------------------------


def discounted_returns(batches: list[TrajectoryBatch], gamma: float) -> torch.Tensor:
    """Of every step that happened, to the end of its row; by loops."""
    found = []
    for batch in batches:
        for b in range(batch.batch_size):
            rewards = batch.reward[b, : int(batch.filled[b].sum())].tolist()
            found += [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "mixer"), every_value(["one_step", "n_step", "peng_lambda", "td_lambda"], ["none", "vdn", "qmix"])
)
def test_targets_in_the_scale_of_what_was_played(kind, mixer):
    """Successors' values are restored before the return, and the return is normalised after it."""
    plain, normed = (make_learner(mixer, returns=kind, normalize_values=on) for on in (False, True))
    batches = [batch_of(2)]
    poisoned = replace(batches[0], reward=batches[0].reward.masked_fill(~batches[0].filled, math.nan))
    normed.observe(poisoned)
    played = discounted_returns(batches, gamma=0.9)
    mean, deviation = played.mean(), played.std(correction=0)
    assert normed.value_moments is not None
    torch.testing.assert_close(normed.value_moments.mean, mean)
    torch.testing.assert_close(normed.value_moments.deviation(mean), deviation)
    batch = batches[0].mask_invalid()
    shape = batch.reward.shape if mixer != "none" else (*batch.reward.shape, N)
    greedy, taken = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    in_returns = [values * deviation + mean for values in (greedy, taken)]
    if mixer == "none":  # an absent agent's value is no return, whatever the network says
        in_returns = [values.where(batch.agent_mask[:, 1:], torch.zeros_like(values)) for values in in_returns]
    want = plain.returns(batch, *in_returns)
    got = normed.returns(batch, greedy, taken)
    torch.testing.assert_close(got[batch.filled], ((want - mean) / deviation)[batch.filled])
    torch.testing.assert_close(normed.unscaled(got)[batch.filled], want[batch.filled])


def test_the_scale_does_not_feed_upon_itself():
    """Networks whose first values are far outside of deviation 1 do not raise the scale: it is that of the data."""
    made = make_learner("vdn", normalize_values=True, target_update_unit="updates", target_update_every=1)
    with torch.no_grad():
        for policy_ in (made.policy, made.target_policy):
            policy_.agent.head.bias += 30.0
    batch = batch_of(5)
    for update in range(20):
        made.observe(batch)
        terms = made.loss(batch)
        made.after_update(episodes=update, updates=update + 1)
    played = discounted_returns([batch], gamma=0.9)
    assert made.value_moments is not None
    torch.testing.assert_close(made.value_moments.deviation(played), played.std(correction=0))
    assert (terms.sums["target"] / terms.count).abs() < 100 * played.std()


def test_the_logs_show_the_scale_of_returns():
    """A network that says 0 says the mean of the returns played."""
    made = make_learner("vdn", normalize_values=True)
    batch = batch_of(3)
    made.observe(batch)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.zero_()
        terms = made.loss(batch)
    torch.testing.assert_close(terms.sums["q_taken"] / terms.count, discounted_returns([batch], gamma=0.9).mean())


def test_values_reach_their_true_scale():
    """A task of one step that pays 100 or 104: learned in units of the deviation, shown in units of the reward."""
    made = learner(NoMixer(), agent="feedforward", normalize_obs=False, normalize_values=True)
    made.value_moments.horizon = 10
    optimizer = torch.optim.Adam(made.policy.parameters(), lr=0.02)
    batch = double_batch(0, [1] * 40)
    batch = replace(
        batch,
        obs=torch.zeros_like(batch.obs),
        agent_mask=torch.ones_like(batch.agent_mask),
        avail_actions=torch.ones_like(batch.avail_actions),
        terminated=batch.filled,
        truncated=torch.zeros_like(batch.filled),
        actions=torch.randint(2, batch.actions.shape, generator=torch.Generator().manual_seed(0)),
    )
    first = batch.actions[:, :, :1].expand_as(batch.actions)
    batch = replace(batch, actions=first, reward=100.0 + 4.0 * first[:, :, 0])
    for _ in range(150):
        made.observe(batch)
        terms = made.loss(batch)
        optimizer.zero_grad()
        (terms.total / terms.count).backward()
        optimizer.step()
    with torch.no_grad():
        q = made.unscaled(made.policy.unroll(batch))[0, 0, :, :2]
    torch.testing.assert_close(q, torch.tensor([[100.0, 104.0]]).double().expand(N, 2), rtol=0, atol=0.1)


# Layers of the agents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agent", "share"), every_value(AGENTS, SHARING))
def test_everything_at_once_gets_gradients_and_goes_together(agent, share):
    made = learner(
        QMixer(
            n_agents=N, state_dim=S, embed_dim=4, hypernet_layers=1, hypernet_dim=4, positivity="abs", init_scale=1.0
        ),
        agent=agent,
        share=share,
        extras=EXTRAS,
        returns="peng_lambda",
        normalize_rewards="standardize",
        normalize_values=True,
    )
    batch = batch_of(4)
    made.observe(batch)
    terms = made.loss(batch)
    terms.total.backward()
    assert terms.total.isfinite()
    for name, parameter in made.policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("agent", "share", "dueling"), pairwise(AGENTS, SHARING, [False, True]))
def test_orthogonal_layers(agent, share, dueling):
    """Singular values are 1 in gates and heads and sqrt(2) before a ReLU, for each set and each gate; biases are 0."""
    network = policy(agent, share=share, dueling=dueling, orthogonal_init=True).agent
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, AgentLinear)}
    for name, layer in layers.items():
        gates = 3 if "gates" in name else 1
        gain = 1.0 if "gates" in name or name.startswith("head") else math.sqrt(2.0)
        assert layer.bias.abs().max() == 0
        for weight in layer.weight:
            for block in weight.detach().chunk(gates):
                singular = torch.linalg.svdvals(block)
                torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-5, atol=1e-5)
        if layer.n_sets > 1:
            assert not torch.equal(layer.weight[0], layer.weight[1]), name


# Through the command line ---------------------------------------------------------------------------------------------

SETTINGS = [
    "env=pettingzoo",
    "env.id=support.fakes:VaryingLength",
    "algorithm.returns=peng_lambda",
    "algorithm.normalize_rewards=standardize",
    "algorithm.normalize_values=true",
    "agent.normalize_obs=true",
    "agent.layer_norm=true",
    "agent.dueling=true",
    "agent.orthogonal_init=true",
    "agent.share_parameters=group",
    "optimizer=adam",
    "optimizer.lr_schedule=cosine",
    "optimizer.lr_anneal_steps=80",
    "optimizer.lr_final=1e-4",
    *inprocess.TINY,
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that normalises everything."""
    folder = tmp_path_factory.mktemp("normalised") / "whole"
    inprocess.succeed([*SETTINGS, "total_env_steps=90", f"run_dir={folder}"])
    return folder


def test_a_resumed_run_has_the_same_statistics_and_learning_rates(whole, tmp_path):
    """One run to the end, and one in two parts: weights, statistics, losses and learning rates agree bit for bit."""
    first, second = tmp_path / "first", tmp_path / "second"
    inprocess.succeed([*SETTINGS, "total_env_steps=45", f"run_dir={first}"])
    last = f"ckpt_path={first}/checkpoints/last.ckpt"
    inprocess.succeed([last, f"run_dir={second}", "total_env_steps=90", "env.id=support.fakes:VaryingLength"])
    a, b = (read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (whole, second))
    assert any("inputs.moments.mean" in name for name in a)
    assert any("value_moments.squares" in name for name in a)
    tensors = {name for name, value in a.items() if isinstance(value, torch.Tensor)}
    assert all(torch.equal(a[name], b[name]) for name in tensors)
    for column in ("train/loss", "train/lr"):
        left, right = ({r["updates"]: r[column] for r in rows(f) if r.get(column)} for f in (whole, second))
        assert left == right
    rates = [float(row["train/lr"]) for row in rows(whole) if row["train/lr"]]
    assert max(rates) < 5e-4
    assert rates[-1] == 1e-4
    assert sorted(rates, reverse=True) == rates


def test_an_evaluation_of_the_checkpoint_plays_with_its_statistics(whole):
    best = read_checkpoint(whole / "checkpoints" / "best.ckpt")
    moments = {name: value for name, value in best["state_dict"].items() if "policy.inputs.moments" in name}
    assert moments["learner.policy.inputs.moments.count"] > 0
    played = inprocess.succeed(
        [
            f"ckpt_path={whole}/checkpoints/best.ckpt",
            "episodes=4",
            "seed=1",
            "output=-",
            "env.id=support.fakes:VaryingLength",
        ],
        "evaluate",
    )
    assert json.loads(played.out)["return_mean"] == pytest.approx(best["eval"]["eval/return_mean"])
