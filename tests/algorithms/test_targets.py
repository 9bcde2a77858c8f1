"""Targets against numbers worked out by hand.

Most cases share one tiny episode; its networks are stubs that return the tensors given, so that every number shows.
"""

import pytest
import torch
from torch import nn

from qmix_lightning.action_selection import chosen_values, greedy_values
from qmix_lightning.algorithms.base import masked_sum
from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.algorithms.returns import one_step_targets
from qmix_lightning.mixers.none import NoMixer
from qmix_lightning.mixers.vdn import VDNMixer
from qmix_lightning.types import TrajectoryBatch
from support.batches import value_settings
from support.cases import every_value

INF, NAN = float("inf"), float("nan")


class GivenValues(nn.Module):
    """A policy whose values are given, whatever it sees."""

    reads_alive_only = False

    def __init__(self, q):
        super().__init__()
        self.q = nn.Parameter(torch.tensor(q, dtype=torch.float64))

    def unroll(self, batch):
        assert self.q.shape == batch.avail_actions.shape
        return self.q


class StatePlusSum(nn.Module):
    """100 times the state's first number, plus the sum of the values: shows which state was used."""

    def forward(self, agent_qs, state):
        return 100.0 * state[..., 0] + agent_qs.sum(-1)


def learner(online, target, mixer=None, *, gamma=0.5, double_q=True):
    made = QLearning(
        policy=GivenValues(online),
        mixer=VDNMixer() if mixer is None else mixer,
        settings=value_settings(gamma=gamma, double_q=double_q, target_update_every=1, target_update_tau=1.0),
    )
    with torch.no_grad():
        made.target_policy.q.copy_(torch.tensor(target, dtype=torch.float64))
    return made


def episode(*, terminated=False, truncated=True, length=2, horizon=2, alive=None, avail=None, reward=(1.0, 2.0)):
    """One row, two agents, two actions; agent 1 takes 0 then 1, agent 2 takes 1 then 1. States 1, 2, 3."""
    t = horizon
    filled = torch.arange(t)[None] < length
    last = torch.arange(t)[None] == length - 1
    avail = torch.ones(1, t + 1, 2, 2, dtype=torch.bool) if avail is None else torch.tensor(avail)
    alive = torch.ones(1, t + 1, 2, dtype=torch.bool) if alive is None else torch.tensor(alive)
    return TrajectoryBatch(
        obs=torch.zeros(1, t + 1, 2, 1, dtype=torch.float64),
        state=torch.arange(1.0, t + 2, dtype=torch.float64).reshape(1, t + 1, 1),
        avail_actions=avail,
        agent_mask=alive,
        actions=torch.tensor([[[0, 1], [1, 1], [0, 0]]])[:, :t],
        reward=torch.tensor([[*reward, 0.0]], dtype=torch.float64)[:, :t],
        terminated=last & terminated,
        truncated=last & truncated,
        filled=filled,
    )


#            t = 0                     t = 1                     t = 2 (after the last step)
ONLINE = [[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 7.0], [8.0, 6.0]], [[9.0, 1.0], [2.0, 3.0]]]]
TARGET = [[[[9.0, 9.0], [9.0, 9.0]], [[10.0, 20.0], [30.0, 40.0]], [[50.0, 60.0], [70.0, 80.0]]]]


def targets(made, batch):
    batch = batch.mask_invalid()
    return made.targets(batch, made.policy.unroll(batch))


# Double Q: the online network selects, the target network evaluates.
#   t = 0: at t = 1 agent 1's online best is action 1 (7 > 5), worth 20; agent 2's is action 0 (8 > 6), worth 30.
#          The team: 50. y = 1 + 0.5 * 50 = 26.
#   t = 1: at t = 2 agent 1's online best is action 0 (9 > 1), worth 50; agent 2's is action 1 (3 > 2), worth 80.
#          The team: 130. Truncated: y = 2 + 0.5 * 130 = 67. Terminated: y = 2.


def test_truncation_bootstraps_from_the_true_last_observation():
    assert targets(learner(ONLINE, TARGET), episode(truncated=True)).tolist() == [[26.0, 67.0]]


def test_termination_does_not():
    assert targets(learner(ONLINE, TARGET), episode(terminated=True, truncated=False)).tolist() == [[26.0, 2.0]]


def test_terminated_wins_where_both_are_set():
    assert targets(learner(ONLINE, TARGET), episode(terminated=True, truncated=True)).tolist() == [[26.0, 2.0]]


