"""Run a suite of tasks, algorithms and seeds, and sum it up: the command ``qmix-bench``.

Imports torch only to write the row of a run that it made.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qmix_lightning.cli.hydra_app import run_without_hydra
from qmix_lightning.cli.key_values import parse_key_values
from qmix_lightning.config.schema import from_mapping
from qmix_lightning.config.tree import key_of
from qmix_lightning.errors import ConfigurationError, RunError, RunInterrupted
from qmix_lightning.runtime.resources import available_cores
from qmix_lightning.runtime.text import did_you_mean, shown_path

if TYPE_CHECKING:
    from qmix_lightning.study.plan import Plan

__all__ = ["main"]

_MANY = 8
"""Pairs of task and algorithm whose settings take seconds to compose, a third of one each: then something is said."""

_HELP = """\
qmix-bench: run a suite of tasks, algorithms and seeds, and sum it up.

  qmix-bench suite=games seeds=3                    what is missing is run, the table is printed
  qmix-bench suite=games tasks=[two_step,climbing] algorithms=vdn,qmix seeds=[1,2]
  qmix-bench suite=my_suite.yaml jobs=4             a suite of your own, four runs side by side
  qmix-bench suite=lbf also=[optimizer.lr=5e-4] seeds=2
  qmix-bench suite=games run=false report=docs/results.md

