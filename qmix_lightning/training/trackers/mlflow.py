"""Track a run in MLflow."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Generator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from qmix_lightning.training.trackers.base import TrackedRun, Tracker

__all__ = ["MLflowTracker"]

_MOST_TEXT = 500
_AT_ONCE = 100  # parameters or tags that MLflow takes in one request
_STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "pruned": "FINISHED", "interrupted": "KILLED"}


@contextlib.contextmanager
def _alone_with(uri: str) -> Generator[None]:
    """Let one process at a time make the tables of an SQLite file: of two runs that begin together, one would fail."""
    place = Path(uri.removeprefix("sqlite:///")).parent
    if not uri.startswith("sqlite:///") or not place.is_dir():
        yield
        return
    import fcntl

    folder = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


class MLflowTracker(Tracker):
    """Tracker that writes to an MLflow server or database.

    MLflow keeps a value that is logged twice, and no parameter may change: after a resume metrics go on behind the
    last step that it has, and a changed parameter becomes a tag ``resumed.<parameter>``.

    Args:
        run: what it is told of the run.
        project: MLflow's experiment.
        tracking_uri: ``None``: ``MLFLOW_TRACKING_URI``, or else ``mlflow.db`` in the working folder.
        name: of the run; ``None``: the run folder's.
        group: its tag ``study``; ``None``: the study's name.
        tags: beside the names of the environment and the algorithm.
    """

    package = "mlflow"

    def __init__(
        self,
        run: TrackedRun,
        *,
        project: str = "qmix-lightning",
        tracking_uri: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        super().__init__(run, name=name, group=group, tags=tags)
        self.project = project
        self.tracking_uri = tracking_uri
        self.experiment: Any = None

    @property
    def view(self) -> str:
        if str(self.tracking_uri).startswith("http"):
            return f"{self.tracking_uri} (experiment {self.project}, run {self.run_name})"
        return f"mlflow ui --backend-store-uri {self.tracking_uri}"

    def open(self, params: Mapping[str, Any]) -> dict[str, int]:
        mlflow: Any = import_module("mlflow")

        for noisy in ("alembic", "mlflow"):  # only now: it sets up its logging when it is imported
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.tracking_uri = self.tracking_uri or mlflow.get_tracking_uri()
        with _alone_with(str(self.tracking_uri)):
            self.experiment = client = mlflow.MlflowClient(self.tracking_uri)
            client.get_experiment_by_name(self.project)  # makes the tables
        texts = {key: str(value)[:_MOST_TEXT] for key, value in params.items()}
        if self.tracker_id is None:
            tags = {"env": self.run.env, "algorithm": self.run.algorithm, **{f"tag.{tag}": "true" for tag in self.tags}}
            if self.group:
                tags["study"] = self.group
            made = client.create_run(self._experiment_id(), run_name=self.run_name, tags=tags)
            self.tracker_id = made.info.run_id
            self._log_params(texts)
            return {}
        found = client.get_run(self.tracker_id)
        client.update_run(self.tracker_id, status="RUNNING")
        known = found.data.params
        self._log_params({key: text for key, text in texts.items() if key not in known})
        for key in [key for key, text in texts.items() if known.get(key, text) != text]:
            client.set_tag(self.tracker_id, f"resumed.{key}", texts[key])
        return {
            name: max(point.step for point in client.get_metric_history(self.tracker_id, name))
            for name in found.data.metrics
        }

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        found = self.experiment.get_experiment_by_name(self.project)
        if found is not None:
            return found.experiment_id
        try:
            return self.experiment.create_experiment(self.project)
        except MlflowException:  # another run of the study was faster
            return self.experiment.get_experiment_by_name(self.project).experiment_id

    def _log_params(self, texts: Mapping[str, str]) -> None:
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        params = [Param(key, text) for key, text in texts.items()]
        for first in range(0, len(params), _AT_ONCE):
            self.experiment.log_batch(self.tracker_id, params=params[first : first + _AT_ONCE])

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        self.experiment.log_batch(self.tracker_id, metrics=[Metric(k, v, now, step) for k, v in metrics.items()])

    def close(self, summary: Mapping[str, Any], step: int) -> None:
        from mlflow.entities import RunTag  # pyright: ignore[reportMissingImports]

        numbers = {f"summary/{k}": float(v) for k, v in summary.items() if not isinstance(v, str)}
        self.send(numbers, step)
        texts = [RunTag(f"summary.{k}", v[:_MOST_TEXT]) for k, v in summary.items() if isinstance(v, str)]
        self.experiment.log_batch(self.tracker_id, tags=texts)
        self.experiment.set_terminated(self.tracker_id, _STATUS.get(summary["status"], "FAILED"))
