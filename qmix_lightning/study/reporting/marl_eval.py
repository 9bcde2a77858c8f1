"""Write runs in the JSON format of marl-eval (Gorsane et al. 2022, arXiv 2209.10485)."""

from __future__ import annotations

import re
from typing import Any

from qmix_lightning.study.reporting.analysis import Analysis
from qmix_lightning.study.reporting.runs import Run

__all__ = ["marl_eval"]


def marl_eval(analysis: Analysis) -> dict[str, Any]:
    """Return environment -> task -> algorithm -> run -> step -> metrics, of the runs that have ended.

    A metric is a list with one number, the mean over the episodes of an evaluation; ``absolute_metrics`` is the
    evaluation that counts. Names have letters, digits and ``_`` only, as marl-eval's have.
    """
    content: dict[str, Any] = {}
    for group in analysis.groups:
        for run in group.runs:
            if run.ended and run.final:
                tasks = content.setdefault(_plain(run.env), {})
                runs = tasks.setdefault(_plain(group.task), {}).setdefault(_plain(group.algorithm), {})
                runs[f"seed_{run.seed}"] = _run(run)
    return content


def _run(run: Run) -> dict[str, Any]:
    metrics = [name for name in ("return_mean", "win_rate") if name in run.columns or name in run.final]
    steps: dict[str, Any] = {}
    for number, env_steps in enumerate(run.columns["env_steps"]):
        row: dict[str, Any] = {"step_count": env_steps}
        if (walls := run.columns.get("wall_s")) and walls[number] is not None:
            row["elapsed_time"] = walls[number]
        for name in metrics:
            if (value := run.columns.get(name, [None] * (number + 1))[number]) is not None:
                row[_NAMES[name]] = [value]
        steps[f"step_{number}"] = row
    final = {_NAMES[name]: [run.final[name]] for name in metrics if name in run.final}
    return {**steps, "absolute_metrics": final}


_NAMES = {"return_mean": "mean_episode_return", "win_rate": "win_rate"}


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")
