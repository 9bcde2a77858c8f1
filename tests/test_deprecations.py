"""What plugins of 0.1.0 call goes on working until 0.3.0, with a warning."""

from __future__ import annotations

import pytest
import torch

from qmix_lightning import env_checker
from qmix_lightning.algorithms.base import LossTerms
from support.batches import random_batch


def test_sanitized_is_mask_invalid():
    batch = random_batch(0, [3, 2])
    with pytest.warns(FutureWarning, match="mask_invalid"):
        old = batch.sanitized(leave=("state",))
    new = batch.mask_invalid(skip=("state",))
    assert old.state is batch.state
    assert torch.equal(old.obs, new.obs)
    assert torch.equal(old.actions, new.actions)


def test_row_errors_are_td_errors():
    errors = torch.tensor([1.0, 2.0])
    with pytest.warns(FutureWarning, match="td_errors"):
        terms = LossTerms(torch.ones(()), torch.ones(()), row_errors=errors)
    assert terms.td_errors is errors


@pytest.mark.parametrize(("old", "new"), [("Finding", "CheckResult"), ("PROMISES", "CHECKS")])
def test_names_of_the_checker(old: str, new: str):
    with pytest.warns(FutureWarning, match=new):
        assert getattr(env_checker, old) is getattr(env_checker, new)


def test_a_results_promise_is_its_check():
    result = env_checker.CheckResult("spec", "ok", "as the spec says")
    with pytest.warns(FutureWarning, match="check"):
        assert result.promise == "spec"


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Ledger'"):
        env_checker.Ledger  # noqa: B018
