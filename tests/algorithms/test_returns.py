"""Returns against their definitions, as slow loops in plain Python, and against numbers worked out by hand."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_lightning.action_selection import chosen_values
from qmix_lightning.algorithms.returns import continuation_mask, lambda_returns, n_step_returns, one_step_targets
from qmix_lightning.algorithms.value_learner import ValueLearner, td_errors
from support.batches import double_batch, value_settings
from support.cases import every_value, pairwise
from support.learners import make_learner

GAMMA = 0.9
NAN = float("nan")


class Row:
    """One row in plain Python: its rewards, how it ended, and ``V(s_{t+1})`` after each step."""

    def __init__(self, rewards: list[float], values: list[float], terminated: bool):
        self.rewards, self.values, self.terminated = rewards, values, terminated
        self.length = len(rewards)

    def n_step(self, t: int, n: int, gamma: float) -> float:
        """``r_t + ... + gamma^(n-1) r_{t+n-1} + gamma^n V(s_{t+n})``, cut where the row ends."""
        end = min(t + n, self.length)
        total = sum(gamma ** (k - t) * self.rewards[k] for k in range(t, end))
        over = end == self.length and self.terminated
        return total if over else total + gamma ** (end - t) * self.values[end - 1]

    def lambda_return(self, t: int, gamma: float, lambda_: float) -> float:
        """``(1 - lambda) sum_n lambda^(n-1) G_n``, all that is beyond the end on the longest of them (eq. 12.3)."""
        left = self.length - t
        total = sum((1 - lambda_) * lambda_ ** (n - 1) * self.n_step(t, n, gamma) for n in range(1, left))
        return total + lambda_ ** (left - 1) * self.n_step(t, left, gamma)


def random_rows(seed: int, agents: int | None, *, segments: bool = True):
    """Tensors of rows of 1 to 7 steps in a width of 8 whose padding is NaN, and the same as plain :class:`Row`."""
    rng = random.Random(seed)
    width, lengths = 8, [rng.randint(1, 7) for _ in range(9)] + [8]
    shape = (len(lengths), width) if agents is None else (len(lengths), width, agents)
    reward = torch.full((len(lengths), width), NAN, dtype=torch.float64)
    value = torch.full(shape, NAN, dtype=torch.float64)
    flags = {name: torch.zeros(len(lengths), width, dtype=torch.bool) for name in ("terminated", "truncated", "filled")}
    rows = []
    for b, length in enumerate(lengths):
        rewards = [rng.gauss(0, 1) for _ in range(length)]
        reward[b, :length] = torch.tensor(rewards, dtype=torch.float64)
        flags["filled"][b, :length] = True
        end = rng.choice(["terminated", "truncated", "both", *(["segment"] if segments else [])])
        for name in ("terminated", "truncated"):
            flags[name][b, length - 1] = end in (name, "both")
        per_agent = []
        for n in range(agents or 1):
            values = [rng.gauss(0, 1) for _ in range(length)]
            where = (b, slice(0, length)) if agents is None else (b, slice(0, length), n)
            value[where] = torch.tensor(values, dtype=torch.float64)
            per_agent.append(Row(rewards, values, end in ("terminated", "both")))
        rows.append(per_agent)
    return reward, flags, value, rows


def expected(rows, shape, function) -> torch.Tensor:
    """``function(row, t)`` for every step that happened, NaN elsewhere."""
    out = torch.full(shape, NAN, dtype=torch.float64)
    for b, per_agent in enumerate(rows):
        for n, row in enumerate(per_agent):
            for t in range(row.length):
                out[(b, t) if len(shape) == 2 else (b, t, n)] = function(row, t)
    return out


def assert_equal_where_filled(got: torch.Tensor, want: torch.Tensor, filled: torch.Tensor) -> None:
    assert got.shape == want.shape
    torch.testing.assert_close(got[filled], want[filled], rtol=1e-12, atol=1e-12)


class TestAgainstTheDefinition:
    @pytest.mark.parametrize(("lambda_", "seed", "agents"), pairwise([0.0, 0.3, 0.6, 1.0], range(3), [None, 3]))
    def test_lambda_returns(self, seed, agents, lambda_):
        reward, flags, value, rows = random_rows(seed, agents)
        continues = continuation_mask(flags["filled"], flags["terminated"], flags["truncated"])
        got = lambda_returns(reward, flags["terminated"], continues, value, GAMMA, lambda_)
        want = expected(rows, value.shape, lambda row, t: row.lambda_return(t, GAMMA, lambda_))
        assert_equal_where_filled(got, want, flags["filled"])

    @pytest.mark.parametrize(("n", "seed", "agents"), pairwise([1, 2, 3, 50], range(3), [None, 3]))
    def test_n_step_returns(self, seed, agents, n):
        reward, flags, value, rows = random_rows(seed, agents)
        continues = continuation_mask(flags["filled"], flags["terminated"], flags["truncated"])
        got = n_step_returns(reward, flags["terminated"], continues, value, GAMMA, n)
        want = expected(rows, value.shape, lambda row, t: row.n_step(t, n, GAMMA))
        assert_equal_where_filled(got, want, flags["filled"])

    @pytest.mark.parametrize(("seed", "agents"), every_value(range(3), [None, 3]))
    def test_the_ends_of_the_scale(self, seed, agents):
        reward, flags, value, rows = random_rows(seed, agents)
        terminated, filled = flags["terminated"], flags["filled"]
        continues = continuation_mask(filled, terminated, flags["truncated"])
        one = one_step_targets(reward, terminated, value, GAMMA)
        assert_equal_where_filled(lambda_returns(reward, terminated, continues, value, GAMMA, 0.0), one, filled)
        assert_equal_where_filled(n_step_returns(reward, terminated, continues, value, GAMMA, 1), one, filled)

        def monte_carlo(row, t):
            rest = row.length - t
            total = sum(GAMMA**k * r for k, r in enumerate(row.rewards[t:]))
            return total + (0.0 if row.terminated else GAMMA**rest * row.values[-1])

        full = expected(rows, value.shape, monte_carlo)
        assert_equal_where_filled(lambda_returns(reward, terminated, continues, value, GAMMA, 1.0), full, filled)
        for n in (8, 10**9):  # more steps than any row has cost no more
            assert_equal_where_filled(n_step_returns(reward, terminated, continues, value, GAMMA, n), full, filled)


# By hand, gamma 1/2, lambda 1/4 (at 1/2 it and 1 - lambda would look the same); rewards 1, 2, 4; successors' values 8,
# 16, 32.
#   truncated:  G_2 = 4 + 32/2 = 20
#               G_1 = 2 + (12 + 5) / 2 = 10.5             (3/4 of the bootstrap 16, 1/4 of G_2)
#               G_0 = 1 + (6 + 2.625) / 2 = 5.3125
#   terminated: G_2 = 4, G_1 = 2 + (12 + 1) / 2 = 8.5, G_0 = 1 + (6 + 2.125) / 2 = 5.0625
#   two steps:  truncated: 1 + 1 + 16/4 = 6, 2 + 2 + 32/4 = 12, 20; terminated: 6, 4, 4


@pytest.mark.parametrize(
    ("ends", "by_lambda", "two_steps"),
    [
        ("truncated", [5.3125, 10.5, 20.0], [6.0, 12.0, 20.0]),
        ("terminated", [5.0625, 8.5, 4.0], [6.0, 4.0, 4.0]),
        ("segment", [5.3125, 10.5, 20.0], [6.0, 12.0, 20.0]),
    ],
)
@pytest.mark.parametrize("padding", [0, 2])
def test_by_hand(ends, by_lambda, two_steps, padding):
    filled = torch.tensor([[True] * 3 + [False] * padding])
    last = torch.arange(3 + padding)[None] == 2
    terminated, truncated = last & (ends == "terminated"), last & (ends == "truncated")
    reward = torch.tensor([[1.0, 2.0, 4.0] + [NAN] * padding])
    value = torch.tensor([[8.0, 16.0, 32.0] + [NAN] * padding])
    continues = continuation_mask(filled, terminated, truncated)
    assert continues[0].tolist() == [True, True, False] + [False] * padding
    assert lambda_returns(reward, terminated, continues, value, 0.5, 0.25)[0, :3].tolist() == by_lambda
    assert n_step_returns(reward, terminated, continues, value, 0.5, 2)[0, :3].tolist() == two_steps


def test_the_value_after_a_termination_is_never_used():
    value = torch.tensor([[8.0, math.inf]])
    ended = torch.tensor([[False, True]])
    continues = torch.tensor([[True, False]])
    for lambda_ in (0.0, 0.5, 1.0):
        assert lambda_returns(torch.ones(1, 2), ended, continues, value, 0.5, lambda_).isfinite().all()
    assert n_step_returns(torch.ones(1, 2), ended, continues, value, 0.5, 2).tolist() == [[1.5, 1.0]]


def test_what_is_refused():
    ones, flags = torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        n_step_returns(ones, flags, flags, ones, 0.9, 0)
    with pytest.raises(ValueError, match=r"expected reward, terminated and continues \(1, 3\), got \(1, 2\)"):
        lambda_returns(ones, flags, flags, torch.ones(1, 3), 0.9, 0.5)


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_lambda_return_lies_between_its_n_step_returns(seed, gamma, lambda_):
    reward, flags, value, rows = random_rows(seed, None)
    continues = continuation_mask(flags["filled"], flags["terminated"], flags["truncated"])
    got = lambda_returns(reward, flags["terminated"], continues, value, gamma, lambda_)
    for b, (row,) in enumerate(rows):
        for t in range(row.length):
            options = [row.n_step(t, n, gamma) for n in range(1, row.length - t + 1)]
            assert min(options) - 1e-9 <= got[b, t].item() <= max(options) + 1e-9


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_padding_and_other_rows_change_nothing(seed, gamma, lambda_):
    reward, flags, value, _ = random_rows(seed, 2)
    continues = continuation_mask(flags["filled"], flags["terminated"], flags["truncated"])
    got = lambda_returns(reward, flags["terminated"], continues, value, gamma, lambda_)
    for b in range(len(reward)):
        own = slice(0, int(flags["filled"][b].sum()))
        row = [tensor[b : b + 1, own] for tensor in (reward, flags["terminated"], continues, value)]
        torch.testing.assert_close(lambda_returns(*row, gamma, lambda_)[0], got[b, own], rtol=0, atol=0)


# ValueLearner.returns: from a batch and the target networks' values to targets --------------------------------------

KINDS = {
    "one_step": lambda row, t, s: row.n_step(t, 1, s.gamma),
    "n_step": lambda row, t, s: row.n_step(t, s.n_steps, s.gamma),
    "peng_lambda": lambda row, t, s: row.lambda_return(t, s.gamma, s.td_lambda),
    "td_lambda": lambda row, t, s: row.lambda_return(t, s.gamma, s.td_lambda),
}
LENGTHS = [1, 2, 5, 9, 7, 9]


def batch_rows(batch, greedy, taken, kind) -> list[list[Row]]:
    """The batch's rows with the values that a kind of return bootstraps from."""
    rows = []
    for b in range(batch.batch_size):
        length = int(batch.filled[b].sum())
        per_agent = []
        for n in range(greedy.shape[2] if greedy.dim() == 3 else 1):
            pick = [v[b, :length] if v.dim() == 2 else v[b, :length, n] for v in (greedy, taken)]
            values = pick[0].tolist()
            if kind == "td_lambda":  # where the row ends nothing was taken any more
                values = [*pick[1].tolist()[:-1], values[-1]]
            per_agent.append(Row(batch.reward[b, :length].tolist(), values, bool(batch.terminated[b, length - 1])))
        rows.append(per_agent)
    return rows


