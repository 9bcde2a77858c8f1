"""Write a suite's results as Markdown, which terminals show too, as JSON, and as a picture."""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import median_high

from qmix_lightning.errors import RunError
from qmix_lightning.study.curves import picture
from qmix_lightning.study.formatting import markdown_table, shown_interval, shown_number
from qmix_lightning.study.index import write_lines
from qmix_lightning.study.plan import Plan
from qmix_lightning.study.summary import Result, Summary, comparable

__all__ = ["markdown", "write_report"]

_STALE = "†"


def markdown(plan: Plan, summary: Summary) -> str:
    """Return the tables, one for each task and one over all of them, with what stands behind their numbers."""
    parts = []
    for task in plan.tasks:
        if summary.results[task]:
            parts += [f"### {plan.suite.title(task)}", _about(plan, summary, task), _task_table(plan, summary, task)]
            parts += _published_elsewhere(plan, summary, task)
    if summary.aggregates:
        rows = [
            [algorithm, str(found.runs), shown_number(found.iqm), shown_interval(found.interval)]
            for algorithm, found in sorted(summary.aggregates.items(), key=lambda item: -item[1].iqm)
        ]
        parts += [
            "### Over all tasks",
            "Scores on which random play is 0 and the best possible 1; runs of all tasks together.",
            markdown_table(["algorithm", "runs", "IQM", "95 % interval"], rows),
        ]
    stale = {
        f"{algorithm} ({', '.join(result.stale)})"
        for results in summary.results.values()
        for algorithm, result in results.items()
        if result.stale
    }
    if stale:
        parts.append(f"{_STALE} made by other code than today's, in what is named: {', '.join(sorted(stale))}.")
    return "\n\n".join([*parts, _provenance(plan, summary)])


def write_report(plan: Plan, summary: Summary, command: str, page: Path | None) -> list[Path]:
    """Write ``results.md``, ``results.json`` and ``curves.svg`` to the study's folder; and a page, if one is named.

    A page may hold several suites: what stands in it outside of this one's section stays.

    Args:
        plan: of the suite.
        summary: of its rows.
        command: that makes all of it again.
        page: a Markdown file; its picture is put beside it.

    Returns:
        The files.

    Raises:
        RunError: one of them cannot be written.
    """
    folder, name = plan.study.folder, plan.suite.name
    tables, drawn = markdown(plan, summary), picture(plan, summary)
    written = [folder / "results.md", folder / "results.json", folder / "curves.svg"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written[0].write_text(_section(plan, command, tables, "curves.svg" if drawn else None))
        rows = [row.content for row in summary.rows]
        content = {"suite": name, "command": command, **summary.as_dict(), "rows": rows}
        write_lines(content, written[1])
        if drawn:
            written[2].write_text(drawn)
        if page is not None:
            image = page.with_name(f"{page.stem}_{name}.svg")
            page.parent.mkdir(parents=True, exist_ok=True)
            before = page.read_text() if page.exists() else "# Results\n"
            section = _section(plan, command, tables, image.name if drawn else None)
            page.write_text(_with_section(before, name, section))
            written.append(page)
            if drawn:
                image.write_text(drawn)
                written.append(image)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"the report cannot be written: {error}") from error
    return [path for path in written if path.exists()]


def _with_section(page: str, name: str, section: str) -> str:
    """Return a page with a suite's section in the place of the one that it had, or at its end."""
    begin, end = f"<!-- qmix-bench: {name} -->", f"<!-- end of {name} -->"
    block = f"{begin}\n{section.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: block, page) if pattern.search(page) else f"{page.rstrip()}\n\n{block}\n"


def _section(plan: Plan, command: str, tables: str, image: str | None) -> str:
    shown = f"\n\n![Evaluations while training: IQM and 95 % interval]({image})" if image else ""
    summary = plan.suite.summary
    return f"## {plan.suite.name}\n\n{summary[:1].upper()}{summary[1:]}.\n\n    {command}\n\n{tables}{shown}\n"


def _about(plan: Plan, summary: Summary, task: str) -> str:
    settings = plan.suite.tasks[task]
    ends = [f"random play {shown_number(settings.random)}"] if settings.random is not None else []
    ends += [f"the best possible {shown_number(settings.best)}"] if settings.best is not None else []
    episodes = plan.suite.final_episodes
    played = f"{episodes} fresh episode{'s' if episodes > 1 else ''}"
    return (
        f"Greedy {settings.metric_name} after {summary.steps[task]:,} joint steps, {played}"
        + "".join(f"; {e}" for e in ends)
        + "."
    )


def _task_table(plan: Plan, summary: Summary, task: str) -> str:
    settings, results = plan.suite.tasks[task], summary.results[task]
    figures = [p for p in plan.suite.published if p.task == task and comparable(p, summary.steps[task])]
    head = ["algorithm", "runs", "IQM", "95 % interval", "mean", "each run"]
    head += [f"time to {shown_number(settings.threshold)}"] if settings.threshold is not None else []
    head += ["published"] if figures else []
    rows = []
    for algorithm, result in results.items():
        row = [algorithm + f" {_STALE}" * bool(result.stale), str(len(result.values)), shown_number(result.iqm)]
        row += [
            shown_interval(result.interval),
            shown_number(result.mean),
            ", ".join(map(shown_number, sorted(result.values)[::-1])),
        ]
        row += [_time(result)] if settings.threshold is not None else []
        if figures:
            row.append("; ".join(f"{shown_number(p.value)} ({p.source})" for p in figures if p.algorithm == algorithm))
        rows.append(row)
    return markdown_table(head, rows)


def _published_elsewhere(plan: Plan, summary: Summary, task: str) -> list[str]:
    figures = [p for p in plan.suite.published if p.task == task and not comparable(p, summary.steps[task])]
    if not figures:
        return []
    lines = [f"* {p.algorithm}: {shown_number(p.value)} after {p.env_steps:,} ({p.source})" for p in figures]
    return ["Published after other numbers of steps:", "\n".join(lines)]


def _provenance(plan: Plan, summary: Summary) -> str:
    """Return one paragraph: what is missing, and with what the rest was made."""
    total = len(plan.cells)
    parts = [f"{total - len(summary.missing)} of {total} runs; seeds {', '.join(map(str, plan.seeds))}"]
    parts.append("IQM: mean of the middle half of the runs; interval: stratified bootstrap over seeds")
    contents = [row.content for row in summary.rows]
    torch = {str(c["versions"].get("torch")) for c in contents if isinstance(c.get("versions"), dict)}
    for name, found in {
        "torch": torch,
        "CPU": {str(c.get("cpu_capability")) for c in contents},
        "commit": {str(c.get("commit")) for c in contents},
    }.items():
        shown = sorted("".join(filter(str.isprintable, text))[:40] for text in found)
        if shown:
            parts.append(f"{name} {', '.join(shown)}")
    if summary.rows:
        hours = sum(row.wall_s for row in summary.rows) / 3600
        median = median_high(row.wall_s for row in summary.rows)
        parts.append(f"{hours:.1f} hours of training in all, a median of {median:,.0f} s a run")
    return ". ".join(parts) + "."


def _time(result: Result) -> str:
    if result.time_s is None or math.isinf(result.time_s):
        return f"not reached ({result.reached} of {len(result.values)})"
    return f"{result.time_s:,.0f} s ({result.reached} of {len(result.values)})"
