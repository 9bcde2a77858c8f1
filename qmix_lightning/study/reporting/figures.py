"""Draw an analysis with matplotlib, for papers: curves over steps and time, profiles, comparisons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qmix_lightning.runtime.near_modules import import_extra
from qmix_lightning.study.formatting import shown_tick
from qmix_lightning.study.reporting.analysis import AXES, THRESHOLDS, Analysis
from qmix_lightning.study.reporting.tables import METRIC_NAMES

__all__ = ["AXIS_NAMES", "COLORS", "draw"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#444444")
"""Told apart by people who see few colours; the second round of them is dashed."""

_DASHES = ("-", "--", ":")
AXIS_NAMES = {"env_steps": "joint steps", "wall_s": "training time in minutes"}
_WIDTH, _HEIGHT = 3.6, 2.7  # inches of a panel


def draw(analysis: Analysis, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the figures to a folder; return their files.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    mpl = import_extra("matplotlib", "figures are drawn by matplotlib", "report", ", or figures=false")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "qmix-report"}
    drawings: dict[str, Callable[[Any, Analysis], bool]] = {f"curves_{axis}": _curves(axis) for axis in AXES}
    drawings |= {"profiles": _profiles, "overall": _aggregates, "improvement": _improvement}
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(style):
        for name, drawing in drawings.items():
            figure = Figure(layout="constrained")
            FigureCanvasAgg(figure)
            if drawing(figure, analysis):
                for kind in formats:
                    date = {"Date": None} if kind == "svg" else {"CreationDate": None} if kind == "pdf" else {}
                    written.append(folder / f"{name}.{kind}")
                    figure.savefig(written[-1], dpi=160, metadata=date)
            else:  # one of a report on other runs would be taken for this one's
                for kind in formats:
                    (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return written


def _style(analysis: Analysis) -> dict[str, dict[str, Any]]:
    looks = itertools.cycle(itertools.product(_DASHES, COLORS))
    return {name: {"color": c, "linestyle": d} for name, (d, c) in zip(analysis.algorithms, looks, strict=False)}


def _curves(axis: str) -> Callable[[Any, Analysis], bool]:
    def drawing(figure: Any, analysis: Analysis) -> bool:
        results = [result for result in analysis.results if axis in result.bands]
        tasks = [task for task in analysis.tasks if any(result.task == task for result in results)]
        if not tasks:
            return False
        columns = min(3, len(tasks))
        rows = math.ceil(len(tasks) / columns)
        figure.set_size_inches(_WIDTH * columns, _HEIGHT * rows + 0.5)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        looks, handles = _style(analysis), {}
        for panel, task in zip(panels, tasks, strict=False):
            scale = 1.0 if axis == "env_steps" else 1 / 60
            for result in (result for result in results if result.task == task):
                band = result.bands[axis]
                x = [value * scale for value in band.x]
                (handles[result.algorithm],) = panel.plot(x, band.iqm, linewidth=1.6, **looks[result.algorithm])
                if band.runs > 1:
                    panel.fill_between(x, band.low, band.high, color=looks[result.algorithm]["color"], alpha=0.15, lw=0)
            panel.set(title=task, xlabel=AXIS_NAMES[axis], ylabel=METRIC_NAMES[analysis.metrics[task]])
            panel.grid(alpha=0.25)
            if axis == "env_steps":
                panel.xaxis.set_major_formatter(lambda value, _: shown_tick(value))
        for panel in panels[len(tasks) :]:
            panel.set_axis_off()
        _legend(figure, handles)
        return True

    return drawing


def _legend(figure: Any, handles: dict[str, Any]) -> None:
    names = sorted(handles)
    figure.legend(
        [handles[n] for n in names], names, loc="outside lower center", ncols=min(5, len(names)), frameon=False
    )


def _profiles(figure: Any, analysis: Analysis) -> bool:
    if not analysis.overall:
        return False
    figure.set_size_inches(4.6, 3.6)
    panel, looks, handles = figure.subplots(), _style(analysis), {}
    for overall in analysis.overall:
        look = looks[overall.algorithm]
        (handles[overall.algorithm],) = panel.step(THRESHOLDS, overall.profile, where="post", linewidth=1.6, **look)
        panel.fill_between(
            THRESHOLDS, overall.profile_low, overall.profile_high, step="post", color=look["color"], alpha=0.15, lw=0
        )
    panel.set(xlabel="normalised score τ", ylabel="share of runs above τ", xlim=(0, 1), ylim=(-0.02, 1.02))
    panel.grid(alpha=0.25)
    _legend(figure, handles)
    return True


def _bar(panel: Any, y: float, values: tuple[float, float, float], color: str) -> None:
    """Draw an interval as a bar, and the value in it as a line."""
    value, low, high = values
    panel.barh(y, max(high - low, 1e-3), left=low, height=0.55, color=color, alpha=0.35)
    panel.plot([value, value], [y - 0.28, y + 0.28], color=color, linewidth=2)


def _aggregates(figure: Any, analysis: Analysis) -> bool:
    if not analysis.overall:
        return False
    names = list(analysis.overall[0].aggregates)
    ordered = sorted(analysis.overall, key=lambda overall: overall.aggregates["IQM"][0])
    figure.set_size_inches(2.2 * len(names) + 1, 0.4 * len(ordered) + 1.1)
    looks = _style(analysis)
    for panel, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for y, overall in enumerate(ordered):
            _bar(panel, y, overall.aggregates[name], looks[overall.algorithm]["color"])
        panel.use_sticky_edges = False  # bars would begin at the edge
        panel.margins(x=0.1)
        low, high = panel.get_xlim()  # of scores that are all alike, thousandths: ticks would lie on each other
        panel.set_xlim(min(low, (low + high) / 2 - 0.05), max(high, (low + high) / 2 + 0.05))
        panel.set(title=name, yticks=range(len(ordered)), yticklabels=[overall.algorithm for overall in ordered])
        panel.grid(axis="x", alpha=0.25)
    figure.supxlabel("normalised score", fontsize=9)
    return True


def _improvement(figure: Any, analysis: Analysis) -> bool:
    pairs = [
        (one, other, values)
        for one, other in itertools.combinations(sorted(analysis.improvement), 2)
        if (values := analysis.improvement[one].get(other)) is not None
    ]
    if not pairs:
        return False
    figure.set_size_inches(5.2, 0.32 * len(pairs) + 1)
    panel = figure.subplots()
    for y, (_, _, values) in enumerate(reversed(pairs)):
        _bar(panel, y, values, COLORS[0])
    panel.axvline(0.5, color="#888888", linewidth=1)
    panel.set(xlim=(0, 1), xlabel="P(first > second)", yticks=range(len(pairs)))
    panel.set_yticklabels([f"{one} > {other}" for one, other, _ in reversed(pairs)])
    return True
