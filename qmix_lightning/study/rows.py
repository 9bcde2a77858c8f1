"""Write what a finished run leaves: one small JSON; and read such files, which may come from other machines.

A row is data: numbers are compared and texts are shown, nothing in it is ever run.
"""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qmix_lightning.errors import CheckpointError, RunError
from qmix_lightning.runtime.regular_files import read_json
from qmix_lightning.runtime.text import on_one_line

__all__ = ["METRICS", "Row", "commit", "evaluations", "number", "read_row", "row_path", "time_to"]

METRICS = ("return_mean", "return_ci95", "win_rate")
_CURVES = ("env_steps", *METRICS, "wall_s")
_FORMAT = 1
_LARGEST = 2.0**127
"""Close to the largest float32: what a run measures is one, and sums of it are no infinity."""


@dataclass(frozen=True)
class Row:
    """A finished run.

    Attributes:
        identity: hash of its configuration.
        seed: of the run.
        env_steps: that it took.
        wall_s: seconds of training, evaluations included, start-up not.
        evaluations: columns ``env_steps``, ``return_mean``, ``return_ci95``, ``win_rate`` and ``wall_s``, each a list
            with ``None`` where it is not known; those that nothing is known of are absent.
        final: the metrics of the last network's evaluation.
        code: hash of the code that it was begun with, by part.
        content: everything, as it is in the file.
    """

    identity: str
    seed: int
    env_steps: int
    wall_s: float
    evaluations: dict[str, list[float | None]]
    final: dict[str, float]
    code: dict[str, str]
    content: dict[str, Any]


def row_path(folder: Path, task: str, algorithm: str, seed: int) -> Path:
    """Return where a run's row is: a newer run of the same name takes its place."""
    return folder / f"{task}-{algorithm}-seed{seed}.json"


def read_row(path: Path) -> Row | None:
    """Return the row in a file, ``None`` if there is no file.

    Raises:
        RunError: it is not a row.
    """
    if not path.exists():
        return None
    try:
        return _parse(read_json(path))
    except (CheckpointError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path} is not the result of a run: {on_one_line(error)}") from error


def _parse(content: Any) -> Row:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {str(content['format'])[:20]!r}, not {_FORMAT}")
    curves = {name: [None if v is None else number(v) for v in content["evaluations"][name]]
              for name in _CURVES if name in content["evaluations"]}  # fmt: skip
    if len({len(column) for column in curves.values()}) > 1:
        raise ValueError("evaluations differ in length")
    return Row(
        identity=_text(content["identity"]),
        seed=int(number(content["seed"])),
        env_steps=int(number(content["env_steps"])),
        wall_s=number(content["wall_s"]),
        evaluations=curves,
        final={name: number(content["final"][name]) for name in METRICS if content["final"].get(name) is not None},
        code={_text(part): _text(value) for part, value in content["code"].items()},
        content=dict(content),
    )


def number(value: object) -> float:
    """Return what a file has as a number; raise ``ValueError`` if it is none that a run could have measured."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{str(value)[:40]!r} is not a text")
    return value


def evaluations(run_dir: Path, summary: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Return the evaluations of a run as columns, from its ``metrics.csv``, and their times from its summary.

    Raises:
        OSError, ValueError, TypeError, KeyError: they cannot be read, or hold what is no number.
    """
    try:
        with open(run_dir / "metrics.csv", newline="") as file:
            lines = csv.reader(file)
            head = next(lines, [])
            at = head.index("eval/return_mean") if "eval/return_mean" in head else len(head)
            rows = [dict(zip(head, line, strict=False)) for line in lines if len(line) > at and line[at]]
    except csv.Error as error:
        raise ValueError(f"metrics.csv: {error}") from error
    columns: dict[str, list[float | None]] = {"env_steps": [number(int(row["env_steps"])) for row in rows]}
    for name in METRICS:
        values = [_rounded(row.get(f"eval/{name}")) for row in rows]
        if any(value is not None for value in values):
            columns[name] = values
    times = {step: number(seconds) for step, seconds in summary.get("eval_wall_s", [])}
    if times:
        columns["wall_s"] = [times.get(step) for step in columns["env_steps"]]
    return columns


def _rounded(text: str | None) -> float | None:
    return number(float(f"{float(text):.6g}")) if text else None


def time_to(row: Row, metric: str, threshold: float) -> float | None:
    """Return the seconds until the first evaluation at or above a threshold; ``None`` if there was none."""
    values, times = row.evaluations.get(metric, []), row.evaluations.get("wall_s", [])
    reached = (t for v, t in zip(values, times, strict=False) if v is not None and t is not None and v >= threshold)
    return next(reached, None)


@cache
def commit() -> str:
    """Return the commit that this package's files are at, ``+`` if they differ from it; else the package's version."""
    import qmix_lightning

    folder = Path(qmix_lightning.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not a folder that happens to lie in somebody's repository
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder), str(folder.parent / "envs"))
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return f"version {qmix_lightning.__version__}"
