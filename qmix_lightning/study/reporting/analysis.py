"""Sum groups of runs up: curves over steps and over time, final scores, and comparisons over all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qmix_lightning.study import statistics
from qmix_lightning.study.bands import Band, band_of
from qmix_lightning.study.reporting.grouping import Group, group_runs
from qmix_lightning.study.reporting.runs import Absent, Found, Run, without_doubles

__all__ = ["AXES", "THRESHOLDS", "Analysis", "Overall", "Result", "analyse"]

THRESHOLDS = np.linspace(0, 1, 51)
AXES = ("env_steps", "wall_s")


@dataclass(frozen=True)
class Result:
    """What an algorithm reached on a task.

    Attributes:
        task, algorithm: names of the group.
        seeds, values: of the runs that ended.
        iqm, mean, median: of the values; ``None`` without any.
        interval: 95 % of the bootstrap of the interquartile mean; ``None`` for fewer than two runs.
        bands: by axis, of the runs that ended; of those that are running if none has.
        running: how many are in the bands that have not ended.
        env_steps: the most that a run took.
    """

    task: str
    algorithm: str
    seeds: list[int]
    values: list[float]
    iqm: float | None
    mean: float | None
    median: float | None
    interval: tuple[float, float] | None
    bands: dict[str, Band]
    running: int
    env_steps: int


@dataclass(frozen=True)
class Overall:
    """What an algorithm reached over all tasks, on the scale of each where 0 is the lowest and 1 the highest score."""

    algorithm: str
    runs: int
    aggregates: dict[str, tuple[float, float, float]]
    profile: list[float]
    profile_low: list[float]
    profile_high: list[float]


@dataclass(frozen=True)
class Analysis:
    """Everything that a report shows.

    Attributes:
        metrics: by task, what is compared.
        scales: by task, the scores that count as 0 and 1.
        groups: the runs behind the results.
        results: by task and algorithm.
        overall: of the algorithms that have results on every task.
        improvement: ``[first][second]``: how likely a run of the first is above one of the second, and its interval.
        absent: runs that are not in the final figures.
    """

    metrics: dict[str, str]
    scales: dict[str, tuple[float, float]]
    groups: list[Group]
    results: list[Result]
    overall: list[Overall]
    improvement: dict[str, dict[str, tuple[float, float, float]]]
    absent: list[Absent]

    @property
    def tasks(self) -> list[str]:
        return list(self.metrics)

    @property
    def algorithms(self) -> list[str]:
        return sorted({result.algorithm for result in self.results})

    def results_on(self, task: str) -> list[Result]:
        """Return the results on one task."""
        return [result for result in self.results if result.task == task]


def analyse(found: Found, metric: str | None = None) -> Analysis:
    """Return the analysis of the runs that were found.

    Args:
        found: runs and what is known of others.
        metric: what is compared; ``None``: the win rate of tasks that have one, the return of others.
    """
    runs, doubles = without_doubles(found.runs)
    groups = group_runs(runs)
    metrics = {task: metric or _metric([g for g in groups if g.task == task]) for task in {g.task: 0 for g in groups}}
    results = [_result(group, metrics[group.task]) for group in groups]
    scales = {task: _scale([g for g in groups if g.task == task], metrics[task]) for task in metrics}
    scores = _scores(results, scales)
    waiting = [
        Absent(f"{group.task}, {group.algorithm}, seed {run.seed}", run.status, _reason(run))
        for group in groups
        for run in group.runs
        if not run.ended or metrics[group.task] not in run.final
    ]
    overall = [_overall(algorithm, tasks) for algorithm, tasks in scores.items()]
    return Analysis(
        metrics, scales, groups, results, overall, _improvement(scores), [*waiting, *found.absent, *doubles]
    )


def _reason(run: Run) -> str:
    steps = [step for step in run.columns["env_steps"] if step is not None]
    if run.ended:
        return "it has no evaluation of what is compared"
    return f"last evaluation after {int(steps[-1]):,} steps" if steps else "no evaluation yet"


def _metric(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    return "win_rate" if any("win_rate" in run.columns for run in runs) else "return_mean"


def _scale(groups: Sequence[Group], metric: str) -> tuple[float, float]:
    """Return the ends of a task's scale: 0 and 1 for a rate, else the lowest and highest of all evaluations."""
    if metric == "win_rate":
        return 0.0, 1.0
    runs = [run for group in groups for run in group.runs]
    values = [v for run in runs for v in (*run.columns.get(metric, []), run.final.get(metric)) if v is not None]
    return (min(values), max(values)) if values else (0.0, 1.0)


def _result(group: Group, metric: str) -> Result:
    ended = [run for run in group.runs if run.ended and metric in run.final]
    drawn = ended or [run for run in group.runs if run.columns.get(metric)]
    values = [run.final[metric] for run in ended]
    found = {axis: band_of([run.columns for run in drawn], axis, metric) for axis in AXES}
    steps = [int(step) for run in group.runs for step in run.columns["env_steps"][-1:] if step is not None]
    return Result(
        task=group.task,
        algorithm=group.algorithm,
        seeds=[run.seed for run in ended],
        values=values,
        iqm=float(statistics.interquartile_mean(values)) if values else None,
        mean=float(np.mean(values)) if values else None,
        median=float(np.median(values)) if values else None,
        interval=statistics.bootstrap_interval([values]) if len(values) > 1 else None,
        bands={axis: band for axis, band in found.items() if band is not None and len(band.x) > 1},
        running=0 if ended else len(drawn),
        env_steps=max(steps, default=0),
    )


def _scores(
    results: Sequence[Result], scales: dict[str, tuple[float, float]]
) -> dict[str, list[np.ndarray[tuple[int], np.dtype[np.float64]]]]:
    """Return the normalised final scores of algorithms with results on every task that can be normalised."""
    tasks = [task for task, (low, high) in scales.items() if high > low]
    by_name = {(result.task, result.algorithm): result for result in results if result.values}
    names = sorted({algorithm for _, algorithm in by_name})
    return {
        name: [statistics.normalized(by_name[task, name].values, *scales[task]) for task in tasks]
        for name in names
        if tasks and all((task, name) in by_name for task in tasks)
    }


def _overall(algorithm: str, scores: Sequence[np.ndarray]) -> Overall:
    ends = np.cumsum([len(task) for task in scores])[:-1]

    def of_means(combine: str, drawn: np.ndarray) -> np.ndarray:
        means = np.stack([part.mean(-1) for part in np.split(drawn, ends, axis=-1)], axis=-1)
        return np.median(means, axis=-1) if combine == "median" else means.mean(-1)

    wanted = {
        "IQM": statistics.interquartile_mean,
        "mean": lambda drawn: of_means("mean", drawn),
        "median": lambda drawn: of_means("median", drawn),
        "optimality gap": statistics.optimality_gap,
    }
    every = np.concatenate(scores)
    aggregates = {
        name: (float(of(every)), *statistics.bootstrap_interval(scores, of, resamples=2000))
        for name, of in wanted.items()
    }
    low, high = statistics.profile_band(scores, THRESHOLDS)
    profile = statistics.performance_profile(scores, THRESHOLDS)
    return Overall(algorithm, len(every), aggregates, profile.tolist(), low.tolist(), high.tolist())


def _improvement(scores: dict[str, list[np.ndarray]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    return {
        one: {
            other: (
                statistics.probability_of_improvement(scores[one], scores[other]),
                *statistics.improvement_interval(scores[one], scores[other]),
            )
            for other in scores
            if other != one
        }
        for one in scores
    }
