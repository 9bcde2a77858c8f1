"""Lay out the runs of a suite as jobs: train, evaluate the last network on fresh seeds, write the row."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from qmix_lightning.cli.compose import composer
from qmix_lightning.cli.overrides import path_override
from qmix_lightning.config.resume import imported
from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.runtime.text import error_line, shown_path
from qmix_lightning.study.code_version import changed_parts, code_version
from qmix_lightning.study.index import Study, identity, write_lines
from qmix_lightning.study.rows import METRICS, Row, commit, evaluations, read_row, row_path
from qmix_lightning.study.runner import Job, Processes
from qmix_lightning.study.suite import Suite

__all__ = ["Cell", "Plan"]

_TRAIN, _EVALUATE = "qmix_lightning.commands.train", "qmix_lightning.commands.evaluate"
_QUIET = ["logger=none", "trainer.enable_progress_bar=false"]


@dataclass(frozen=True)
class Cell:
    """One run of a suite: a task, an algorithm, a seed, and what it takes."""

    task: str
    algorithm: str
    seed: int
    overrides: list[str]
    config: RunConfig
    identity: str
    code: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.task} {self.algorithm} seed {self.seed}"


class Plan:
    """The runs of a suite, where each of them writes, and which rows there are.

    Args:
        suite: what is run.
        tasks, algorithms, seeds: the part of it that is wanted.
        also: overrides for every run, after all others.
        folder: of the study.
        results: where rows are read and written.
    """

    def __init__(
        self,
        suite: Suite,
        tasks: Sequence[str],
        algorithms: Sequence[str],
        seeds: Sequence[int],
        also: Sequence[str],
        folder: Path,
        results: Path,
    ) -> None:
        self.suite, self.tasks, self.algorithms, self.seeds = suite, tasks, algorithms, seeds
        self.study, self.results = Study(folder), results
        self.study.runs()  # a damaged index is told before anything is begun
        self.cells = list(self._cells(list(also)))
        self.problems = list(self._problems())

    def _cells(self, also: list[str]) -> Iterator[Cell]:
        composed: dict[tuple[str, str], tuple[list[str], list[RunConfig]]] = {}
        with composer() as compose:
            for task in self.tasks:
                for algorithm in self.algorithms:
                    overrides = [*self.suite.overrides_of(task, algorithm), "num_threads=1", *also]
                    try:
                        configs = compose([*_QUIET, *overrides, "run_dir=outputs/bench"], list(self.seeds))
                    except ConfigurationError as error:
                        raise ConfigurationError(f"{task} with {algorithm}: {error}") from error
                    composed[task, algorithm] = overrides, configs
        for number, seed in enumerate(self.seeds):  # by seed first: the table is whole early
            for (task, algorithm), (overrides, configs) in composed.items():
                config = configs[number]
                tree = config.to_dict()
                yield Cell(task, algorithm, seed, overrides, config, identity(tree), code_version(tree))

    def _problems(self) -> Iterator[str]:
        """Yield a line for each row that is left out although its file is there."""
        others = 0
        for cell in self.cells:
            try:
                row = read_row(self._path(cell))
            except RunError as error:
                yield f"{error}: it is made again"
            else:
                others += row is not None and self.row(cell) is None
        if others:
            yield f"{others} results in {shown_path(self.results)} are of other settings: left out, and replaced"

    def _path(self, cell: Cell) -> Path:
        return row_path(self.results, cell.task, cell.algorithm, cell.seed)

    def row(self, cell: Cell) -> Row | None:
        """Return the row of a run, ``None`` if there is none with its settings, evaluated as the suite says."""
        try:
            row = read_row(self._path(cell))
        except RunError:
            return None
        if row is None or row.identity != cell.identity or self.suite.tasks[cell.task].metric not in row.final:
            return None
        played = [row.content["final"].get(name) for name in ("episodes", "seed")]
        return row if played == [self.suite.final_episodes, self.suite.final_seed] else None

    def is_done(self, cell: Cell, *, again: bool = False) -> bool:
        """Return whether the row of a run is there; with ``again`` one that other code made does not count."""
        row = self.row(cell)
        return row is not None and not (again and changed_parts(row.code, cell.code))

    def job(self, cell: Cell, processes: Processes, side_by_side: int, *, again: bool = False) -> Job:
        """Return what makes a run's row; with ``again`` a row, and a folder, of other code do not count."""
        begun = self.study.runs().get(cell.identity)
        entry = self.study.place(
            cell.identity,
            f"{cell.task}/{cell.algorithm}/seed{cell.seed}",
            {"code": cell.code, "commit": commit()},
            anew=again and begun is not None and begun.get("code") != cell.code,
        )
        folder = self.study.folder / entry["folder"]
        log = self.study.folder / "logs" / f"{cell.task}-{cell.algorithm}-seed{cell.seed}.log"

        def train(resume: bool, lock: int) -> None:
            checkpoints = f"checkpoint_interval={max(1, cell.config.total_env_steps // 10)}"
            typed = [*_QUIET, checkpoints, *cell.overrides, f"seed={cell.seed}", path_override("run_dir", folder)]
            processes.call(_TRAIN, [*typed, "ckpt_path=last"] if resume else typed, log, lock)

        def finish(lock: int) -> None:
            target = folder / "final.json"
            processes.call(_EVALUATE, [*self._evaluation(cell, folder), path_override("output", target)], log, lock)
            try:
                final, summary = json.loads(target.read_text()), json.loads((folder / "summary.json").read_text())
                content = self._content(cell, folder, entry, final, summary, side_by_side)
            except (OSError, ValueError, KeyError) as error:
                raise RunError(f"{shown_path(folder)} cannot be summed up: {error_line(error)}") from error
            write_lines(content, self._path(cell))

        lock = self.study.lock_of(cell.identity)
        return Job(cell.name, folder, lock, partial(self.is_done, cell, again=again), train, finish)

    def _evaluation(self, cell: Cell, folder: Path) -> list[str]:
        return [
            path_override("ckpt_path", f"{folder}/checkpoints/last.ckpt"),
            f"episodes={self.suite.final_episodes}",
            f"num_envs={cell.config.rollout.num_eval_envs}",
            f"seed={self.suite.final_seed}",
            *(f"env.{key}={value}" for key, value in imported(cell.config.env).items()),
        ]

    def _content(
        self,
        cell: Cell,
        folder: Path,
        entry: dict[str, Any],
        final: dict[str, Any],
        summary: dict[str, Any],
        side_by_side: int,
    ) -> dict[str, Any]:
        """Return a row, as it is written."""
        import torch

        metric = self.suite.tasks[cell.task].metric
        if final.get(metric) is None:
            raise RunError(f"{cell.task} has no {metric}: give the task another metric in the suite")
        command = ["qmix-train", *cell.overrides, f"seed={cell.seed}"]
        measured = {name: final[name] for name in ("episodes", *METRICS, "length_mean") if final.get(name) is not None}
        return {
            "format": 1,
            "suite": self.suite.name,
            "task": cell.task,
            "algorithm": cell.algorithm,
            "seed": cell.seed,
            "identity": cell.identity,
            "status": summary["status"],
            "env_steps": summary["env_steps"],
            "updates": summary["updates"],
            "wall_s": summary["wall_s"],
            "side_by_side": side_by_side,
            "final": {"network": "last", "seed": final["seed"], **measured},
            "evaluations": evaluations(folder, summary),
            "command": shlex.join(command),
            "evaluation": shlex.join(["qmix-eval", *self._evaluation(cell, Path("RUN_DIR"))]),
            "commit": entry["commit"],
            "code": entry["code"],
            "versions": summary["versions"],
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
