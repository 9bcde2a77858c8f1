"""Write an analysis as one HTML file that needs no network: curves, tables, filters by task and algorithm."""

from __future__ import annotations

import itertools
import json
from html import escape
from importlib import resources
from typing import Any

from qmix_lightning.runtime.near_modules import import_extra
from qmix_lightning.study.formatting import shown_interval, shown_number, shown_with_interval
from qmix_lightning.study.reporting.analysis import AXES, THRESHOLDS, Analysis, Result
from qmix_lightning.study.reporting.figures import AXIS_NAMES, COLORS
from qmix_lightning.study.reporting.tables import METRIC_NAMES, scale_note

__all__ = ["page"]


def page(analysis: Analysis, title: str) -> str:
    """Return the page.

    Raises:
        MissingDependencyError: plotly, whose script is put into the page, is not installed.
    """
    plotly = import_extra("plotly.offline", "the page is drawn by plotly", "report", ", or page=false")
    template = resources.files("qmix_lightning.study.reporting").joinpath("page.html").read_text()
    parts = {
        "title": escape(title),
        "plotly": plotly.get_plotlyjs(),
        "data": _for_script(_data(analysis)),
        "tasks": "\n".join(_task(analysis, number, task) for number, task in enumerate(analysis.tasks)),
        "overall": _overall(analysis),
        "absent": _absent(analysis),
        "summary": escape(_summary(analysis)),
    }
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text)
    return template


def _for_script(content: object) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _data(analysis: Analysis) -> dict[str, Any]:
    """Return what the page's script draws."""
    looks = itertools.cycle(itertools.product(("solid", "dash", "dot"), COLORS))
    return {
        "algorithms": analysis.algorithms,
        "looks": [{"color": color, "dash": dash} for _, (dash, color) in zip(analysis.algorithms, looks, strict=False)],
        "tasks": [
            {
                "name": task,
                "metric": METRIC_NAMES[analysis.metrics[task]],
                "curves": [_curve(analysis, r) for r in analysis.results_on(task) if r.bands],
            }
            for task in analysis.tasks
        ],
        "axes": {axis: AXIS_NAMES[axis] for axis in AXES if any(axis in result.bands for result in analysis.results)},
        "profiles": [{"algorithm": analysis.algorithms.index(o.algorithm), "y": o.profile} for o in analysis.overall],
        "thresholds": THRESHOLDS.tolist(),
    }


def _curve(analysis: Analysis, result: Result) -> dict[str, Any]:
    bands = {
        axis: {**vars(band), "x": [x / 60 for x in band.x] if axis == "wall_s" else band.x}
        for axis, band in result.bands.items()
    }
    return {"algorithm": analysis.algorithms.index(result.algorithm), "bands": bands, "running": result.running}


def _table(head: list[str], rows: list[tuple[int | None, list[str]]], caption: str) -> str:
    """Return a table whose rows name their algorithm, so that they can be filtered."""
    lines = [f"<table><caption>{escape(caption)}</caption><thead><tr>"]
    lines += [f'<th scope="col">{escape(name)}</th>' for name in head]
    lines.append("</tr></thead><tbody>")
    for algorithm, cells in rows:
        mark = "" if algorithm is None else f' data-algorithm="{algorithm}"'
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return "".join([*lines, "</tbody></table>"])


def _task(analysis: Analysis, number: int, task: str) -> str:
    results = analysis.results_on(task)
    rows: list[tuple[int | None, list[str]]] = [
        (
            analysis.algorithms.index(r.algorithm),
            [
                r.algorithm,
                str(len(r.values)) if r.values else f"{r.running} running",
                shown_number(r.iqm),
                shown_interval(r.interval),
                shown_number(r.mean),
                ", ".join(f"{seed}: {shown_number(v)}" for seed, v in zip(r.seeds, r.values, strict=True)),
            ],
        )
        for r in results
    ]
    metric = METRIC_NAMES[analysis.metrics[task]]
    table = _table(
        ["algorithm", "runs", "IQM", "95 % interval", "mean", "each seed"], rows, f"Final {metric} on {task}"
    )
    return (
        f'<section class="task" data-task="{number}"><h2>{escape(task)}</h2>'
        f'<div class="plot" id="task-{number}" role="img" aria-label="{escape(f"{metric} on {task} while training")}">'
        f"</div>{table}</section>"
    )


def _overall(analysis: Analysis) -> str:
    if not analysis.overall:
        return ""
    names = list(analysis.overall[0].aggregates)
    rows: list[tuple[int | None, list[str]]] = [
        (
            analysis.algorithms.index(o.algorithm),
            [o.algorithm, str(o.runs), *(shown_with_interval(*o.aggregates[n]) for n in names)],
        )
        for o in sorted(analysis.overall, key=lambda o: -o.aggregates["IQM"][0])
    ]
    pairs: list[tuple[int | None, list[str]]] = [
        (analysis.algorithms.index(one), [one, other, shown_with_interval(*values)])
        for one, others in analysis.improvement.items()
        for other, values in others.items()
    ]
    parts = [
        '<section id="overall"><h2>Over all tasks</h2>',
        f"<p>{escape(scale_note(analysis))}</p>",
        '<div class="plot" id="profiles" role="img" aria-label="Performance profiles"></div>',
        _table(["algorithm", "runs", *names], rows, "Normalised scores, with 95 % intervals"),
    ]
    if pairs:
        parts.append(_table(["first", "second", "P(first > second)"], pairs, "Probability of improvement"))
    return "".join([*parts, "</section>"])


def _absent(analysis: Analysis) -> str:
    if not analysis.absent:
        return '<section id="absent"><h2>Missing and failed</h2><p>Every run has ended.</p></section>'
    rows: list[tuple[int | None, list[str]]] = [(None, [a.name, a.state, a.reason]) for a in analysis.absent]
    table = _table(["run", "state", "why"], rows, "Runs that are not in the final figures")
    return f'<section id="absent"><h2>Missing and failed</h2>{table}</section>'


def _summary(analysis: Analysis) -> str:
    ended = sum(len(result.values) for result in analysis.results)
    return (
        f"{ended} runs that have ended, {len(analysis.absent)} that are not in the final figures. Curves: mean of the "
        "middle half of the runs (IQM) and its 95 % interval, by the stratified bootstrap over runs."
    )
