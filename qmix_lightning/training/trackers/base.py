"""Tell an experiment tracker about a run: hyperparameters, each metric once, the summary, and the same run again."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
import uuid
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Trainer
from pytorch_lightning.loggers.logger import Logger
from tqdm import tqdm

from qmix_lightning.config.tree import flatten
from qmix_lightning.errors import CheckpointError, ConfigurationError, MissingDependencyError, QMixLightningError
from qmix_lightning.runtime.text import error_line, shortened
from qmix_lightning.training.row_position import PlacesRows

__all__ = [
    "TrackedRun",
    "Tracker",
    "catch_up",
    "finish_trackers",
    "is_installed",
    "new_id",
    "open_trackers",
    "require",
    "study_of",
    "tracker_ids",
]

_NO_HYPERPARAMETERS = ("logger", "callbacks", "run_dir", "ckpt_path")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run before it is opened.

    Attributes:
        folder: where the run writes.
        entry: the name of the tracker's section, ``logger.<entry>``.
        env: name of the environment.
        algorithm: name of the algorithm.
        tracker_id: the tracker's run that a resumed one goes on with; ``None``: a new one.
    """

    folder: Path
    entry: str
    env: str
    algorithm: str
    tracker_id: str | None = None


def is_installed(package: str) -> bool:
    """Return whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def require(package: str) -> None:
    """Refuse, with the command that installs it, if a tracker's package is not there."""
    if not is_installed(package):
        raise MissingDependencyError(f"logger={package} needs {package}: pip install 'qmix-lightning[{package}]'")


def new_id() -> str:
    """Return an id for a tracker's run."""
    return uuid.uuid4().hex[:12]


def study_of(folder: Path) -> str | None:
    """Return the name of the study that a run folder is part of: the nearest folder above it with an index."""
    for parent in folder.resolve().parents[:3]:
        if any((parent / name).is_file() for name in ("study.json", "multirun.yaml")):
            return parent.name
    return None