def test_without_an_end_a_segment_bootstraps_too():
    assert targets(learner(ONLINE, TARGET), episode(truncated=False)).tolist() == [[26.0, 67.0]]


def test_ordinary_maximum():
    # The target network's own best: t = 1: 20 + 40 = 60, y = 1 + 30 = 31. t = 2: 60 + 80 = 140, y = 2 + 70 = 72.
    made = learner(ONLINE, TARGET, double_q=False)
    assert targets(made, episode(truncated=True)).tolist() == [[31.0, 72.0]]


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, [1.0, 2.0]), (1.0, [51.0, 132.0])])
def test_discount(gamma, expected):
    assert targets(learner(ONLINE, TARGET, gamma=gamma), episode()).tolist() == [expected]


@pytest.mark.parametrize(("value", "double_q"), every_value([1000.0, INF, NAN], [True, False]))
def test_an_illegal_best_action_is_passed_over(value, double_q):
    # At t = 2 agent 1 may take action 1 only, worth 60 to the target network; agent 2 stays at 80 (action 1).
    # y = 2 + 0.5 * 140 = 72, however good the illegal action looks to either network.
    online = [[*ONLINE[0][:2], [[value, 1.0], [2.0, 3.0]]]]
    target = [[*TARGET[0][:2], [[value, 60.0], [70.0, 80.0]]]]
    both = [[True, True], [True, True]]
    avail = [[both, both, [[False, True], [True, True]]]]
    first = 26.0 if double_q else 31.0
    assert targets(learner(online, target, double_q=double_q), episode(avail=avail)).tolist() == [[first, 72.0]]


def test_a_dead_agent_adds_nothing():
    # Agent 2 dies in step 0: t = 1 is worth 20 alone, y = 1 + 10 = 11; t = 2 50 alone, y = 2 + 25 = 27.
    alive = [[[True, True], [True, False], [True, False]]]
    assert targets(learner(ONLINE, TARGET), episode(alive=alive)).tolist() == [[11.0, 27.0]]


def test_an_agent_that_dies_in_the_last_step_adds_nothing_to_the_bootstrap():
    # t = 2 is worth agent 1's 50 alone: y = 2 + 25 = 27.
    alive = [[[True, True], [True, True], [True, False]]]
    assert targets(learner(ONLINE, TARGET), episode(alive=alive)).tolist() == [[26.0, 27.0]]


def test_the_target_mixer_receives_the_next_state():
    # t = 0: state 2 follows: 200 + 50 = 250, y = 1 + 125 = 126. t = 1: state 3: 300 + 130 = 430, y = 2 + 215 = 217.
    made = learner(ONLINE, TARGET, StatePlusSum())
    assert targets(made, episode()).tolist() == [[126.0, 217.0]]


def test_the_online_mixer_receives_the_present_state():
    # Taken: t = 0: 1 + 4 = 5 in state 1: 105; t = 1: 7 + 6 = 13 in state 2: 213.
    # Errors: 105 - 126 = -21; 213 - 217 = -4. Squares: 441 + 16 = 457.
    terms = learner(ONLINE, TARGET, StatePlusSum()).loss(episode())
    assert terms.total.item() == 457.0
    assert terms.count.item() == 2
    assert terms.sums["q_taken"].item() == 318.0
    assert terms.sums["target"].item() == 343.0
    assert terms.sums["td_error_abs"].item() == 25.0


def test_loss_by_hand():
    # Taken: 5 and 13 (above). Targets: 26 and 67. Errors: -21 and -54. Squares: 441 + 2916 = 3357.
    terms = learner(ONLINE, TARGET).loss(episode())
    assert terms.total.item() == 3357.0
    assert terms.count.item() == 2


def test_gradient_by_hand():
    # d/dq of (sum - y)^2 is 2 * error for each action taken; the target and its selection have no gradient.
    made = learner(ONLINE, TARGET)
    made.loss(episode()).total.backward()
    expected = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    expected[0, 0, 0, 0] = expected[0, 0, 1, 1] = 2 * -21.0
    expected[0, 1, 0, 1] = expected[0, 1, 1, 1] = 2 * -54.0
    assert torch.equal(made.policy.q.grad, expected)
    assert made.target_policy.q.grad is None


