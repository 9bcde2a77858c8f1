"""Write an analysis as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from qmix_lightning.runtime.text import shown_path
from qmix_lightning.study.formatting import markdown_table, shown_interval, shown_number, shown_with_interval
from qmix_lightning.study.reporting.analysis import Analysis, Result

__all__ = ["METRIC_NAMES", "latex", "markdown", "results_csv", "runs_csv", "scale_note"]

METRIC_NAMES = {"return_mean": "return", "win_rate": "win rate", "return_ci95": "return's half interval"}
_STATISTICS = "IQM: mean of the middle half of the runs. Intervals: 95 %, stratified bootstrap over runs."

_NO_CURVES = "No curves: they need two evaluations of each run; a smaller `eval_interval=` makes more."

_NO_COMMON_TIMES = "its runs were evaluated at no common times, or did not record them."


def markdown(analysis: Analysis) -> str:
    """Return the report as Markdown, which terminals show too."""
    parts = [_STATISTICS]
    for task in analysis.tasks:
        rows = [
            [
                r.algorithm,
                _runs(r),
                shown_number(r.iqm),
                shown_interval(r.interval),
                shown_number(r.mean),
                shown_number(r.median),
            ]
            for r in analysis.results_on(task)
        ]
        parts += [
            f"### {task}",
            f"Greedy {METRIC_NAMES[analysis.metrics[task]]} at the end of training.",
            markdown_table(["algorithm", "runs", "IQM", "95 % interval", "mean", "median"], rows),
        ]
        curves = [result for result in analysis.results_on(task) if result.bands]
        if not curves:
            parts.append(_NO_CURVES)
        elif apart := [result.algorithm for result in curves if "wall_s" not in result.bands]:
            parts.append(f"No curve over training time of {', '.join(apart)}: {_NO_COMMON_TIMES}")
    if analysis.overall and len(analysis.tasks) > 1:
        names = list(analysis.overall[0].aggregates)
        rows = [
            [o.algorithm, str(o.runs), *(shown_with_interval(*o.aggregates[name]) for name in names)]
            for o in sorted(analysis.overall, key=lambda o: -o.aggregates["IQM"][0])
        ]
        parts += ["### Over all tasks", scale_note(analysis), markdown_table(["algorithm", "runs", *names], rows)]
    if analysis.improvement and any(analysis.improvement.values()):
        rows = [
            [one, other, shown_with_interval(*values)]
            for one, others in analysis.improvement.items()
            for other, values in others.items()
        ]
        parts += [
            "### Probability of improvement",
            "How likely a run of the first is above one of the second, on average over tasks.",
            markdown_table(["first", "second", "probability"], rows),
        ]
    if analysis.absent:
        rows = [[absent.name, absent.state, absent.reason] for absent in analysis.absent]
        parts += ["### Not in the final figures", markdown_table(["run", "state", "why"], rows)]
    return "\n\n".join(parts) + "\n"


def scale_note(analysis: Analysis) -> str:
    """Return what counts as 0 and 1 on each task."""
    counted = {task: ends for task, ends in analysis.scales.items() if ends[0] < ends[1]}
    ends = [f"{task} {shown_number(low)} to {shown_number(high)}" for task, (low, high) in counted.items()]
    alike = [task for task in analysis.scales if task not in counted]
    return (
        "Scores on which a task's lowest evaluation is 0 and its highest 1 (a win rate is taken as it is): "
        + "; ".join(ends)
        + ". Algorithms with a result on each of these."
        + (f" All evaluations are alike, and not counted, on {', '.join(alike)}." if alike else "")
    )


def latex(analysis: Analysis) -> str:
    """Return a table for papers, a row for each algorithm and a column for each task; it needs ``booktabs``."""
    by_name = {(r.task, r.algorithm): r for r in analysis.results}
    tasks = analysis.tasks
    lines = [f"\\begin{{tabular}}{{l{'c' * len(tasks)}}}", "\\toprule"]
    lines += [" & ".join(["algorithm", *map(_tex, tasks)]) + r" \\", "\\midrule"]
    best = {task: max((r.iqm for r in analysis.results_on(task) if r.iqm is not None), default=None) for task in tasks}
    for algorithm in analysis.algorithms:
        cells = [_cell(by_name.get((task, algorithm)), best[task]) for task in tasks]
        lines.append(" & ".join([_tex(algorithm), *cells]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}", f"% {_STATISTICS} Bold: the highest IQM of a task."]
    return "\n".join(lines) + "\n"


def results_csv(analysis: Analysis) -> str:
    """Return a row for each task and algorithm."""
    head = ["task", "algorithm", "metric", "runs", "iqm", "low", "high", "mean", "median", "env_steps"]
    rows = [
        [
            *(r.task, r.algorithm, analysis.metrics[r.task], len(r.values)),
            *(r.iqm, *(r.interval or ("", "")), r.mean, r.median, r.env_steps),
        ]
        for r in analysis.results
    ]
    return _csv(head, rows)


def runs_csv(analysis: Analysis) -> str:
    """Return a row for each run, those that have not ended too."""
    head = ["task", "algorithm", "seed", "status", "metric", "final", "env_steps", "wall_s", "place"]
    rows = []
    for group in analysis.groups:
        metric = analysis.metrics[group.task]
        for run in group.runs:
            last = [next((v for v in run.columns.get(axis, [])[::-1] if v is not None), None) for axis in _ENDS]
            final = run.final.get(metric)
            rows.append(
                [group.task, group.algorithm, run.seed, run.status, metric, final, *last, shown_path(run.place)]
            )
    return _csv(head, rows)


_ENDS = ("env_steps", "wall_s")


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([["" if value is None else _no_formula(value) for value in row] for row in rows])
    return text.getvalue()


def _no_formula(value: object) -> object:
    """Return a text so that a spreadsheet does not take it for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _runs(result: Result) -> str:
    return str(len(result.values)) if not result.running else f"0, {result.running} running"


def _cell(result: Result | None, best: float | None) -> str:
    if result is None or result.iqm is None:
        return "--"
    value = shown_number(result.iqm)
    value = f"\\textbf{{{value}}}" if result.iqm == best else value
    if result.interval is None:
        return value
    return f"{value} [{shown_number(result.interval[0])}, {shown_number(result.interval[1])}]"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
