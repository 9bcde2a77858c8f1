"""Learning rates over environment steps, and what optimisers are made of."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qmix_lightning.optimizers import OPTIMIZERS, LearningRate, _kernels, lr_factor, set_learning_rates

OWN = {"adam": {"beta1": 0.9, "beta2": 0.999}, "rmsprop": {"alpha": 0.99}}


def make(name="adam", groups=None, max_grad_norm=10.0, **rate):
    settings = {"lr": 0.1, "lr_schedule": "linear", "lr_anneal_steps": 100, "lr_final": 0.02, **rate}
    factory = OPTIMIZERS.load(name)(
        rate=LearningRate(**settings), eps=1e-8, weight_decay=0.0, max_grad_norm=max_grad_norm, **OWN[name]
    )
    return factory(groups or [{"name": "all", "params": [torch.nn.Parameter(torch.ones(3))]}])


# From 0.1 to 0.02 over 100 steps. Cosine: half of the way at half of the time, 0.02 + 0.08 (1 + cos(pi/4)) / 2 at 25.
@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", {0: 0.1, 50: 0.1, 1000: 0.1}),
        ("linear", {0: 0.1, 25: 0.08, 50: 0.06, 100: 0.02, 1000: 0.02}),
        ("cosine", {0: 0.1, 25: 0.02 + 0.04 * (1 + math.sqrt(0.5)), 50: 0.06, 100: 0.02, 1000: 0.02}),
    ],
)
@pytest.mark.parametrize("name", OWN)
def test_by_hand(name, schedule, at):
    optimizer = make(name, lr_schedule=schedule)
    for step in (*at, *reversed(at)):  # whatever was asked before
        set_learning_rates(optimizer, step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(at[step], rel=1e-12)


def test_groups_fall_by_the_same_factor_from_where_they_begin():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = make(groups=[{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5, "max_grad_norm": 1.0}])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    set_learning_rates(optimizer, 50)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.06, 0.3])
    assert [group["max_grad_norm"] for group in optimizer.param_groups] == [10.0, 1.0]


@given(st.integers(0, 10**9), st.integers(1, 10**7), st.floats(0, 1), st.sampled_from(["linear", "cosine"]))
def test_it_stays_between_its_ends_and_never_rises(step, anneal, final, schedule):
    here, later = (lr_factor(schedule, s, anneal, final) for s in (step, step + anneal // 10 + 1))
    assert final - 1e-12 <= later <= here + 1e-12 <= 1.0 + 2e-12
    assert lr_factor(schedule, anneal, anneal, final) == pytest.approx(final)


def test_a_step_is_taken_at_the_rate_that_was_set():
    optimizer = make("rmsprop", lr_final=0.0)
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.ones(3)
    set_learning_rates(optimizer, 100)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(3))


def test_a_saved_optimiser_goes_on_where_the_steps_are():
    one, other = make(lr_schedule="cosine"), make(lr_schedule="cosine")
    set_learning_rates(one, 80)
    other.load_state_dict(one.state_dict())
    for step in (81, 10):
        for optimizer in (one, other):
            set_learning_rates(optimizer, step)
        assert one.param_groups[0]["lr"] == other.param_groups[0]["lr"] == make_rate(step)


def make_rate(step: int) -> float:
    optimizer = make(lr_schedule="cosine")
    set_learning_rates(optimizer, step)
    return optimizer.param_groups[0]["lr"]


def test_a_constant_rate_is_left_to_others():
    """A callback of the user's may set it."""
    optimizer = make(lr_schedule="constant")
    optimizer.param_groups[0]["lr"] = 0.7
    set_learning_rates(optimizer, 10)
    assert optimizer.param_groups[0]["lr"] == 0.7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0, not 0.0"),
        ({"lr_schedule": "step"}, "lr_schedule must be 'constant', 'linear' or 'cosine', not 'step'"),
        ({"lr_anneal_steps": 0}, "lr_anneal_steps must be at least 1, not 0"),
        ({"lr_final": -0.1}, "lr_final must be at least 0, not -0.1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)


@pytest.mark.parametrize(
    ("devices", "kernels"), [("cuda cuda", "fused"), ("cpu cpu", "fused"), ("cuda cpu", "foreach")]
)
def test_one_kernel_where_all_parameters_are_on_one_kind_of_device(devices, kernels):
    groups = [{"params": [SimpleNamespace(device=torch.device(name))]} for name in devices.split()]
    assert _kernels(groups) == {kernels: True}


def test_adams_one_kernel_equals_its_formula():
    """The layout of a gradient is autograd's to choose: that of a transposed weight is not the parameter's."""
    weight, bias = torch.nn.Parameter(torch.randn(5, 7)), torch.nn.Parameter(torch.randn(1, 5))
    settings = {"betas": (0.9, 0.999), "eps": 1e-8, "lr": 0.01}
    plain = [p.detach().double().requires_grad_() for p in (weight, bias)]
    fused = make(groups=[{"params": [weight]}, {"params": [bias]}], lr=0.01, lr_schedule="constant")
    single = torch.optim.Adam(plain, foreach=False, **settings)
    for step in range(20):
        x = torch.randn(7, 3, generator=torch.Generator().manual_seed(step))
        for (w, b), optimizer in (((weight, bias), fused), (plain, single)):
            optimizer.zero_grad()
            ((w.mT.mT @ x.to(w.dtype)).T + b).pow(2).sum().backward()
            optimizer.step()
    assert not fused._step_supports_amp_scaling  # Lightning would not clip in mixed precision
    for mine, theirs in zip((weight, bias), plain, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-7)