@pytest.mark.parametrize("padding", [0.0, 77.0, INF, NAN])
def test_padding_is_not_counted(padding):
    # The row is one step longer than the episode: the third step's reward must not count, nor what follows it.
    online = [[*ONLINE[0], [[padding, padding], [padding, padding]]]]
    target = [[*TARGET[0], [[padding, padding], [padding, padding]]]]
    batch = episode(horizon=3)
    batch.reward[0, 2] = padding
    batch.state[0, 3] = padding
    terms = learner(online, target).loss(batch)
    assert terms.total.item() == 3357.0
    assert terms.count.item() == 2
    assert terms.sums["td_error_abs"].item() == 75.0


def test_team_loss_where_an_agent_is_dead():
    # Agent 2 is dead from t = 1. Taken: 5, then 7 alone. Targets: 11 and 27. Errors: -6 and -20: 36 + 400 = 436.
    alive = [[[True, True], [True, False], [True, False]]]
    terms = learner(ONLINE, TARGET).loss(episode(alive=alive))
    assert terms.total.item() == 436.0
    assert terms.count.item() == 2  # steps count for the team, whoever lives


# Without a mixer each agent has its own target: the team reward plus its own value.
#   t = 0: agent 1: 1 + 0.5 * 20 = 11, agent 2: 1 + 0.5 * 30 = 16. t = 1: 2 + 25 = 27, 2 + 40 = 42.


def test_independent_targets():
    made = learner(ONLINE, TARGET, NoMixer())
    assert targets(made, episode()).tolist() == [[[11.0, 16.0], [27.0, 42.0]]]
    ended = episode(terminated=True, truncated=False)
    assert targets(made, ended).tolist() == [[[11.0, 16.0], [2.0, 2.0]]]


def test_independent_loss():
    # Taken: 1 and 4, 7 and 6. Errors: -10, -12, -20, -36. Squares: 100 + 144 + 400 + 1296 = 1940.
    terms = learner(ONLINE, TARGET, NoMixer()).loss(episode())
    assert terms.total.item() == 1940.0
    assert terms.count.item() == 4


def test_independent_loss_leaves_out_the_dead():
    # Agent 2 dies in step 0 (it acted, so step 0 counts, worth the reward alone: y = 1, error 4 - 1 = 3);
    # step 1 counts for agent 1 alone. Squares: 100 + 9 + 400 = 509.
    alive = [[[True, True], [True, False], [True, False]]]
    terms = learner(ONLINE, TARGET, NoMixer()).loss(episode(alive=alive))
    assert terms.total.item() == 509.0
    assert terms.count.item() == 3
    assert terms.sums["q_taken"].item() == 12.0


def test_independent_loss_leaves_out_padding():
    made = learner([[*ONLINE[0], ONLINE[0][0]]], [[*TARGET[0], TARGET[0][0]]], NoMixer())
    terms = made.loss(episode(horizon=3))
    assert terms.total.item() == 1940.0
    assert terms.count.item() == 4


# The pure functions ---------------------------------------------------------------------------------------------------


def test_one_step_targets():
    reward = torch.tensor([[1.0, -2.0]])
    ended = torch.tensor([[False, True]])
    assert one_step_targets(reward, ended, torch.tensor([[4.0, 4.0]]), 0.25).tolist() == [[2.0, -2.0]]
    per_agent = torch.tensor([[[4.0, 8.0], [4.0, 8.0]]])
    assert one_step_targets(reward, ended, per_agent, 0.25).tolist() == [[[2.0, 3.0], [-2.0, -2.0]]]


@pytest.mark.parametrize("garbage", [INF, -INF, NAN])
def test_the_value_after_the_end_is_never_used(garbage):
    got = one_step_targets(torch.tensor([[3.0]]), torch.tensor([[True]]), torch.tensor([[garbage]]), 0.9)
    assert got.tolist() == [[3.0]]


def test_greedy_values_select_and_evaluate():
    select = torch.tensor([[1.0, 3.0, 2.0], [NAN, 0.0, 5.0]])
    evaluate = torch.tensor([[10.0, 20.0, 30.0], [INF, 40.0, 50.0]])
    avail = torch.tensor([[True, False, True], [False, True, False]])
    assert greedy_values(select, evaluate, avail).tolist() == [30.0, 40.0]


def test_chosen_values_and_masked_sum():
    q = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert chosen_values(q, torch.tensor([1, 0])).tolist() == [2.0, 3.0]
    assert masked_sum(torch.tensor([1.0, NAN, INF, 4.0]), torch.tensor([True, False, False, True])).item() == 5.0


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\), \(2, 3\), \(2, 4\)"):
        greedy_values(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected reward, terminated and continues \(2, 3\), got \(2, 4\)"):
        one_step_targets(torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3), 0.9)