The same command again goes on: finished runs are skipped, interrupted ones resumed, failed ones tried again.

  suite        {suites}
  tasks        labels of the suite (all)
  algorithms   labels of the suite (all)
  seeds        a number of them, from 1, or a list (the suite's)
  jobs         runs side by side, one thread each (the cores of this machine)
  folder       of the runs (outputs/bench/<suite>)
  results      folder of the rows, one small JSON a run (in a checkout of the project benchmarks/results/<suite>,
               elsewhere <folder>/results)
  report       a Markdown file in which this suite's section is written anew; results.md, results.json and curves.svg
               are always written to the folder
  also         overrides of qmix-train for every run, after the suite's own
  rerun        stale: run again what was made by other code than today's (none)
  run          false: only sum up (true)

Status: 0 every run is there, 1 some are not, 2 something asked for does not exist or fit, 130 stopped by Ctrl-C.
"""


@dataclass(frozen=True)
class Options:
    """What ``qmix-bench`` is told."""

    suite: str
    tasks: list[Any] | str | None = None
    algorithms: list[Any] | str | None = None
    seeds: int | list[Any] | str | None = None
    jobs: int | None = None
    folder: str | None = None
    results: str | None = None
    report: str | None = None
    also: list[Any] | str = field(default_factory=list[Any])
    rerun: Literal["none", "stale"] = "none"
    run: bool = True


def main() -> None:
    """Run the command; the console entry point."""
    run_without_hydra(_bench)


def _bench(arguments: list[str]) -> None:
    from qmix_lightning.study.plan import Plan
    from qmix_lightning.study.suite import load_suite, suite_names

    if not arguments or {"-h", "--help", "help"} & set(arguments):
        suites = f"one of: {', '.join(suite_names())}; or the path of a YAML file"
        print(_HELP.format(suites=textwrap.fill(suites, 105, subsequent_indent=" " * 15)), end="")
        return
    options = _parse(arguments)
    suite = load_suite(options.suite)
    tasks = _chosen(options.tasks, suite.tasks, "task")
    algorithms = _chosen(options.algorithms, suite.algorithms, "algorithm")
    seeds = _seeds(options.seeds, suite.seeds)
    if options.jobs is not None and options.jobs < 1:
        raise ConfigurationError(f"jobs must be at least 1, not {options.jobs}")
    also = _checked_also(options.also)
    mark = f"-{hashlib.sha256(repr(also).encode()).hexdigest()[:6]}" if also else ""
    folder = Path(options.folder or f"outputs/bench/{suite.name}{mark}")
    results = Path(options.results) if options.results else _results(suite.name, folder, bool(also))
    if sys.stderr.isatty() and len(tasks) * len(algorithms) > _MANY:
        print(f"{suite.name}: composing the settings of {len(tasks)} x {len(algorithms)} runs ...", file=sys.stderr)
    plan = Plan(suite, tasks, algorithms, seeds, also, folder, results)
    failed = _run_missing(plan, options) if options.run else 0
    command = ["qmix-bench", *(a for a in arguments if not a.startswith(("run=", "report=")))]
    _report(plan, shlex.join(command), Path(options.report) if options.report else None)
    if failed:
        raise RunError(f"{failed} of {len(plan.cells)} runs are not there; the same command tries them again")


def _parse(arguments: list[str]) -> Options:
    from qmix_lightning.study.suite import suite_names

    for argument in arguments:
        if argument in suite_names() or ("=" not in argument and argument.endswith((".yaml", ".yml"))):
            raise ConfigurationError(
                f"cannot read '{argument}', which should be key=value. Did you mean 'suite={argument}'?"
            )
    given = parse_key_values(arguments, Options.__dataclass_fields__)
    if "suite" not in given and set(given) <= set(Options.__dataclass_fields__):
        raise ConfigurationError("suite needs a value: suite=games; --help lists them")
    return from_mapping(Options, given, "")


def _chosen(wanted: list[Any] | str | None, known: Sequence[str] | dict[str, Any], kind: str) -> list[str]:
    """Return labels in the suite's order.

    Raises:
        ConfigurationError: one is unknown.
    """
    if wanted is None:
        return list(known)
    labels = wanted.split(",") if isinstance(wanted, str) else [str(label) for label in wanted]
    for label in labels:
        if label not in known:
            raise ConfigurationError(f"unknown {kind} '{label}'{did_you_mean(label, known)}")
    if not labels:
        raise ConfigurationError(f"{kind}s must name at least one")
    return [label for label in known if label in labels]


def _seeds(wanted: int | list[Any] | str | None, default: list[Any]) -> list[int]:
    if wanted is None:
        return list(default)
    if isinstance(wanted, int):
        if wanted < 1:
            raise ConfigurationError(f"seeds must be at least 1, not {wanted}")
        return list(range(1, wanted + 1))
    found = wanted.split(",") if isinstance(wanted, str) else wanted
    if not found or not all(str(seed).strip().isdecimal() for seed in found):
        raise ConfigurationError("seeds must be a number of them, seeds=3, or a list of integers, seeds=[1,2]")
    return list(dict.fromkeys(int(seed) for seed in found))


def _checked_also(also: list[Any] | str) -> list[Any]:
    """Return the overrides for every run.

    Raises:
        ConfigurationError: they are no overrides, or set what is another one for each run.
    """
    if isinstance(also, str):
        raise ConfigurationError(f"also must be a list of overrides: also=[{also}]")
    for override in also:
        if not isinstance(override, str) or "=" not in override:
            raise ConfigurationError(f"also must be a list of overrides, also=[optimizer.lr=1e-3], not {override!r}")
        if key_of(override) in ("seed", "run_dir", "ckpt_path", "num_threads"):
            raise ConfigurationError(f"{key_of(override)} is set by qmix-bench for each run")
    return also


def _results(suite: str, folder: Path, changed: bool) -> Path:
    """Return where rows are kept: in a checkout of the project, for everybody, if they are of the suite as it is."""
    for above in (Path.cwd(), *Path.cwd().parents):
        if not changed and (above / "benchmarks" / "results").is_dir() and (above / "conf" / "suite").is_dir():
            return above / "benchmarks" / "results" / suite
    return folder / "results"


def _run_missing(plan: Plan, options: Options) -> int:
    """Make the rows that are missing; return how many still are."""
    from qmix_lightning.study.runner import THERE, Job, Outcome, Processes, run_all

    again = options.rerun == "stale"
    for line in plan.problems:
        print(line, file=sys.stderr)
    wanted = [cell for cell in plan.cells if not plan.is_done(cell, again=again)]
    side_by_side = min(options.jobs or available_cores(), max(1, len(wanted)))
    done = len(plan.cells) - len(wanted)
    print(f"{plan.suite.name}: {done} of {len(plan.cells)} runs are done", flush=True)
    if not wanted:
        return 0
    at_once = f"{side_by_side} side by side" if side_by_side > 1 else "one after the other"
    print(f"{len(wanted)} to run, {at_once}, in {shown_path(plan.study.folder)}", flush=True)
    processes = Processes()
    jobs = [plan.job(cell, processes, side_by_side, again=again) for cell in wanted]

    def tell(number: int, job: Job, outcome: Outcome) -> None:
        nonlocal done
        if outcome.status == "stopped":
            return
        done += outcome.status in THERE
        text = outcome.message
        if (row := plan.row(wanted[number])) is not None and outcome.status in THERE:
            text = f"{row.final[plan.suite.tasks[wanted[number].task].metric]:.4g}"
        spent = f" ({outcome.seconds:,.0f} s)" if outcome.status == "made" else ""
        word = {"failed": "failed: ", "locked": "left: "}.get(outcome.status, "")
        print(f"[{done}/{len(plan.cells)}] {job.name}: {word}{text}{spent}", flush=True)

    try:
        outcomes = run_all(jobs, side_by_side, processes, tell)
    except (KeyboardInterrupt, SystemExit) as stop:
        raise RunInterrupted(processes.stopping, "; what was begun is saved: the same command goes on") from stop
    return sum(outcome.status not in THERE for outcome in outcomes)


def _report(plan: Plan, command: str, page: Path | None) -> None:
    from qmix_lightning.study.report import markdown, write_report
    from qmix_lightning.study.summary import sum_up

    summary = sum_up(plan)
    if not summary.rows:
        print("no run has finished yet")
        return
    print(f"\n{markdown(plan, summary)}\n")
    for path in write_report(plan, summary, command, page):
        print(f"  written to {shown_path(path)}")


if __name__ == "__main__":
    main()
