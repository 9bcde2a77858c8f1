"""The statistics are rliable's, to 1e-9: the same numbers go through the package itself, in an environment of its own.

It needs other versions than this one (pandas 2), so the test makes a virtual environment, which takes minutes;
``RLIABLE_PYTHON`` names the interpreter of one that is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmix_lightning.study import statistics

THEIRS = """
import json, sys
import numpy as np
from rliable import library, metrics

given = json.load(sys.stdin)
scores = {name: np.array(rows) for name, rows in given["scores"].items()}  # [runs, tasks]
one, other = scores["one"], scores["other"]
drawn = []


def iqm(data):
    drawn.append(data.tolist())
    return np.array([metrics.aggregate_iqm(data)])


bootstrap = library.StratifiedBootstrap(one, random_state=np.random.RandomState(5))
interval = bootstrap.conf_int(iqm, reps=given["resamples"], size=0.95, method="percentile")
json.dump({
    "iqm": metrics.aggregate_iqm(one),
    "mean": metrics.aggregate_mean(one),
    "median": metrics.aggregate_median(one),
    "gap": metrics.aggregate_optimality_gap(one),
    "improvement": metrics.probability_of_improvement(one, other),
    "profile": [float(library.run_score_deviation(one, threshold)) for threshold in given["thresholds"]],
    "drawn": [data for data in drawn if len(drawn) == given["resamples"] or data is not drawn[0]],
    "interval": np.ravel(interval).tolist(),
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def rliable(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with rliable 1.2.0."""
    if python := os.environ.get("RLIABLE_PYTHON"):
        return python
    folder = tmp_path_factory.mktemp("rliable")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "rliable==1.2.0", "pandas<3"], check=True)
    return python


def answer(python: str, given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What rliable makes of the numbers; in a folder of its own, so that it imports nothing from here."""
    text = json.dumps(given)
    done = subprocess.run([python, "-c", THEIRS], input=text, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [3, 10])
def test_the_same_numbers_give_the_same_statistics(rliable: str, tmp_path: Path, runs: int):
    rng = np.random.default_rng(runs)
    one, other = rng.normal(0.6, 0.3, (runs, 4)).round(2), rng.normal(0.5, 0.3, (runs, 4)).round(2)  # with ties
    thresholds = np.linspace(0, 1, 21)
    given = {
        "scores": {"one": one.tolist(), "other": other.tolist()},
        "thresholds": thresholds.tolist(),
        "resamples": 200,
    }
    theirs = answer(rliable, given, tmp_path)
    tasks, others = list(one.T), list(other.T)
    close = {"rel": 0, "abs": 1e-9}
    assert float(statistics.interquartile_mean(one.ravel())) == pytest.approx(theirs["iqm"], **close)
    assert one.mean() == pytest.approx(theirs["mean"], **close)
    assert float(np.median(one.mean(0))) == pytest.approx(theirs["median"], **close)
    assert float(statistics.optimality_gap(one.ravel())) == pytest.approx(theirs["gap"], **close)
    assert statistics.probability_of_improvement(tasks, others) == pytest.approx(theirs["improvement"], **close)
    assert statistics.performance_profile(tasks, thresholds).tolist() == pytest.approx(theirs["profile"], **close)
    # The interval of the runs that it has drawn; whose draws they are does not matter.
    samples = statistics.interquartile_mean(np.array(theirs["drawn"]).reshape(200, -1))
    assert statistics.percentile_interval(samples).tolist() == pytest.approx(theirs["interval"], **close)


@pytest.mark.slow
def test_the_intervals_are_those_of_its_own_draws_within_noise(rliable: str, tmp_path: Path):
    """Two seeds of 200 draws differ by some percent of the interval's width; another bootstrap would by more."""
    rng = np.random.default_rng(0)
    one = rng.normal(0.6, 0.3, (10, 4))
    given = {"scores": {"one": one.tolist(), "other": one.tolist()}, "thresholds": [0.5], "resamples": 2000}
    low, high = answer(rliable, given, tmp_path)["interval"]
    assert statistics.bootstrap_interval(list(one.T)) == pytest.approx((low, high), abs=0.08 * (high - low))
