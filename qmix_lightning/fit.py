"""Fit one run: assemble it, train, and say how it ended."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from signal import Signals
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from qmix_lightning.build import build_run
from qmix_lightning.checkpoint.files import remove_leftovers, set_aside
from qmix_lightning.checkpoint.resume import Resumed, version_changes
from qmix_lightning.cli.hydra_app import RANK_CONFIG
from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.config.tree import flatten, literal
from qmix_lightning.errors import ConfigurationError, FailedTogether, RunDiverged, RunError, RunInterrupted
from qmix_lightning.runtime.kill_points import reached
from qmix_lightning.runtime.launch import Ranks, is_first_on_machine, lost_peer
from qmix_lightning.runtime.resources import (
    available_cores,
    choose_threads,
    keep_freed_memory,
    set_matmul_precision,
)
from qmix_lightning.runtime.run_lock import holds_files
from qmix_lightning.runtime.text import error_line, shortened, shown_path
from qmix_lightning.training.end_table import print_end, print_start, resume_command
from qmix_lightning.training.ending import RUNNING, Ending, ending_of
from qmix_lightning.training.lightning_parts import quieten_lightning
from qmix_lightning.training.run import Run
from qmix_lightning.training.summary import write_summary
from qmix_lightning.training.trackers.base import finish_trackers, open_trackers

__all__ = ["fit_run"]


def fit_run(
    config: RunConfig, run_dir: Path, resumed: Resumed | None, ranks: Ranks, *, fit_replay: bool = False
) -> dict[str, Any]:
    """Assemble a run, fit it, and write a summary that says how it ended.

    Args:
        config: validated; the run's own, where it goes on.
        run_dir: where the run writes; the first rank has locked it.
        resumed: the checkpoint that it goes on from.
        ranks: the processes of this launch, which begin together.
        fit_replay: see :func:`build_run`.

    Returns:
        The content of ``summary.json``; empty on ranks but the first.

    Raises:
        ConfigurationError: the configuration or the checkpoint does not fit; the folder is as it was before.
        RunInterrupted: a signal ended the run after it was saved.
        RunDiverged: a loss or a gradient was not finite.
        RunError: the folder could not be written, or another rank was lost.
    """
    quieten_lightning()
    keep_freed_memory()
    run = build_run(config, run_dir, resumed, fit_replay=fit_replay)
    config = run.config
    try:
        torch.set_num_threads(_threads(run, config, resumed))
        set_matmul_precision(config.matmul_precision)
        first = run.trainer.global_rank == 0
        if first:
            print(*filter(None, [run.replay_size, run.replay_device.line, *_begun(run, resumed)]), sep="\n", flush=True)
        fresh = not holds_files(run_dir)
        ranks.check_alike(_start(config, run_dir, resumed))
        ranks.check_shared(run_dir)
        if first:
            if resumed is not None:
                _prepare_folder(resumed, run.metadata.versions, run_dir)
            run_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(run_dir)
            _write_config(config, run_dir / "config.yaml")
            os.environ[RANK_CONFIG] = str((run_dir / "config.yaml").resolve())
        ranks.begin()
        return _fit(run, config, run_dir, resumed.path if resumed else None, first and fresh)
    finally:
        run.data.teardown("fit")
        _leave_process_group()


def _begun(run: Run, resumed: Resumed | None) -> list[str]:
    """Return what a run says of its ranks, and of where it goes on."""
    lines = [f"ranks: {run.trainer.world_size}"] if run.trainer.world_size > 1 else []
    if resumed is not None:
        manifest = resumed.manifest
        lines.append(f"goes on from environment step {manifest.env_steps:,}, update {manifest.updates:,}")
    return lines


def _start(config: RunConfig, run_dir: Path, resumed: Resumed | None) -> dict[str, Any]:
    """Return what every rank of a run has to begin with."""
    checkpoint = f"update {resumed.manifest.updates} of {resumed.path.name}" if resumed else None
    settings = {key: str(value) for key, value in flatten(config.to_dict()).items()}
    return settings | {"run_dir": str(run_dir.resolve()), "checkpoint": checkpoint}


def _prepare_folder(resumed: Resumed, versions: dict[str, str], run_dir: Path) -> None:
    """Say what has changed since the checkpoint, and keep a damaged one from taking the place of a whole one."""
    if changes := version_changes(resumed.manifest.run.versions, versions):
        print(
            f"changed since the checkpoint, so results may differ in the last bits: {'; '.join(changes)}",
            file=sys.stderr,
        )
    for path in resumed.damaged:
        # The next checkpoint would keep it as previous.ckpt, in place of the one that this run goes on from.
        if path.resolve() == (run_dir / "checkpoints" / "last.ckpt").resolve():
            print(f"{path} is kept as {set_aside(path).name}", file=sys.stderr)


def _write_config(config: RunConfig, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.writing")
    try:
        OmegaConf.save(OmegaConf.create(config.to_dict()), temporary)
        reached("config.rename")
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{shown_path(path)} could not be written: {error.strerror}") from error


def _threads(run: Run, config: RunConfig, resumed: Resumed | None) -> int:
    """Choose the intra-op threads; those that a run was begun with stay, since sums depend on them."""
    cores = available_cores()
    workers = config.rollout.worker_processes
    asynchronous = run.data.asynchronous
    if config.num_threads is not None:
        threads, reason = config.num_threads, "num_threads"
    elif resumed is not None and resumed.manifest.run.num_threads is not None:
        threads, reason = resumed.manifest.run.num_threads, "as the run began"
    else:
        threads = choose_threads(cores, ranks=run.trainer.num_devices, workers=workers, asynchronous=asynchronous)
        parts = [f"{cores} core{'s' * (cores > 1)}"]
        if workers:
            parts.append(f"{workers} worker process{'es' * (workers > 1)}")
        if asynchronous:
            parts.append("collecting meanwhile")
        reason = ", ".join(parts)
    run.metadata.num_threads = threads
    if run.trainer.global_rank == 0:
        print(f"threads: {threads} ({reason})", flush=True)
    return threads


def _fit(run: Run, config: RunConfig, run_dir: Path, resume_from: Path | None, fresh: bool) -> dict[str, Any]:
    """Train, and write a summary that says how it ended."""
    first = run.trainer.global_rank == 0
    ending, before = Ending("failed", "error"), _content(run_dir / "summary.json")
    reached_before: dict[str, Any] = {}
    try:
        if first:
            write_summary(run, config, run_dir, RUNNING)
            print_start(run.trainer, run_dir, open_trackers(run.trainer, config.to_dict()))
        with run.data.restoring(resume_from):
            run.trainer.fit(run.module, datamodule=run.data, ckpt_path=resume_from, weights_only=True)
        ending = ending_of(run.trainer, run.data)
    except RunInterrupted as stop:
        ending = Ending("interrupted", Signals(stop.signal_number).name, str(stop))
        stop.args = (f"{stop} and saved; to go on: {resume_command(config, run_dir)}",)
        if first:
            raise
        # A rank that ends with another status is taken for crashed, and all others are killed.
    except (KeyboardInterrupt, SystemExit) as stop:
        number = _signal_outside_training(stop)
        if number is None or not first:
            raise
        ending = Ending("interrupted", number.name, str(RunInterrupted(number)))
        if resume_from is not None and not run.checkpoint.saved:  # and has perhaps restored nothing
            reached_before = _figures(before)
            raise RunInterrupted(number, " before the run went on: repeat the command") from stop
        more = f" {shlex.quote(f'init_from={literal(config.init_from)}')}" if config.init_from is not None else ""
        again = resume_command(config, run_dir, "" if run.checkpoint.saved else more)
        raise RunInterrupted(number, f"; to go on: {again}") from stop
    except RunDiverged as error:
        ending = Ending("diverged", "divergence", str(error))
        raise
    except ConfigurationError:
        if first:
            if fresh:
                shutil.rmtree(run_dir, ignore_errors=True)
            elif before is not None:
                (run_dir / "summary.json").write_bytes(before)
            first = False
        raise
    except Exception as error:
        lost = lost_peer(error) if run.trainer.world_size > 1 else None
        ending = Ending(
            "failed", "error", f"another rank was lost: {lost}" if lost else shortened(error_line(error), 300)
        )
        if lost is None:
            raise
        if not is_first_on_machine():
            raise FailedTogether(RunError.exit_status) from error
        kept = "ckpt_path=last goes on" if run.checkpoint.saved or resume_from else "nothing was saved before"
        raise RunError(f"{ending.why}; {kept}") from error
    finally:
        summary = write_summary(run, config, run_dir, ending, reached_before) if first else {}
        if first:
            finish_trackers(run.trainer, summary)
    if first:
        print_end(summary, config, run_dir)
    return summary


def _signal_outside_training(stop: KeyboardInterrupt | SystemExit) -> Signals | None:
    """Return the signal that came while the handlers of training were not there; ``None`` if something else ended."""
    if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):  # Lightning exits with 1
        return Signals.SIGINT
    return Signals.SIGTERM if stop.code == 128 + Signals.SIGTERM else None


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _figures(summary: bytes | None) -> dict[str, Any]:
    """Return what a ``summary.json`` says of a run but for how it ended; nothing if it is damaged or not there."""
    try:
        found = json.loads(summary or b"{}")
    except ValueError:
        return {}
    ended = ("status", "ended_by", "why")
    return {name: value for name, value in found.items() if name not in ended} if isinstance(found, dict) else {}


def _leave_process_group() -> None:
    """Let a second job of a sweep start its own ranks."""
    launched = os.environ.pop(RANK_CONFIG, None)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    if launched:
        for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
