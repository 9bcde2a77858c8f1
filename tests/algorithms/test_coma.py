"""COMA: the critic, the counterfactual advantage, targets and loss, each against its definition."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from qmix_lightning.agents.stochastic_policy import floored_log_policy
from qmix_lightning.algorithms import coma
from qmix_lightning.algorithms.coma import followed_by
from qmix_lightning.algorithms.networks.coma import CounterfactualCritic, counterfactual_advantage, expected_values
from qmix_lightning.training.module import TeamModule
from qmix_lightning.types import TrajectoryBatch
from support import inprocess
from support.batches import LENGTHS, double_batch, random_batch
from support.garbage import INF, NAN
from support.on_policy_learners import COMA_SETTINGS as SETTINGS
from support.on_policy_learners import make_coma, with_round
from support.plain_losses.coma import plain_loss
from support.small_policies import AGENTS, OBS, A, N, S
from support.updates import team


def batch(seed: int = 0, lengths: list[int] = LENGTHS) -> TrajectoryBatch:
    return with_round(double_batch(seed, lengths), seed)


# Critic and advantage -------------------------------------------------------------------------------------------------


def test_the_advantage_averages_to_zero_under_the_agents_policy():
    g = torch.Generator().manual_seed(3)
    q = torch.randn(40, N, A, generator=g, dtype=torch.float64)
    legal = torch.rand(40, N, A, generator=g) > 0.4
    legal[..., 0] = True
    pi = floored_log_policy(torch.randn(40, N, A, generator=g, dtype=torch.float64), legal, torch.tensor(0.1)).exp()
    every = torch.stack([counterfactual_advantage(q, pi, torch.full((40, N), a)) for a in range(A)], dim=-1)
    assert expected_values(every, pi).abs().max() < 1e-12
    assert every.abs().max() > 0.5


def test_the_learners_advantage_is_under_the_policy_that_acted(monkeypatch: pytest.MonkeyPatch):
    """In the loss too: with the floor of the round's epsilon, not the bare softmax."""
    seen = []

    def watched(q, probabilities, actions):
        seen.append((q, probabilities))
        return counterfactual_advantage(q, probabilities, actions)

    monkeypatch.setattr(coma, "counterfactual_advantage", watched)
    learner, data = make_coma(), batch()
    learner.loss(data)
    clean = data.mask_invalid()
    with torch.no_grad():
        logits, epsilon = learner.policy.unroll(clean)[:, :-1], data.extras["epsilon"][:, None, None]
        legal = clean.avail_actions[:, :-1]
        pi = floored_log_policy(logits, legal, epsilon, mask_before_softmax=False).exp()
    ((q, used),) = seen
    torch.testing.assert_close(used, pi)
    every = torch.stack([counterfactual_advantage(q, used, torch.full_like(clean.actions, a)) for a in range(A)], -1)
    assert expected_values(every, pi)[clean.filled].abs().max() < 1e-9
    assert every[clean.filled].abs().max() > 0.01


def test_values_of_illegal_actions_are_not_read():
    q, pi = torch.tensor([1.0, NAN, 3.0, INF]), torch.tensor([0.5, 0.0, 0.5, 0.0])
    assert expected_values(q, pi).item() == 2.0


def test_the_expected_gradient_is_that_of_the_return():
    """With the true values, the mean over joint actions of the actor's gradient is the gradient of the mean return."""
    payoff = torch.tensor([[11.0, -30, 0], [-30, 7, 6], [0, 0, 5]], dtype=torch.float64)
    logits = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    legal, epsilon = torch.ones(2, 3, dtype=torch.bool), torch.tensor(0.2)
    log_pi = floored_log_policy(logits, legal, epsilon)
    pi = log_pi.exp()
    (expected,) = torch.autograd.grad((pi[0, :, None] * pi[1] * payoff).sum(), logits, retain_graph=True)
    surrogate = torch.zeros((), dtype=torch.float64)
    for u in itertools.product(range(3), repeat=2):
        q = torch.stack([payoff[:, u[1]], payoff[u[0]]])  # for each agent's own action, the other's staying
        advantage = counterfactual_advantage(q, pi.detach(), torch.tensor(u))
        chance = (pi[0, u[0]] * pi[1, u[1]]).detach()
        surrogate = surrogate + chance * sum(log_pi[a, u[a]] * advantage[a] for a in range(2))
    (got,) = torch.autograd.grad(surrogate, logits)
    torch.testing.assert_close(got, expected)
    assert expected.abs().max() > 0.1


