"""The lines of a run that has no terminal."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from qmix_lightning.training.callbacks.metrics_log import MetricsLog
from qmix_lightning.training.callbacks.progress_bar import EnvStepsBar
from qmix_lightning.training.counters import Counters


@pytest.mark.parametrize(("steps", "left"), [(500, "0"), (1000, "00:00"), (5000, "00:00")])
def test_no_time_is_left_behind_the_budget(capsys: pytest.CaptureFixture[str], steps: int, left: str):
    """A round that was begun within it takes the run past it."""
    counters, bar = Counters(env_steps=100), EnvStepsBar(MetricsLog(), line_every_s=0.01)

    class Ended:
        def wait(self, seconds: float) -> bool:
            ended, counters.env_steps = counters.env_steps == steps, steps
            return ended

    bar._ended = cast(Any, Ended())
    bar._print_lines(cast(Any, SimpleNamespace(counters=counters, total_env_steps=1000, epsilon=lambda _: 0.5)))
    assert f"/s, {left}" in capsys.readouterr().err
