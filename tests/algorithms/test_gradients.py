"""What every learner's loss teaches: each parameter that it trains, and no target."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from support.learners import make_learner
from support.updates import MADE, batch_for

LEARNERS = {**MADE, **{f"qmix, {mixer}": partial(make_learner, mixer) for mixer in ("qmix_ns", "qmix_lin", "vdn_s")}}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_parameter_gets_a_gradient_and_targets_none(name: str):
    learner = LEARNERS[name]()
    learner.loss(batch_for(name).to(torch.device("cpu"), torch.float64)).total.backward()
    for parameter, p in learner.named_parameters():
        assert (p.grad is None) == parameter.startswith("target_"), parameter
        assert p.grad is None or p.grad.abs().max() > 0, parameter
    listed = [id(p) for group in learner.parameter_groups() for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in learner.parameters() if p.requires_grad)