def test_an_agents_own_action_is_no_input_of_its_values():
    torch.manual_seed(5)
    critic = CounterfactualCritic(n_agents=N, n_actions=A, obs_dim=OBS, state_dim=S, hidden_dim=16).double()
    state, obs = torch.randn(6, S, dtype=torch.float64), torch.randn(6, N, OBS, dtype=torch.float64)
    actions, last = torch.randint(A, (6, N)), torch.randint(-1, A, (6, N))
    before = critic(state, obs, actions, last)
    for own in range(N):
        other = actions.clone()
        other[:, own] = (other[:, own] + 1) % A
        after = critic(state, obs, other, last)
        assert torch.equal(after[:, own], before[:, own])
        others = [i for i in range(N) if i != own]
        assert ((after - before)[:, others].abs().amax(-1) > 1e-6).all()
        moved = last.clone()
        moved[:, own] = (moved[:, own] + 2) % (A + 1) - 1
        assert ((critic(state, obs, actions, moved) - before).abs().amax(-1) > 1e-6).all()


# Targets and loss -----------------------------------------------------------------------------------------------------


class Given(torch.nn.Module):
    """A critic whose values are told: ``q [B, T, N, A]``."""

    def __init__(self, q: torch.Tensor) -> None:
        super().__init__()
        self.q = q

    def forward(self, *_) -> torch.Tensor:
        return self.q


def test_targets_worked_out_by_hand():
    """gamma 0.5, lambda 0.25, three steps of reward 1, 2, 4; all values are 8 (action 0) and 16 (action 1)."""
    learner = make_coma(gamma=0.5, td_lambda=0.25)
    learner.target_critic = Given(torch.tensor([8.0, 16.0, 0.0, 0.0], dtype=torch.float64).expand(3, 4, N, A))
    data = batch(lengths=[3, 3, 2])
    t = 4
    data = data.map(lambda x: x[:, : t + (x.dim() > 1 and x.shape[1] == 10)] if x.dim() > 1 and x.shape[1] > N else x)
    data.filled = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    data.terminated = torch.zeros(3, t, dtype=torch.bool)
    data.truncated = torch.zeros(3, t, dtype=torch.bool)
    data.terminated[0, 2] = data.truncated[1, 2] = data.terminated[2, 1] = True
    data.reward = torch.tensor([[1.0, 2, 4, NAN]], dtype=torch.float64).expand(3, t).clone()
    data.avail_actions[:] = data.agent_mask[:] = True
    data.actions = torch.tensor([0, 1, 0, 3])[None, :, None].expand(3, t, N).clone()  # values taken: -, 16, 8
    pi = torch.tensor([0.25, 0.75, 0.0, 0.0], dtype=torch.float64).expand(3, t + 1, N, A)
    clean = data.mask_invalid()
    actions = followed_by(clean, pi, torch.full((3, N), 0.9))
    assert (actions[1, 3] == 1).all()
    y = learner.targets(clean, actions, pi)
    # Terminated: 4; 2 + 0.5 (0.75 * 8 + 0.25 * 4) = 5.5; 1 + 0.5 (0.75 * 16 + 0.25 * 5.5) = 7.6875.
    # Truncated: the policy's mean 14 is bootstrapped: 4 + 7 = 11; 2 + 3 + 1.375 = 6.375; 1 + 6 + 0.796875 = 7.796875.
    # Two steps: 2; 1 + 0.5 (0.75 * 16 + 0.25 * 2) = 7.25.
    expected = [[7.6875, 5.5, 4.0], [7.796875, 6.375, 11.0], [7.25, 2.0]]
    for row, values in enumerate(expected):
        for step, value in enumerate(values):
            assert y[row, step].tolist() == pytest.approx([value] * N), (row, step)


def test_draws_that_half_precision_rounds_up_take_legal_actions():
    clean = batch().mask_invalid()
    pi = torch.zeros(*clean.agent_mask.shape, A)
    pi[..., 2] = 1.0
    draws = torch.full((len(LENGTHS), N), 1 - 2.0**-24).bfloat16()
    assert (draws == 1).all()
    actions = followed_by(clean, pi, draws)
    for row, length in enumerate(LENGTHS):
        assert (actions[row, length] == 2).all()
        assert torch.equal(actions[row, :length], clean.actions[row, :length])


@pytest.mark.parametrize("mask_before_softmax", [True, False])
@pytest.mark.parametrize("agent", AGENTS)
def test_loss_equals_plain_loops(agent: str, mask_before_softmax: bool):
    learner = make_coma(agent, mask_before_softmax=mask_before_softmax)
    for seed, lengths in [(1, [9, 1, 5, 7]), (2, [2, 3])]:
        data = batch(seed, lengths)
        assert not data.agent_mask.all()
        assert data.truncated.any()
        terms = learner.loss(data)
        total, count = plain_loss(learner, data, lengths)
        assert terms.count.item() == count
        assert terms.total.item() == pytest.approx(total, rel=1e-6)


