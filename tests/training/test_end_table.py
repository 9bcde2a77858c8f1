"""The end of a run names a command that goes on with it, and does not end at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qmix_lightning.training import end_table


@pytest.mark.parametrize(("budget", "taken", "told"), [(1000, 1024, 2000), (10, 1536, 3072)])
def test_the_budget_to_go_on_with_is_above_what_was_taken(budget: int, taken: int, told: int):
    """A resumed run may have been given less than it had taken."""
    config: Any = SimpleNamespace(total_env_steps=budget)
    assert end_table._more({"ended_by": "budget", "env_steps": taken}, config) == f" total_env_steps={told}"
