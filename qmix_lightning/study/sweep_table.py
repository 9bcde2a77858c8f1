"""Draw the table over the jobs of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qmix_lightning.runtime.text import aligned, printable, shown_path
from qmix_lightning.study.index import Study
from qmix_lightning.study.runner import THERE, read_summary

__all__ = ["job_table"]

_STATES = {"done": "done before", "made": "finished", "failed": "failed", "locked": "running elsewhere"}


def job_table(folder: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each job: its run, how it ended, and what it reached.

    Args:
        folder: of the study.
        records: how each job ended, in the order of the lines.
    """
    placed = {entry["folder"] for entry in Study(folder).runs().values()}
    rows = [["run", "state", "return", "win rate", "env steps", "time"]]
    for record in records:
        summary = read_summary(folder / record["name"]) if record["name"] in placed else {}
        status = "pruned" if summary.get("status") == "pruned" else str(record["status"])
        rows.append([printable(record["name"], 70), _STATES.get(status, status), *_figures(summary)])
    filled = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    lines = aligned([[row[column] for column in filled] for row in rows], right=range(2, len(filled)))
    done = sum(record["status"] in THERE for record in records)
    head = f"{shown_path(folder)}: {done} of {len(records)} runs are there"
    return "\n".join([head, *(f"  {line}" for line in lines)])


def _figures(summary: Mapping[str, Any]) -> list[str]:
    """Return the last evaluation's return and win rate, the environment steps and the seconds, as text."""
    try:
        result = summary.get("eval") or {}
        mean, rate = result.get("return_mean"), result.get("win_rate")
        return [
            "" if mean is None else f"{mean:.4g}",
            "" if rate is None else f"{rate:.1%}",
            f"{summary['env_steps']:,}",
            f"{summary['wall_s']:,.0f} s",
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return ["", "", "", ""]
