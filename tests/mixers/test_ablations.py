"""The QMIX paper's ablations: what each formula is, and what it can hold."""

import itertools
import math

import pytest
import torch

from qmix_lightning.envs.two_step import TwoStep
from qmix_lightning.mixers.base import POSITIVITY
from support.small_mixers import FORMULAS, Seen, small_mixer

N, S = 3, 5
F64 = torch.float64
CASES = [(name, p) for name in ("qmix_ns", "qmix_lin") for p in POSITIVITY] + [("vdn_s", None)]
MONOTONIC = [*CASES, *(("qmix", p) for p in POSITIVITY), ("vdn", None)]


def make(name, positivity=None, *, seed=0, n=N, **changed):
    torch.manual_seed(seed)
    changed |= {} if positivity is None else {"positivity": positivity}
    return small_mixer(name, n=n, a=4, obs=2, state=S, **changed).double()


def random_inputs(count, seed=1, n=N):
    g = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(count, 1, n, generator=g, dtype=F64), torch.randn(count, 1, S, generator=g, dtype=F64)


@pytest.mark.parametrize(("name", "positivity"), CASES)
def test_equals_the_formula(name, positivity):
    mixer = make(name, positivity)
    qs, state = random_inputs(6)
    got = mixer(qs, state).detach()
    assert got.shape == (6, 1)
    settings = {} if positivity is None else {"positivity": positivity}
    for b in range(6):
        seen = Seen(qs[b, 0].tolist(), state[b, 0].tolist(), [], [], [])
        assert float(got[b, 0]) == pytest.approx(FORMULAS[name](mixer, seen, **settings), rel=1e-9)


@pytest.mark.parametrize(("name", "positivity"), MONOTONIC)
def test_the_team_value_never_falls_when_an_agents_rises(name, positivity):
    """By autograd in random states, with weights trained towards values that fall with the agents'."""
    mixer = make(name, positivity)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=0.02) if list(mixer.parameters()) else None
    for step in range(20 if optimizer else 0):
        qs, state = random_inputs(32, seed=100 + step)
        loss = (mixer(qs, state) + 3 * qs.sum(-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    qs, state = random_inputs(300)
    mixer(qs.requires_grad_(), state).sum().backward()
    assert (qs.grad >= 0).all()
    assert (qs.grad > 0).any(0).all()


def second_difference(mixer, count=200):
    """``f(q + d_1 + d_2) - f(q + d_1) - f(q + d_2) + f(q)``: zero wherever ``f`` is additive in the two agents."""
    qs, state = random_inputs(count)
    rises = random_inputs(count, seed=2)[0].abs()
    one, two = (rises * torch.eye(N, dtype=F64)[k] for k in (0, 1))
    first, second, both = (mixer(qs + rise, state) for rise in (one, two, one + two))
    return both - first - second + mixer(qs, state)


@pytest.mark.parametrize(("name", "additive"), [("qmix_lin", True), ("vdn_s", True), ("vdn", True), ("qmix_ns", False)])
def test_what_is_additive_within_a_state(name, additive):
    change = second_difference(make(name))
    assert bool((change.abs() < 1e-9).all()) == additive
    assert (change > -1e-9).all()  # the convex one strengthens


def test_without_the_state_it_has_no_influence():
    mixer = make("qmix_ns")
    qs, state = random_inputs(4)
    assert torch.equal(mixer(qs, state), mixer(qs, torch.full_like(state, float("nan"))))


@pytest.mark.parametrize(("name", "weighs"), [("qmix_lin", True), ("vdn_s", False)])
def test_what_the_state_decides(name, weighs):
    """The linear mixer's weights and bias; VDN-S's bias alone, an agent's value counts 1 everywhere."""
    mixer = make(name)
    qs, state = random_inputs(50)
    slopes = torch.autograd.grad(mixer(qs.requires_grad_(), state).sum(), qs)[0]
    assert bool((slopes == 1).all()) != weighs
    assert slopes[:, 0].unique(dim=0).shape[0] == (50 if weighs else 1)
    assert mixer(torch.zeros_like(qs), state).unique().numel() == 50


def test_one_function_of_the_values_holds_the_whole_two_step_game():
    """So QMIX-NS returns 8 there: the agents see the state, and their values may say where on the function it lies.

    One hidden unit, ``f(x) = 5 (elu(x) + 1 - v)`` of ``x = q_1 + q_2``. In 2B ``f`` takes 0, 1, 1, 8, so the
    places ``x_0, x_1, x_2`` must be evenly spaced, which fixes ``v``; everywhere else one value each is wanted.
    """
    low, high = 0.01, 0.1
    for _ in range(100):  # x_0 = log v, x_1 = log(v + 1/5), x_2 = 8/5 - 1 + v
        v = (low + high) / 2
        too_low = 2 * math.log(v + 0.2) > math.log(v) + 0.6 + v
        low, high = (v, high) if too_low else (low, v)
    mixer = make("qmix_ns", "abs", n=2, embed_dim=1)
    with torch.no_grad():
        for parameter, value in zip(mixer.parameters(), (1.0, 0.0, 5.0, 5 * (1 - v)), strict=True):
            parameter.fill_(value)
    x_0, x_1 = math.log(v), math.log(v + 0.2)

    def place(value):
        return value / 5 - 1 + v  # where f is linear

    values = {  # state: agent 1's values of its two actions, agent 2's
        "1": ((place(0.99 * 7), place(0.99 * 8)), (0.0, 0.0)),
        "2A": ((place(7), place(7)), (0.0, 0.0)),
        "2B": ((x_0 / 2, x_1 - x_0 / 2), (x_0 / 2, x_1 - x_0 / 2)),
    }
    exact = TwoStep(num_envs=1).exact_q_values(0.99)
    for label, (first, second) in values.items():
        qs = torch.tensor(list(itertools.product(first, second)), dtype=F64)[None]
        got = mixer(qs, torch.zeros(1, 4, S, dtype=F64)).detach().reshape(2, 2)
        torch.testing.assert_close(got, torch.tensor(exact[label], dtype=F64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["qmix_lin", "vdn_s"])
def test_wrong_shapes_are_named(name):
    with pytest.raises(ValueError, match=r"expected agent_qs \[..., 3\] and state \[..., 5\], got"):
        make(name)(torch.zeros(2, 4, 3), torch.zeros(2, 4, S + 1))
    with pytest.raises(ValueError, match=r"expected agent_qs \[..., 3\]"):
        make("qmix_ns")(torch.zeros(2, 4, 2), torch.zeros(2, 4, S))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("qmix_ns", {"positivity": "relu"}, "positivity must be one of abs, softplus, square, exp, not 'relu'"),
        ("qmix_lin", {"positivity": "relu"}, "positivity must be one of"),
        ("qmix_ns", {"embed_dim": 0}, "embed_dim must be at least 1, not 0"),
        ("qmix_lin", {"bias_dim": 0}, "bias_dim must be at least 1, not 0"),
        ("vdn_s", {"bias_dim": 0}, "bias_dim must be at least 1, not 0"),
        ("qmix_lin", {"hypernet_layers": 0}, "a hypernetwork needs at least one layer, not 0"),
    ],
)
def test_bad_settings(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        make(name, **wrong)
