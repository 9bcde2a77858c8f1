"""Find the runs below some folders, and read what each has reached. What they hold is shown, never obeyed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmix_lightning.errors import CheckpointError, ConfigurationError, QMixLightningError, RunError
from qmix_lightning.runtime.regular_files import read_json, read_yaml
from qmix_lightning.runtime.text import message_of, printable, printable_items, shown_path
from qmix_lightning.study.index import Study, deciding_settings
from qmix_lightning.study.rows import METRICS, evaluations, number, read_row

__all__ = ["Absent", "Found", "Run", "find_runs"]

_SKIPPED = {"checkpoints", "report", "locks", "logs", "outcomes", "replay"}
_ENDED = ("completed", "stopped")
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file raises that does not hold what it should."""


@dataclass(frozen=True)
class Run:
    """A run that was found.

    Attributes:
        place: its folder, or the file of its row.
        env, algorithm, seed: of its configuration.
        settings: dotted key to value as text, without the seed and what the result does not depend on.
        status: ``completed``, ``stopped``, ``running``, ``interrupted``, ``pruned``, ``failed`` or ``diverged``.
        columns: of its evaluations: ``env_steps``, ``wall_s`` and metrics, with ``None`` where not known.
        final: metrics of the evaluation that counts: on fresh seeds where there was one, else the last.
        fresh: whether that was an evaluation of its own, after training.
        versions: of what it was made with.
    """

    place: Path
    env: str
    algorithm: str
    seed: int
    settings: dict[str, str]
    status: str
    columns: dict[str, list[float | None]]
    final: dict[str, float]
    fresh: bool
    versions: dict[str, str]

    @property
    def ended(self) -> bool:
        return self.status in _ENDED


@dataclass(frozen=True)
class Absent:
    """A run that is not in the figures: its name, ``missing``, ``failed``, ``running`` or another state, and why."""

    name: str
    state: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What stands below some folders."""

    runs: list[Run]
    absent: list[Absent]


def find_runs(folders: Sequence[Path]) -> Found:
    """Return the runs below folders: run folders, studies, and the rows of ``qmix-bench``.

    Raises:
        ConfigurationError: a folder is not there, or none of them holds a run.
    """
    runs: dict[Path, Run] = {}
    absent: list[Absent] = []
    for folder in folders:
        if not folder.is_dir():
            if folder.exists():
                raise ConfigurationError(f"{shown_path(folder)} is a file: name the folder that it is in")
            raise ConfigurationError(f"there is no folder {shown_path(folder)}")
        for place in _places(folder):
            try:
                _refuse_links(place)
                runs[place.resolve()] = _from_row(place) if place.suffix == ".json" else _from_folder(place)
            except (*_UNREADABLE, QMixLightningError) as error:
                reason = printable(message_of(error).replace(f"{place}/", ""), 200)
                absent.append(Absent(shown_path(place), "unreadable", reason))
        absent += _never_begun(folder)
    if not runs and not absent:
        raise ConfigurationError(f"there is no run below {', '.join(map(shown_path, folders))}")
    return Found(list(runs.values()), absent)


def _places(folder: Path) -> Iterator[Path]:
    """Yield run folders and files of rows, links not followed."""
    for here, names, files in os.walk(folder):
        place = Path(here)
        if "config.yaml" in files:
            names.clear()
            yield place
            continue
        names[:] = sorted(name for name in names if name not in _SKIPPED)
        rows = "study.json" not in files and not {"metrics.csv", "summary.json"} & set(files)
        yield from (place / name for name in sorted(files) if rows and "-seed" in name and name.endswith(".json"))


def _refuse_links(place: Path) -> None:
    """Refuse a run with a link, which may lead anywhere, or a pipe, which is endless, in place of a file.

    Raises:
        RunError: names it.
    """
    names = ("config.yaml", "summary.json", "metrics.csv", "final.json")
    for path in [place / name for name in names] if place.is_dir() else [place]:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise RunError(f"{path.name} is a link or no file: not followed")


def _from_folder(folder: Path) -> Run:
    tree = read_yaml(folder / "config.yaml")
    path = folder / "summary.json"
    summary = read_json(path) if path.exists() else {"status": "running"}
    columns = evaluations(folder, summary) if (folder / "metrics.csv").exists() else {"env_steps": []}
    final, fresh = _last(columns), False
    if (folder / "final.json").is_file():
        final, fresh = _metrics(read_json(folder / "final.json")), True
    status = summary.get("status") if isinstance(summary.get("status"), str) else "running"
    settings = {key: value for key, value in deciding_settings(tree).items() if key != "seed"}
    return Run(
        place=folder,
        env=printable(tree["env"]["name"], 40),
        algorithm=printable(tree["algorithm"]["name"], 40),
        seed=int(tree["seed"]),
        settings=printable_items(settings, 60),
        status=printable(status, 20),
        columns=columns,
        final=final,
        fresh=fresh,
        versions=printable_items(summary.get("versions"), 40),
    )


def _from_row(path: Path) -> Run:
    """Return the run of a row of ``qmix-bench``, whose configuration is not kept: its task is its environment."""
    row = read_row(path)
    assert row is not None
    content = row.content
    return Run(
        place=path,
        env=printable(content["task"], 40),
        algorithm=printable(content["algorithm"], 40),
        seed=row.seed,
        settings={"env.suite": printable(content["suite"], 40)},
        status=printable(content["status"], 20),
        columns=row.evaluations,
        final=row.final,
        fresh=True,
        versions=printable_items(content.get("versions"), 40),
    )


def _last(columns: Mapping[str, list[float | None]]) -> dict[str, float]:
    known = {name: [v for v in columns.get(name, []) if v is not None] for name in METRICS}
    return {name: values[-1] for name, values in known.items() if values}


def _metrics(content: Mapping[str, Any]) -> dict[str, float]:
    return {name: number(content[name]) for name in METRICS if content.get(name) is not None}


def _never_begun(folder: Path) -> Iterator[Absent]:
    """Yield the runs of a study whose folder holds none, with what their last try said."""
    if not (folder / "study.json").is_file():
        return
    study = Study(folder)
    for identity, entry in study.runs().items():
        if not (folder / entry["folder"] / "config.yaml").exists():
            state, reason = "missing", "not begun yet"
            try:
                outcome = read_json(folder / "outcomes" / f"{identity}.json")
                if outcome["status"] == "failed":
                    state, reason = "failed", printable(outcome["message"], 200)
            except (CheckpointError, KeyError, TypeError):
                pass  # no outcome, or one that cannot be read: that it has not begun is all that is known
            yield Absent(printable(entry["folder"], 100), state, reason)


def without_doubles(runs: Sequence[Run]) -> tuple[list[Run], list[Absent]]:
    """Return the runs with one for each configuration and seed: of several, one that ended, then the longest."""
    best: dict[tuple[Any, ...], Run] = {}
    absent = []
    for run in runs:
        key = (run.env, run.algorithm, run.seed, tuple(sorted(run.settings.items())))
        if (other := best.get(key)) is not None:
            run, other = sorted([run, other], key=lambda r: (r.ended, len(r.columns["env_steps"])), reverse=True)
            absent.append(Absent(shown_path(other.place), "double", f"the same run as {shown_path(run.place)}"))
        best[key] = run
    return list(best.values()), absent
