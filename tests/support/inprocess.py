"""The commands in this process, for checks that need no process of their own: a tenth of a second instead of five."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

from qmix_lightning.cli import hydra_app as cli
from qmix_lightning.commands import evaluate, export, train, watch
from qmix_lightning.config.run_config import RunConfig, validate

TASKS = {
    "train": (train.train, train.begin_sweep),
    "evaluate": (evaluate._task,),
    "export": (export._task,),
    "watch": (watch._task,),
}
TINY = [
    "preset=pymarl",
    "total_env_steps=60",
    "eval_interval=30",
    "eval_episodes=4",
    "checkpoint_interval=30",
    "rollout.num_envs=2",
    "replay.batch_size=4",
    "replay.capacity=64",
    "agent.hidden_dim=8",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "logger=none",
]


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


def check_line(outcome: Outcome) -> None:
    """One short line says at the end what is wrong; lines before it may say what was passed over."""
    lines = outcome.err.splitlines()
    assert "Traceback" not in outcome.err
    assert lines, outcome
    assert lines[-1].startswith("error: "), outcome.err
    assert "HYDRA_FULL_ERROR" not in lines[-1], outcome.err
    assert len(lines) <= 25
    assert len(lines[-1]) < 1500


@contextlib.contextmanager
def own_globals(argv: list[str]) -> Iterator[None]:
    before, environ, on_sigterm = sys.argv, dict(os.environ), signal.getsignal(signal.SIGTERM)
    GlobalHydra.instance().clear()
    sys.argv = argv
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            yield
    finally:
        sys.argv = before
        os.environ.clear()
        os.environ.update(environ)
        signal.signal(signal.SIGTERM, on_sigterm)
        GlobalHydra.instance().clear()


def command(arguments: list[str], name: str = "train") -> Outcome:
    """``qmix-train`` or, with ``name="evaluate"``, ``qmix-eval``."""
    return ended([f"qmix-{name}", *arguments], lambda: cli.run_under_hydra(name, *TASKS[name]), name)


def configured(arguments: list[str]) -> tuple[RunConfig, str]:
    """The configuration of what a command line would train, which it does not, and what is said of it."""
    found: list[RunConfig] = []

    def keep(tree: dict[str, Any], folder: Path, typed: list[str] | None) -> None:
        found.append(validate(tree))

    outcome = ended(["qmix-train", *arguments], lambda: cli.run_under_hydra("train", keep), "train")
    assert outcome.status == 0, outcome
    return found[0], outcome.err


def without_hydra(script: str, run: Callable[[list[str]], None], arguments: list[str]) -> Outcome:
    """A command that Hydra does not compose, such as ``qmix-bench``; ``run`` is what it does with what was typed."""
    return ended([script, *arguments], lambda: run(arguments), "train")


def ended(argv: list[str], run: Callable[[], None], config_name: str) -> Outcome:
    """How a command line ends, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with own_globals(argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.status_of(run, config_name)
    return Outcome(status, out.getvalue(), err.getvalue())


def succeed(arguments: list[str], name: str = "train") -> Outcome:
    """A command that has to end with status 0."""
    outcome = command(arguments, name)
    assert outcome.status == 0, outcome
    return outcome


def refused(arguments: list[str], *texts: str, name: str = "train") -> str:
    """A command that has to end with status 2 and one line, which holds the texts; returns the line."""
    outcome = command(arguments, name)
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1), outcome
    assert outcome.err.startswith("error: "), outcome
    for text in texts:
        assert text in outcome.err, outcome
    return outcome.err.rstrip("\n")


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below ``folder`` with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }
