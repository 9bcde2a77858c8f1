"""QMIX's mixing network; that it is monotonic, by autograd and trained, is in test_ablations with the others'."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qmix_lightning.mixers.base import POSITIVITY
from qmix_lightning.mixers.qmix import QMixer
from qmix_lightning.nn.mlp import hypernetwork
from support.cases import every_value, pairwise
from support.small_mixers import Seen, qmix

S = 5


def make(positivity="abs", layers=1, *, n=3, seed=0, embed=8, hidden=12, state_dim=S, init_scale=1.0):
    torch.manual_seed(seed)
    return QMixer(
        n_agents=n,
        state_dim=state_dim,
        embed_dim=embed,
        hypernet_layers=layers,
        hypernet_dim=hidden,
        positivity=positivity,
        init_scale=init_scale,
    )


def trained(mixer, steps=20):
    """After steps towards a target that falls with the agents' values, which pushes the weights to be negative."""
    optimizer = torch.optim.Adam(mixer.parameters(), lr=0.02)
    for _ in range(steps):
        qs, state = torch.randn(16, 2, mixer.n_agents), torch.randn(16, 2, mixer.state_dim)
        loss = (mixer(qs, state) + 3 * qs.sum(-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return mixer


def test_all_four_positivity_functions_are_there():
    assert set(POSITIVITY) == {"abs", "softplus", "square", "exp"}
    x = torch.tensor([-2.0, 0.5])
    assert POSITIVITY["abs"](x).tolist() == [2.0, 0.5]
    assert POSITIVITY["square"](x).tolist() == [4.0, 0.25]
    assert POSITIVITY["exp"](x).tolist() == pytest.approx([math.exp(-2), math.exp(0.5)])
    assert POSITIVITY["softplus"](x).tolist() == pytest.approx([math.log1p(math.exp(-2)), math.log1p(math.exp(0.5))])


FLOAT = st.floats(-50, 50, width=32)


@settings(max_examples=50, deadline=None)
@given(
    positivity=st.sampled_from(sorted(POSITIVITY)),
    layers=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    qs=st.lists(FLOAT, min_size=3, max_size=3),
    rises=st.lists(st.floats(0, 50, width=32), min_size=3, max_size=3),
    state=st.lists(st.floats(-20, 20, width=32), min_size=S, max_size=S),
)
def test_monotonic_everywhere(positivity, layers, seed, qs, rises, state):
    mixer = make(positivity, layers, seed=seed).double()
    qs, rises, state = (torch.tensor(x, dtype=torch.float64)[None, None] for x in (qs, rises, state))
    with torch.no_grad():
        low, high = float(mixer(qs, state)), float(mixer(qs + rises, state))
    assert high >= low - 1e-9 * max(1.0, abs(low))


@pytest.mark.parametrize(("positivity", "layers", "train"), pairwise(POSITIVITY, (1, 2, 3), [False, True]))
def test_each_agents_best_action_is_the_teams(positivity, layers, train):
    mixer = make(positivity, layers)
    if train:
        trained(mixer)
    g = torch.Generator().manual_seed(2)
    b, a = 30, 4
    q = 2 * torch.randn(b, 3, a, generator=g)
    state = torch.randn(b, 1, S, generator=g)
    joint = torch.cartesian_prod(*[torch.arange(a)] * 3)  # [A^3, N]
    table = mixer(q[:, torch.arange(3), joint], state.expand(b, len(joint), S))  # [B, A^3]
    own = q.argmax(-1) @ torch.tensor([a * a, a, 1])  # its place in the product
    # Flat places of the network tie up to rounding, so the value is compared, not the index.
    gap = table.max(1).values - table[torch.arange(b), own]
    assert (gap <= 1e-5 * table.abs().amax(1).clamp(min=1)).all()


@pytest.mark.parametrize(("positivity", "layers"), every_value(POSITIVITY, (1, 2, 3)))
def test_equals_the_published_formula(positivity, layers):
    """Q_tot = |W2(s)|^T elu(|W1(s)|^T q + b1(s)) + b2(s), by loops over the mixer's own weights."""
    n, m = 3, 4
    mixer = make(positivity, layers, n=n, embed=m, hidden=6, seed=5).double()
    qs, state = 2 * torch.randn(2, 2, n, dtype=torch.float64), torch.randn(2, 2, S, dtype=torch.float64)
    got = mixer(qs, state).detach()
    assert got.shape == (2, 2)
    for b, t in itertools.product(range(2), range(2)):
        seen = Seen(qs[b, t].tolist(), state[b, t].tolist(), [], [], [])
        assert float(got[b, t]) == pytest.approx(qmix(mixer, seen, positivity), rel=1e-9)


def layout(module):
    return [(type(x).__name__, getattr(x, "in_features", None), getattr(x, "out_features", None)) for x in module]


def test_published_hypernetworks():
    mixer = make(n=3, embed=32, state_dim=48)
    assert layout(mixer.weight_1) == [("Linear", 48, 96)]
    assert layout(mixer.weight_2) == [("Linear", 48, 32)]
    assert isinstance(mixer.bias_1, nn.Linear)
    assert (mixer.bias_1.in_features, mixer.bias_1.out_features) == (48, 32)
    assert layout(mixer.bias_2) == [("Linear", 48, 32), ("ReLU", None, None), ("Linear", 32, 1)]


def test_deeper_hypernetworks_have_their_own_width():
    two = make(layers=2, hidden=64, embed=32, state_dim=48)
    assert layout(two.weight_1) == [("Linear", 48, 64), ("ReLU", None, None), ("Linear", 64, 96)]
    assert layout(two.bias_2) == [("Linear", 48, 32), ("ReLU", None, None), ("Linear", 32, 1)]
    assert layout(hypernetwork(2, 3, 3, 7)) == [
        ("Linear", 2, 7),
        ("ReLU", None, None),
        ("Linear", 7, 7),
        ("ReLU", None, None),
        ("Linear", 7, 3),
    ]


def test_pairs_of_agents_only_strengthen_each_other():
    """ELU is convex and the weights are not negative: what two agents gain together is at least the sum of their gains.

    So of the monotonic tables, the network holds those in which good actions complement each other, and not, say,
    ``[[0, 1], [1, 1]]``, where one agent's good action makes the other's needless.
    """
    mixer = trained(make()).double()
    g = torch.Generator().manual_seed(4)
    qs, rises = (3 * torch.randn(500, 1, 3, generator=g, dtype=torch.float64) for _ in range(2))
    state = torch.randn(500, 1, S, generator=g, dtype=torch.float64)
    rises = rises.abs()
    for i, j in itertools.combinations(range(3), 2):
        only_i, only_j = (rises * torch.eye(3, dtype=torch.float64)[k] for k in (i, j))
        low, one, other, both = (mixer(qs + rise, state) for rise in (0.0, only_i, only_j, only_i + only_j))
        gain = both - one - other + low
        assert (gain >= -1e-9).all()
        assert (gain > 0.1).any()


def test_bad_settings():
    with pytest.raises(ValueError, match="positivity must be one of abs, softplus, square, exp, not 'relu'"):
        make("relu")
    with pytest.raises(ValueError, match="a hypernetwork needs at least one layer, not 0"):
        make(layers=0)
    with pytest.raises(ValueError, match="embed_dim must be at least 1, not 0"):
        make(embed=0)


@pytest.mark.parametrize(("qs", "state"), [((2, 4, 2), (2, 4, S)), ((2, 4, 3), (2, 4, S + 1)), ((2, 4, 3), (2, 3, S))])
def test_wrong_shapes_are_named(qs, state):
    message = f"expected agent_qs [..., 3] and state [..., {S}], got {qs} and {state}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()(torch.zeros(qs), torch.zeros(state))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_small_start_scales_what_the_hypernetworks_end_in(layers):
    plain, small = make(layers=layers), make(layers=layers, init_scale=0.1)
    state = torch.randn(4, 2, S)
    for name in ("weight_1", "bias_1", "weight_2", "bias_2"):
        torch.testing.assert_close(getattr(small, name)(state), 0.1 * getattr(plain, name)(state))
    with pytest.raises(ValueError, match=r"init_scale must be above 0, not 0\.0"):
        make(init_scale=0.0)
