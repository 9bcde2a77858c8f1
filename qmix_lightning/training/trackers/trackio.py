"""Track a run in Trackio."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from qmix_lightning.training.trackers.base import TrackedRun, Tracker, new_id

__all__ = ["TrackioTracker"]


class TrackioTracker(Tracker):
    """Tracker that writes to Trackio's local store, or to a Space of the Hugging Face Hub.

    Trackio knows a run by its name, so the name is the id: what the run is called, and some random letters.

    Args:
        run: what it is told of the run.
        project: Trackio's project.
        space_id: a Space; ``None``: ``TRACKIO_SPACE_ID``, or else the local store (``TRACKIO_DIR``).
        name: of the run; ``None``: the run folder's.
        group: ``None``: the study's name.
        tags: kept as the parameter ``tags``, since Trackio has none.
    """

    package = "trackio"

    def __init__(
        self,
        run: TrackedRun,
        *,
        project: str = "qmix-lightning",
        space_id: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        super().__init__(run, name=name, group=group, tags=tags)
        self.project = project
        self.space_id = space_id
        self.experiment: Any = None

    @property
    def view(self) -> str:
        return f"trackio show --project {self.project}"

    def open(self, params: Mapping[str, Any]) -> dict[str, int]:
        trackio: Any = import_module("trackio")
        store: Any = import_module("trackio.sqlite_storage").SQLiteStorage

        # A run that was killed in its first second is not in the store yet.
        resume = "never" if self.tracker_id is None else "allow"
        if self.tracker_id is None:
            self.tracker_id = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', self.run_name)[:51]}-{new_id()}"
        with contextlib.redirect_stdout(io.StringIO()):  # it says where it writes, and so does this package
            self.experiment = trackio.init(
                project=self.project,
                name=self.tracker_id,
                group=self.group,
                space_id=self.space_id,
                config={**params, "tags": ", ".join(self.tags)},
                resume=resume,
                embed=False,
            )
        last: dict[str, int] = {}
        for row in store.get_logs(self.project, self.tracker_id):
            last |= {key: max(last.get(key, -1), row["step"]) for key in row}
        return last

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        self.experiment.log(dict(metrics), step=step)

    def close(self, summary: Mapping[str, Any], step: int) -> None:
        new = {f"summary/{key}": value for key, value in summary.items()}
        self.experiment.log(new, step=step)
        trackio: Any = import_module("trackio")
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()
