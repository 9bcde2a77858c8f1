"""What plugins of 0.1.0 call goes on working until 0.3.0, with a warning."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from qmix_lightning import env_checker, environment
from qmix_lightning.action_selection import chosen_values, greedy_values
from qmix_lightning.algorithms import returns, value_learner
from qmix_lightning.algorithms.base import LossTerms
from qmix_lightning.runtime.moved import MODULES
from support import runs
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


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (env_checker, "Finding", env_checker.CheckResult),
        (env_checker, "PROMISES", env_checker.CHECKS),
        (environment, "BeginsAhead", environment.PrefetchesResets),
        (returns, "goes_on", returns.continuation_mask),
        (returns, "greedy_values", greedy_values),
        (value_learner, "row_errors", value_learner.td_errors),
        (value_learner, "chosen_values", chosen_values),
    ],
)
def test_names_that_have_changed_or_moved(module: ModuleType, old: str, new: object):
    with pytest.warns(FutureWarning, match=rf"{old} is \S+ now"):
        assert getattr(module, old) is new


@pytest.mark.parametrize("old", MODULES)
def test_modules_that_have_moved(old: str):
    """Each name of the new module is found in the old one, which is not loaded before."""
    moved = importlib.import_module(f"qmix_lightning.{old}")
    new = importlib.import_module(f"qmix_lightning.{MODULES[old]}")
    for name in new.__all__:
        with pytest.warns(FutureWarning, match=rf"qmix_lightning\.{old} is qmix_lightning\.{MODULES[old]} now"):
            assert getattr(moved, name) is getattr(new, name)
    with pytest.raises(AttributeError):
        moved.nothing_of_this_name  # noqa: B018


def test_a_plugin_imports_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plugin.py").write_text(
        "import warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from qmix_lightning.agents.layers import AgentLinear\n"
        "from qmix_lightning.agents import heads\n"
        "import qmix_lightning.mixers.checks as checks\n"
        "print(AgentLinear.__module__, heads.make_head.__module__, checks.at_least_one.__module__)"
    )
    monkeypatch.chdir(tmp_path)
    printed = runs.run([], "plugin")  # a process that has imported no old name
    assert printed.split() == ["qmix_lightning.nn.layers", "qmix_lightning.nn.heads", "qmix_lightning.mixers.base"]


def test_a_results_promise_is_its_check():
    result = env_checker.CheckResult("spec", "ok", "as the spec says")
    with pytest.warns(FutureWarning, match="is CheckResult.check now"):
        assert result.promise == "spec"


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Ledger'"):
        env_checker.Ledger  # noqa: B018
