"""Sum up the rows of a suite: for each task and algorithm, and over all tasks."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from qmix_lightning.study import statistics
from qmix_lightning.study.bands import Band, band_of
from qmix_lightning.study.code_version import changed_parts
from qmix_lightning.study.plan import Plan
from qmix_lightning.study.rows import Row, time_to
from qmix_lightning.study.suite import Published

__all__ = ["Aggregate", "Result", "Summary", "comparable", "sum_up"]

_THRESHOLDS = np.linspace(0, 1, 21)


@dataclass(frozen=True)
class Result:
    """What an algorithm reached on a task.

    Attributes:
        seeds, values: of the runs that there are, the last network's evaluation on fresh seeds.
        iqm, mean: of the values.
        interval: 95 % of the bootstrap of the interquartile mean; ``None`` for one run.
        curve: ``None`` where the runs share no evaluation.
        stale: parts whose code has changed since some of the rows were made.
        time_s: median over the runs of the seconds to the task's threshold, infinite for one that never got there.
        reached: how many got there.
    """

    seeds: list[int]
    values: list[float]
    iqm: float
    mean: float
    interval: tuple[float, float] | None
    curve: Band | None
    stale: list[str]
    time_s: float | None
    reached: int


@dataclass(frozen=True)
class Aggregate:
    """What an algorithm reached over all tasks, on the scale where random play is 0 and the best possible 1."""

    iqm: float
    interval: tuple[float, float]
    runs: int
    profile: list[float]


@dataclass(frozen=True)
class Summary:
    """A suite's results.

    Attributes:
        results: by task and algorithm; what has no run yet is absent.
        aggregates: by algorithm, those with runs on every task that has both ends of the scale.
        improvement: how likely a run of the first algorithm is above one of the second, ``[first][second]``.
        missing: names of runs that are not there.
        rows: that were summed up.
        steps: the budget of each task.
    """

    results: dict[str, dict[str, Result]]
    aggregates: dict[str, Aggregate]
    improvement: dict[str, dict[str, float]]
    missing: list[str]
    rows: list[Row]
    steps: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the rows as plain containers, for JSON."""
        return {
            "steps": self.steps,
            "tasks": {
                task: {
                    algorithm: {
                        **vars(result),
                        "curve": _curve(result.curve),
                        "time_s": None if result.time_s is None or math.isinf(result.time_s) else result.time_s,
                    }
                    for algorithm, result in results.items()
                }
                for task, results in self.results.items()
            },
            "aggregates": {algorithm: vars(found) for algorithm, found in self.aggregates.items()},
            "profile_thresholds": _THRESHOLDS.tolist(),
            "probability_of_improvement": self.improvement,
            "missing": self.missing,
        }


def _curve(band: Band | None) -> dict[str, list[float]] | None:
    return band and {"env_steps": band.x, "iqm": band.iqm, "low": band.low, "high": band.high}


def sum_up(plan: Plan) -> Summary:
    """Return the summary of the rows that a plan has."""
    found: dict[tuple[str, str], list[tuple[int, Row, list[str]]]] = defaultdict(list)
    missing, steps = [], {}
    for cell in plan.cells:
        steps[cell.task] = cell.config.total_env_steps
        row = plan.row(cell)
        if row is None:
            missing.append(cell.name)
        else:
            found[cell.task, cell.algorithm].append((cell.seed, row, changed_parts(row.code, cell.code)))
    results: dict[str, dict[str, Result]] = {task: {} for task in plan.tasks}
    for task in plan.tasks:
        for algorithm in plan.algorithms:
            if runs := found[task, algorithm]:
                results[task][algorithm] = _result(plan, task, runs)
    scores = _scores(plan, results)
    aggregates, improvement = _aggregates(scores)
    return Summary(results, aggregates, improvement, missing, [r for runs in found.values() for _, r, _ in runs], steps)


def _result(plan: Plan, task: str, runs: list[tuple[int, Row, list[str]]]) -> Result:
    settings = plan.suite.tasks[task]
    values = [row.final[settings.metric] for _, row, _ in runs]
    times = None
    if settings.threshold is not None:
        times = [time_to(row, settings.metric, settings.threshold) for _, row, _ in runs]
    return Result(
        seeds=[seed for seed, _, _ in runs],
        values=values,
        iqm=float(statistics.interquartile_mean(values)),
        mean=float(np.mean(values)),
        interval=statistics.bootstrap_interval([values]) if len(values) > 1 else None,
        curve=band_of([row.evaluations for _, row, _ in runs], "env_steps", settings.metric),
        stale=sorted({part for _, _, parts in runs for part in parts}),
        time_s=None if times is None else median(math.inf if time is None else time for time in times),
        reached=0 if times is None else sum(time is not None for time in times),
    )


def _scores(plan: Plan, results: dict[str, dict[str, Result]]) -> dict[str, list[list[float]]]:
    """Return the normalised scores of each algorithm that has runs on every task with a scale, one list a task."""
    scaled = {task: plan.suite.tasks[task] for task in plan.tasks}
    ends = {task: (t.random, t.best) for task, t in scaled.items() if t.random is not None and t.best is not None}
    if len(ends) < 2:
        return {}
    return {
        algorithm: [
            statistics.normalized(results[task][algorithm].values, float(low or 0), float(high or 0)).tolist()
            for task, (low, high) in ends.items()
        ]
        for algorithm in plan.algorithms
        if all(algorithm in results[task] for task in ends)
    }


def _aggregates(
    scores: dict[str, list[list[float]]],
) -> tuple[dict[str, Aggregate], dict[str, dict[str, float]]]:
    aggregates = {
        algorithm: Aggregate(
            iqm=float(statistics.interquartile_mean(np.concatenate(tasks))),
            interval=statistics.bootstrap_interval(tasks),
            runs=sum(map(len, tasks)),
            profile=statistics.performance_profile(tasks, _THRESHOLDS).tolist(),
        )
        for algorithm, tasks in scores.items()
    }
    improvement = {
        one: {
            other: statistics.probability_of_improvement(scores[one], scores[other]) for other in scores if other != one
        }
        for one in scores
    }
    return aggregates, improvement


def comparable(published: Published, steps: int) -> bool:
    """Return whether a published figure is of the same number of environment steps, within 5 %, or of the end."""
    return published.env_steps is None or abs(published.env_steps - steps) <= 0.05 * steps
