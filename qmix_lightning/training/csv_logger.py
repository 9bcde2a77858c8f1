"""Write ``metrics.csv``: one row a logging step, none twice; a resumed run drops rows after its checkpoint."""

from __future__ import annotations

import csv
import math
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.loggers.logger import Logger

from qmix_lightning.runtime.kill_points import reached
from qmix_lightning.training.row_position import PlacesRows

__all__ = ["RunCSVLogger"]

_KEY = "updates"


def _update_of(row: dict[Any, Any]) -> float:
    """Return the update that a row belongs to; infinity if the row is damaged."""
    if None in row or None in row.values():
        return math.inf
    try:
        update = float(row[_KEY])
    except (KeyError, ValueError):
        return math.inf
    return update if update >= 0 else math.inf


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()  # a killed process was writing it
    return list(csv.DictReader(lines))


class RunCSVLogger(PlacesRows, Logger):
    """Logger that writes a wide CSV whose first column counts updates.

    What is logged at the same update is merged into one row. The row in the making is part of the checkpoint, so an
    evaluation that is repeated after a resume completes its row instead of adding another.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []
        self._pending: dict[str, float] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add ``metrics`` to the row of the update that they name, or else of the one that is done."""
        metrics, step = self.placed(metrics, step)
        key = metrics.get(_KEY, step)
        if self._pending and self._pending.get(_KEY) != key:
            self._write()
        self._pending |= {name: float(value) for name, value in ({_KEY: key or 0} | metrics).items()}

    def _write(self) -> None:
        if not self._pending:
            return
        new = [name for name in self._pending if name not in self._columns]
        if new:
            # Without columns of its own the run begins here; a file that is there is a run's that left no checkpoint.
            rows = _read(self.path) if self._columns else []
            self._columns += new
            self._rewrite([*rows, self._formatted(self._pending)])
        else:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(self._formatted(self._pending))
        self._pending = {}

    @staticmethod
    def _formatted(row: dict[str, float]) -> dict[str, str]:
        return {k: str(int(v)) if float(v).is_integer() and abs(v) < 2**53 else repr(float(v)) for k, v in row.items()}

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of the file, and the row in the making."""
        return [*_read(self.path), *([self._formatted(self._pending)] if self._pending else [])]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".writing")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        reached("metrics.rename")
        os.replace(temporary, self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return the row in the making; everything before it is on disk when this returns."""
        if self.path.exists():
            with open(self.path, "a") as file:
                os.fsync(file.fileno())
        return {"pending": dict(self._pending), "begun": bool(self._columns)}

    @rank_zero_only
    def load_state_dict(self, state: dict[str, Any], updates: int, source: Path | None = None) -> None:
        """Drop what was written after the checkpoint's ``updates``; ``source`` is another run's file to go on from."""
        pending = {str(name): float(value) for name, value in dict(state.get("pending", {})).items()}
        path, lost = source or self.path, f"its rows up to update {updates:,} are lost"
        try:
            rows = _read(path)
            if not rows and state.get("begun"):
                print(f"{path} is gone: {lost}", file=sys.stderr)
        except (OSError, ValueError, csv.Error) as error:
            rows = []
            print(f"{path} cannot be read ({type(error).__name__}): {lost}", file=sys.stderr)
            if source is None:
                aside = path.with_name(f"{path.name}.damaged")
                os.replace(path, aside)
                print(f"{path} is kept as {aside.name}", file=sys.stderr)
        # An evaluation at this very update, the first row of all, is repeated.
        limit = pending.get(_KEY, updates + 1 if state.get("begun", True) else 0)
        kept = [row for row in rows if _update_of(row) < limit]
        if damaged := sum(_update_of(row) == math.inf for row in rows):
            print(f"{self.path}: {damaged} damaged rows are left out", file=sys.stderr)
        self._columns = list(rows[0]) if rows else []
        if self._columns:
            self._rewrite(kept)
        if not kept:
            self._columns = []  # the run begins here
        self._pending = pending

    @rank_zero_only
    def save(self) -> None:
        """Do nothing on Lightning's flush: the row in the making may still grow, so it stays in the buffer."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._write()