class Tracker(PlacesRows, Logger):
    """Base of the shipped trackers: a Lightning logger that knows its run again after a resume.

    Every metric arrives once for each environment step, whatever is logged again after a resume; of several updates
    without a step between them the first counts. A tracker that fails while the run goes on costs its rows, never the
    run: ``metrics.csv`` has them all.

    Args:
        run: what it is told of the run.
        name: of the tracker's run; ``None``: the run folder's.
        group: ``None``: the study's name.
        tags: beside the names of the environment and the algorithm.
    """

    package: str

    def __init__(self, run: TrackedRun, *, name: str | None, group: str | None, tags: Iterable[Any] | None) -> None:
        super().__init__()
        require(self.package)
        self.run = run
        self.run_name = name or run.folder.resolve().name
        self.group = group or study_of(run.folder)
        self.tags = list(dict.fromkeys([run.env, run.algorithm, *map(str, tags or ())]))
        self.tracker_id: str | None = run.tracker_id
        self.lost_rows = 0
        self._last_steps: dict[str, int] = {}
        """Metric -> step of its last value in the tracker."""
        self._last_step = 0

    @property
    def name(self) -> str:
        return self.run.entry

    @property
    def version(self) -> str:
        return self.tracker_id or ""

    @property
    def view(self) -> str:
        """Return how to look at the run: a command or an address."""
        return ""

    @abstractmethod
    def open(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Begin the tracker's run, or go on with it; return the last step of each metric that it holds.

        Args:
            params: flat hyperparameters; those of a resumed run may have changed.
        """

    @abstractmethod
    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Send a row."""

    @abstractmethod
    def close(self, summary: Mapping[str, Any], step: int) -> None:
        """Send the summary, flat, and end the tracker's run; ``summary["status"]`` says how the run ended."""

    @rank_zero_only
    def begin(self, params: Mapping[str, Any]) -> None:
        """Open the tracker's run with its flat hyperparameters.

        Raises:
            ConfigurationError: the tracker refused; the message has what it said.
        """
        try:
            self._last_steps = self.open(params)
        except QMixLightningError:
            raise
        except Exception as error:
            cure = "type its settings again, or logger=none" if self.run.tracker_id else "logger=none goes without"
            raise ConfigurationError(f"logger.{self.name}: {shortened(error_line(error), 300)}; {cure}") from error

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the tracker has them since it was opened."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send what the tracker does not hold yet for ``step``, in environment steps."""
        self.send(*self.placed(metrics, step))

    def send(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Send, as :meth:`log_metrics` does, metrics that belong to ``step`` wherever the run stands."""
        step = int(step or 0)
        new = {name: value for name, value in metrics.items() if step > self._last_steps.get(name, -1)}
        if new:
            self._last_steps |= dict.fromkeys(new, step)
            self._last_step = max(self._last_step, step)
            if not self._guarded(lambda: self.write(new, step)):
                self.lost_rows += 1

    def _guarded(self, send: Any) -> bool:
        try:
            send()
        except Exception as error:
            if not self.lost_rows:
                tqdm.write(
                    f"warning: logger.{self.name} failed, and lacks what metrics.csv has from here on: "
                    f"{shortened(error_line(error), 200)}",
                    file=sys.stderr,
                )
            return False
        return True

    @rank_zero_only
    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send ``summary.json`` and end the tracker's run."""
        flat = {key: value for key, value in flatten(summary).items() if isinstance(value, bool | int | float | str)}
        self._guarded(lambda: self.close(flat, self._last_step))
        if self.lost_rows:
            print(f"warning: logger.{self.name} lacks {self.lost_rows} rows of metrics.csv", file=sys.stderr)


def tracker_ids(saved: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the ids of the trackers' runs that a checkpoint names, by the names of the loggers' sections.

    Raises:
        CheckpointError: they are no ids.
    """
    ids: Any = saved
    for key in ("callbacks", "RunCheckpoint", "trackers"):
        ids = ids.get(key, {}) if isinstance(ids, Mapping) else {}
    whole = isinstance(ids, dict) and all(isinstance(v, str) and _ID.fullmatch(v) for v in ids.values())
    if not whole:
        raise CheckpointError("the checkpoint's trackers are named by what is no id")
    return ids


def _trackers(trainer: Trainer) -> list[Tracker]:
    return [logger for logger in trainer.loggers if isinstance(logger, Tracker)]


def open_trackers(trainer: Trainer, config: Mapping[str, Any]) -> list[str]:
    """Open every tracker, and give every logger the hyperparameters; return how to look at the trackers' runs.

    Args:
        trainer: whose loggers they are.
        config: the run's configuration, nested; loggers and callbacks are no hyperparameters.

    Raises:
        ConfigurationError: one of them cannot be opened.
    """
    params = {
        key: value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
        for section, content in config.items()
        if section not in _NO_HYPERPARAMETERS
        for key, value in flatten({section: content}).items()
    }
    opened: list[Tracker] = []
    try:
        for tracker in _trackers(trainer):
            tracker.begin(params)
            opened.append(tracker)
    except ConfigurationError:
        for tracker in opened:
            tracker.finish({"status": "failed"})
        raise
    for logger in trainer.loggers:  # only now: the folder of a run that is refused is removed
        if not isinstance(logger, Tracker):
            logger.log_hyperparams(params)
    return [tracker.view for tracker in _trackers(trainer) if tracker.view]


def catch_up(trainer: Trainer, rows: Iterable[Mapping[str, str]]) -> None:
    """Send the rows of ``metrics.csv`` that a tracker lacks: those before it joined, or that a kill has lost."""
    for tracker in _trackers(trainer):
        for row in rows:
            values = {name: float(value) for name, value in row.items() if value not in ("", None)}
            if math.isfinite(step := values.get("env_steps", math.nan)):
                tracker.log_metrics(values, step=int(step))


@runtime_checkable
class TakesSummary(Protocol):
    """Protocol of loggers that want the content of ``summary.json`` when a run has ended."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and close."""
        ...


def finish_trackers(trainer: Trainer, summary: Mapping[str, Any]) -> None:
    """Send the summary to every tracker and end its run."""
    for logger in trainer.loggers:
        if isinstance(logger, TakesSummary):
            logger.finish(summary)