def batch_of(seed: int, *, segment: bool = False):
    batch = double_batch(seed, LENGTHS)
    if segment:  # the last row is the first part of an episode
        batch.terminated[-1] = batch.truncated[-1] = False
    return batch


@pytest.mark.parametrize(("kind", "agents"), every_value(KINDS, [None, 3]))
def test_every_kind_on_a_batch(kind, agents):
    values = value_settings(returns=kind, gamma=0.8, td_lambda=0.7)
    batch = batch_of(3, segment=True).mask_invalid()
    shape = batch.reward.shape if agents is None else (*batch.reward.shape, agents)
    greedy, taken = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = ValueLearner(values).returns(batch, greedy, taken)
    want = expected(batch_rows(batch, greedy, taken, kind), shape, lambda row, t: KINDS[kind](row, t, values))
    assert_equal_where_filled(got, want, batch.filled)


def test_td_lambda_asks_for_what_was_taken():
    batch = batch_of(0).mask_invalid()
    with pytest.raises(ValueError, match="td_lambda needs the values of the actions taken"):
        ValueLearner(value_settings(returns="td_lambda")).returns(batch, batch.reward)


@pytest.mark.parametrize(("kind", "mixer"), every_value(KINDS, ["none", "vdn", "qmix"]))
def test_a_learners_targets(kind, mixer):
    """From the networks' values, by the mixer, to the kind of return: recomputed by loops over agents and steps."""
    learner = make_learner(mixer, returns=kind, gamma=0.8)
    batch = batch_of(5).mask_invalid()
    with torch.no_grad():
        q, q_target = learner.policy.unroll(batch), learner.target_policy.unroll(batch)
        alive = batch.agent_mask[:, 1:]
        best = q[:, 1:].masked_fill(~batch.avail_actions[:, 1:], -math.inf).argmax(-1)
        then = torch.cat([batch.actions[:, 1:], best[:, -1:]], 1)
        greedy, taken = (
            learner.target_mixer(chosen_values(q_target[:, 1:], a).masked_fill(~alive, 0.0), batch.state[:, 1:])
            for a in (best, then)
        )
    rows = batch_rows(batch, greedy, taken, kind)
    want = expected(rows, greedy.shape, lambda row, t: KINDS[kind](row, t, learner.settings))
    assert_equal_where_filled(learner.targets(batch, q), want, batch.filled)


def test_td_errors():
    # 0.9 * 4 + 0.1 * (1 + 4) / 2 = 3.85; nothing that counts: 0.
    error = torch.tensor([[1.0, -4.0, NAN], [NAN, NAN, NAN]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert td_errors(error, mask).tolist() == pytest.approx([3.85, 0.0])
    per_agent = error[..., None].expand(2, 3, 2)
    assert td_errors(per_agent, mask[..., None].expand(2, 3, 2)).tolist() == pytest.approx([3.85, 0.0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"returns": "two_step"}, "returns must be 'one_step', 'n_step', 'peng_lambda' or 'td_lambda', not 'two_step'"),
        ({"td_lambda": 1.5}, r"td_lambda must be in \[0, 1\], not 1.5"),
        ({"n_steps": 0}, "n_steps must be at least 1, not 0"),
        ({"normalize_rewards": "yes"}, "normalize_rewards must be 'none', 'scale' or 'standardize', not 'yes'"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        value_settings(**wrong)
