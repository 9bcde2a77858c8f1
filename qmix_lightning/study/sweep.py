"""Make the runs of ``qmix-train -m`` in the folder of a study: each Hydra job makes, skips or resumes one run."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmix_lightning.cli.hydra_app import Composed
from qmix_lightning.cli.overrides import path_override
from qmix_lightning.config.early_checks import check_early
from qmix_lightning.config.env_address import env_label
from qmix_lightning.config.run_config import RunConfig, validate
from qmix_lightning.config.tree import key_of
from qmix_lightning.errors import CheckpointError, ConfigurationError, RunError
from qmix_lightning.runtime.regular_files import read_json
from qmix_lightning.runtime.signals import end_with_parent
from qmix_lightning.runtime.trial import TRIAL
from qmix_lightning.study.code_version import code_version
from qmix_lightning.study.index import Study, identity, write_lines
from qmix_lightning.study.launchers import share_of_cores
from qmix_lightning.study.rows import commit
from qmix_lightning.study.runner import THERE, Job, Outcome, Processes, failed_by, read_summary, run_all, state_of

__all__ = ["Sweep"]

_TRAIN = "qmix_lightning.commands.train"
_PATIENCE_S = 60.0  # from the command's start: the runs of a sweep that was killed are still saving
_UNSAFE = re.compile(r"[^\w.,=+-]+")
_LONGEST_NAME = 120
_INVALID = "invalid-"


@dataclass(frozen=True)
class Sweep:
    """The jobs of one command; launchers send it to other processes, so it holds plain values only.

    Attributes:
        folder: of the study, absolute.
        id: of the command: its outcomes are told by it.
        process: number of the command's.
        begun: when the command was started, in seconds since 1970: its jobs may run on other machines.
        flags: of Hydra, which a job's own command repeats: ``--config-dir`` and the like.
        fixed: keys that all jobs share; what else they were given names the runs.
    """

    folder: Path
    id: str
    process: int
    begun: float
    flags: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()

    @staticmethod
    def begin(folder: Path, flags: Sequence[str], fixed: Sequence[str]) -> Sweep:
        """Return the sweep of a command that is about to start.

        Raises:
            ConfigurationError: the folder holds the index of no study.
        """
        Study(folder).runs()
        for noisy in ("hydra._internal.core_plugins", "hydra_plugins"):
            logging.getLogger(noisy).setLevel(logging.WARNING)  # the whole command again for every job
        if os.environ.get(TRIAL):
            raise ConfigurationError(f"a sweep cannot begin inside a trial: {TRIAL} is set")
        return Sweep(
            folder.resolve(),
            f"{time.time_ns():x}-{os.getpid()}",
            os.getpid(),
            time.time(),
            tuple(flags),
            frozenset(map(key_of, fixed)),
        )

    def job(self, compose: Composed) -> float | dict[str, Any] | None:
        """Make the run of one Hydra job, and keep how it ended.

        Never raises an :class:`Exception`: the other jobs go on. Ctrl-C and SIGTERM pass, after the run was saved.

        Returns:
            The number that ``objective`` names, ``None`` without one; inside an optimising sweep, a trial's outcome.
        """
        from hydra.core.hydra_config import HydraConfig

        if os.getppid() == self.process:  # a launcher's worker, which would go on when the command was killed
            end_with_parent()
        hydra = HydraConfig.get()
        overrides = [o for o in hydra.overrides.task if not o.startswith("run_dir=")]
        last = {key_of(o): o for o in overrides}  # what Hydra obeys where a key was typed twice
        swept = [o for key, o in last.items() if key not in self.fixed]
        key = f"{_INVALID}{hashlib.sha256(repr(sorted(overrides)).encode()).hexdigest()[:16]}"
        name, summary, objective = ",".join(swept) or f"job {hydra.job.num}", {}, None
        try:
            config = validate(compose()[0])
            check_early(config)
            key = identity(config.to_dict())
            begun_with = {"overrides": overrides, "code": code_version(config.to_dict()), "commit": commit()}
            name = Study(self.folder).place(key, run_name(config, swept), begun_with)["folder"]
            outcome = self._make(key, name, overrides, hydra.launcher)
            if outcome.status in THERE:
                summary = read_summary(self.folder / name)
                objective = _objective(summary, config)
        except Exception as error:
            outcome = failed_by(error)
        record = {"sweep": self.id, "number": hydra.job.num, "name": name, **vars(outcome)}
        write_lines(record, self.folder / "outcomes" / f"{key}.json")
        print(f"{name}: {described(outcome)}", flush=True)
        if TRIAL in os.environ:
            pruned = summary.get("status") == "pruned"
            return {"status": outcome.status, "objective": objective, "pruned": pruned}
        return objective

    def _make(self, key: str, name: str, overrides: list[str], launcher: Any) -> Outcome:
        study, processes = Study(self.folder), Processes()
        folder = study.folder / name
        cores = share_of_cores(launcher)

        def train(resume: bool, lock: int) -> None:
            print(f"{name}: {'goes on' if resume else 'begins'}", flush=True)
            typed = [*self.flags, *overrides, path_override("run_dir", folder), *(["ckpt_path=last"] if resume else [])]
            log = study.folder / "logs" / f"{name}.log"
            processes.call(_TRAIN, typed, log, lock, threads=cores, show=_is_basic(launcher))

        patience_s = min(_PATIENCE_S, max(0.0, self.begun + _PATIENCE_S - time.time()))

        def say_so() -> None:
            print(f"{name}: another process is making it; waits {patience_s:.0f} s for its end", flush=True)

        job = Job(name, folder, study.lock_of(key), lambda: state_of(folder) == "finished", train, on_wait=say_so)
        return run_all([job], 1, processes, lambda *_: None, patience_s=patience_s)[0]

    def end(self) -> None:
        """Print the table over the jobs of this command.

        Raises:
            RunError: some of the runs are not there.
            ConfigurationError: none is, since their configuration does not fit.
        """
        from qmix_lightning.study.sweep_table import job_table

        records = self.records()
        self._forget_invalid()
        if not records:
            return
        print(f"\n{job_table(self.folder, records)}\n", flush=True)
        failed = [record for record in records if record["status"] not in THERE]
        if failed and all(record["invalid"] for record in records):
            raise ConfigurationError(f"{failed[0]['name']}: {failed[0]['message']}")
        if failed:
            first = f"{failed[0]['name']}: {described(Outcome(failed[0]['status'], failed[0]['message']))}"
            raise RunError(f"{len(failed)} of {len(records)} runs are not there ({first}); the same command goes on")

    def _forget_invalid(self) -> None:
        """Remove the outcomes of configurations that were no run: nothing is left of a mistake."""
        outcomes = self.folder / "outcomes"
        for path in outcomes.glob(f"{_INVALID}*.json"):
            path.unlink()
        with contextlib.suppress(OSError):
            outcomes.rmdir()

    def records(self) -> list[dict[str, Any]]:
        """Return how the jobs of this command ended, in their order, as far as they have."""
        found = []
        for path in (self.folder / "outcomes").glob("*.json"):
            with contextlib.suppress(CheckpointError):  # of another command, and damaged
                record = read_json(path)
                if isinstance(record, dict) and record.get("sweep") == self.id:
                    found.append(record)
        return sorted(found, key=lambda record: record["number"])


def _objective(summary: Mapping[str, Any], config: RunConfig) -> float | None:
    """Return what ``objective`` names of a run's last evaluation; a run that was done before may have had no objective.

    Raises:
        RunError: its evaluations have no such metric.
    """
    if config.objective is None:
        return None
    found = (summary.get("eval") or {}).get(config.objective)
    if found is None:
        raise RunError(f"its evaluations have no '{config.objective}'")
    return found


def described(outcome: Outcome) -> str:
    """Return how a run ended, in a few words."""
    if outcome.status == "made":
        return f"finished ({outcome.seconds:,.0f} s)"
    words = {"done": "done before", "failed": "failed: ", "locked": "left: ", "stopped": "stopped: "}
    return words[outcome.status] + outcome.message


def run_name(config: RunConfig, swept: Sequence[str]) -> str:
    """Return what a run's folder is called: task, algorithm, what else is swept, seed."""
    others = [o.lstrip("+~") for o in swept if key_of(o) not in ("env", "algorithm", "seed")]
    middle = _UNSAFE.sub("-", "_".join([env_label(config.env), config.algorithm["name"], *others]))
    middle = re.sub(r"\.{2,}", ".", middle)
    if len(middle) > _LONGEST_NAME:
        middle = f"{middle[:_LONGEST_NAME]}-{hashlib.sha256(middle.encode()).hexdigest()[:6]}"
    return f"{middle}_seed{config.seed}"


def _is_basic(launcher: Mapping[str, Any]) -> bool:
    return str(launcher["_target_"]).endswith("BasicLauncher")