def test_a_dead_agents_policy_learns_nothing():
    """Alone in its parameter set, an agent that is dead throughout gets no gradient from the actor's loss."""
    learner, data = make_coma(), batch()
    data.agent_mask[:, :, 1] = False  # the only agent of its group
    learner.loss(data).total.backward()
    head = learner.policy.agent.head.weight.grad
    assert head[1].abs().max() == 0
    assert head[0].abs().max() > 0


def test_nothing_of_the_actors_loss_reaches_the_critic():
    with_actor, data = make_coma(entropy_coef=0.0), batch()
    terms = with_actor.loss(data)
    terms.total.backward()
    alone = make_coma(entropy_coef=0.0)
    clean = data.mask_invalid()
    epsilon = clean.extras["epsilon"][:, None, None]
    pi = alone.policy.log_policy(alone.policy.unroll(clean), clean.avail_actions, epsilon).exp()
    y = alone.targets(clean, followed_by(clean, pi, clean.extras["draws"]), pi)
    q = alone.critic(clean.state[:, :-1], clean.obs[:, :-1], clean.actions, clean.last_actions()[:, :-1])
    error = q.gather(-1, clean.actions[..., None])[..., 0] - y
    (SETTINGS["critic_coef"] * error.square())[clean.filled].sum().backward()
    for left, right in zip(with_actor.critic.parameters(), alone.critic.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)


def test_parameter_groups():
    assert [g["name"] for g in make_coma().parameter_groups()] == ["policy", "critic"]
    groups = make_coma(critic_lr=0.25).parameter_groups()
    optimizer = torch.optim.Adam(groups, lr=0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.25]


def norms(module: TeamModule) -> list[float]:
    """Of the actors' and the critic's gradient as they are after a round of gradients 100 times as large, clipped."""
    optimizer = module.configure_optimizers()
    (100 * module.learner.loss(batch()).total).backward()
    module.configure_gradient_clipping(optimizer)
    groups = [[p.grad.flatten() for p in g["params"] if p.grad is not None] for g in optimizer.param_groups]
    return [torch.cat(gradients).norm().item() for gradients in groups]


def test_actors_and_critic_are_clipped_by_their_own_norms():
    """``team`` clips at 10; the critic's own limit is 2, or 10 too."""
    assert norms(team(make_coma())) == pytest.approx([10.0, 2.0])
    assert norms(team(make_coma(critic_max_grad_norm=10.0))) == pytest.approx([10.0, 10.0])
    together = norms(team(make_coma(critic_max_grad_norm=None)))
    assert math.hypot(*together) == pytest.approx(10.0)


def test_the_target_critic_follows():
    learner = make_coma(target_update_every=10)
    learner.after_update(episodes=9, updates=1)
    same = [torch.equal(a, b) for a, b in zip(learner.critic.parameters(), learner.target_critic.parameters())]  # noqa: B905
    assert not any(same)
    learner.after_update(episodes=10, updates=2)
    for a, b in zip(learner.critic.parameters(), learner.target_critic.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_asks_for_on_policy_data():
    with pytest.raises(ValueError, match="use replay=on_policy"):
        make_coma().loss(random_batch(0, LENGTHS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_coef": 0.0}, "critic_coef must be above 0, not 0.0"),
        ({"critic_lr": -1.0}, "critic_lr must be above 0, not -1.0"),
        ({"critic_max_grad_norm": 0.0}, "critic_max_grad_norm must be above 0, not 0.0"),
        ({"entropy_coef": -0.1}, "entropy_coef must not be negative, but is -0.1"),
        ({"critic_hidden_dim": 0}, "critic_hidden_dim must be at least 1, not 0"),
        ({"td_lambda": 1.2}, r"td_lambda must be in \[0, 1\], not 1.2"),
    ],
)
def test_bad_settings(settings: dict, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_coma(**settings)


# Learning -------------------------------------------------------------------------------------------------------------


def greedy_return(tmp_path: Path, seed: int) -> float:
    inprocess.succeed(["experiment=two_step_coma", f"seed={seed}", f"run_dir={tmp_path}", "logger=none"])
    return json.loads((tmp_path / "summary.json").read_text())["eval"]["return_mean"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6])
def test_it_finds_the_better_branch_of_the_two_step_game(tmp_path: Path, seed: int):
    assert greedy_return(tmp_path, seed) == 8.0
