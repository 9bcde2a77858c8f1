"""Train a team, resume a run, or sweep over many: the command ``qmix-train``."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from qmix_lightning.cli.hydra_app import RANK_CONFIG, SweepJobs, run_command
from qmix_lightning.config.early_checks import check_early
from qmix_lightning.config.resume import refuse_untyped_interpreter
from qmix_lightning.config.run_config import RunConfig, validate
from qmix_lightning.config.tree import flatten, key_of, literal
from qmix_lightning.config.without_effect import remarks_on_typed
from qmix_lightning.errors import (
    CheckpointError,
    ConfigurationError,
    FailedTogether,
    RunDiverged,
    RunError,
    RunInterrupted,
)
from qmix_lightning.runtime.kill_points import reached
from qmix_lightning.runtime.launch import (
    Ranks,
    is_first_on_machine,
    is_first_rank,
    is_requeued,
    launched_by,
    lost_peer,
)
from qmix_lightning.runtime.regular_files import read_json, read_yaml
from qmix_lightning.runtime.resources import available_cores, choose_threads
from qmix_lightning.runtime.run_lock import LOCK_FILE, RunLock
from qmix_lightning.runtime.text import error_line, printable, shortened, shown_path

if TYPE_CHECKING:
    from qmix_lightning.checkpoint.resume import Resumed
    from qmix_lightning.training.run import Run

__all__ = ["main", "train"]


def main() -> None:
    """Run the command; the console entry point."""
    run_command("train", train, begin_sweep)


def begin_sweep(folder: Path, flags: Sequence[str], fixed: Sequence[str]) -> SweepJobs:
    """Return what makes the runs of ``qmix-train -m`` in the folder of a study."""
    if launcher := launched_by():
        raise ConfigurationError(
            f"a sweep is begun by one process, and {launcher} has started several: run it without {launcher}, with "
            "trainer.devices=N if each of its runs is to have N processes"
        )
    from qmix_lightning.study.common_mistake import refuse_common_mistake
    from qmix_lightning.study.launchers import prepare_plugins
    from qmix_lightning.study.sweep import Sweep

    prepare_plugins(sys.argv[1:])
    if not flags:  # they may say where other configuration files are
        refuse_common_mistake([a for a in sys.argv[1:] if not a.startswith("-")])
    return Sweep.begin(folder, flags, fixed)


def train(tree: dict[str, Any], run_dir: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Train from a composed configuration.

    Args:
        tree: plain containers, as Hydra composed them.
        run_dir: where the run writes.
        overrides: what the user typed: when resuming, the rest comes from the checkpoint. ``None``: take ``tree`` as
            it is.

    Returns:
        The content of ``summary.json``.

    Raises:
        ConfigurationError: the configuration or the checkpoint does not fit; nothing was written.
        RunInterrupted: a signal ended the run after it was saved.
    """
    with Ranks() as ranks:
        return _train(tree, run_dir, overrides, ranks)


def _train(tree: dict[str, Any], run_dir: Path, overrides: list[str] | None, ranks: Ranks) -> dict[str, Any]:
    config = validate(tree)
    ranks.check_trainer(config.trainer)
    check_early(config)
    refuse_untyped_interpreter(config, overrides)
    preset = tree.get("preset")
    if isinstance(preset, dict) and preset.get("note") and config.ckpt_path is None and is_first_rank():
        print(preset["note"], flush=True)
    if overrides is not None and config.ckpt_path is None and is_first_rank():
        for line in remarks_on_typed(config, set(map(key_of, overrides))):
            print(line, file=sys.stderr, flush=True)
    opened = None
    if config.ckpt_path is not None:
        from qmix_lightning.checkpoint.resume import folder_to_resume

        run_dir, opened = folder_to_resume(config, run_dir, overrides)
    run_dir = run_dir.absolute()  # an environment may change the working folder
    existed, begun = run_dir.exists(), (run_dir / LOCK_FILE).exists()
    try:
        with RunLock(run_dir) if is_first_rank() else contextlib.nullcontext():
            if overrides is not None and is_first_rank() and _holds_files(run_dir):
                _adopt_requeued(run_dir)
            # From here until all have read it, nothing in the folder changes. Each torchrun counts its own restarts.
            requeued = any(ranks.exchange(is_requeued()))
            return _train_locked(config, tree, run_dir, overrides, begun, opened, ranks, requeued)
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                run_dir.rmdir()


def _train_locked(
    config: RunConfig,
    tree: dict[str, Any],
    run_dir: Path,
    overrides: list[str] | None,
    begun: bool,
    opened: dict[str, Any] | None,
    ranks: Ranks,
    requeued: bool,
) -> dict[str, Any]:
    """Begin a run or go on with one in a folder that no other process uses.

    ``begun``: one was killed there; ``opened``: the contents of the checkpoint to resume, if they have been read;
    ``requeued``: SLURM or torchrun started the command again.
    """
    if config.ckpt_path is None and (overrides is None or not _holds_files(run_dir)):
        return _run(config, run_dir, None, ranks, fit_replay=_has_no_capacity(overrides))

    from qmix_lightning.checkpoint.resume import holds_resumable, load_resumed, refuse_links_out

    refuse_links_out(run_dir)
    resumable, best = holds_resumable(run_dir), (run_dir / "checkpoints" / "best.ckpt").exists()
    status = _status(run_dir)
    # One that was interrupted has saved, unless the signal came before the training began.
    ended = status not in ("running", "failed", "diverged") and (best or status != "interrupted")
    if config.ckpt_path is None:
        if not (requeued and resumable):  # such a job repeats its command
            if resumable or (ended and best):
                raise ConfigurationError(
                    f"{shown_path(run_dir)} holds a run already: add ckpt_path=last to go on with it, or choose "
                    "another run_dir"
                )
            return _run(config, run_dir, None, ranks, fit_replay=_has_no_capacity(overrides))
        tree = {**tree, "ckpt_path": "last"}
        config = validate(tree)
    if config.ckpt_path == "last" and not resumable and not ended and overrides is not None:
        return _run(_begin_anew(tree, run_dir, overrides), run_dir, None, ranks)
    if config.ckpt_path == "last" and not resumable and begun and not _holds_files(run_dir):
        raise ConfigurationError(
            f"the run in {shown_path(run_dir)} was killed before it had written anything: repeat its command without "
            "ckpt_path=last"
        )
    resumed = load_resumed(config, tree, run_dir, overrides, opened)
    return _run(resumed.config, run_dir, resumed, ranks)


def _adopt_requeued(run_dir: Path) -> None:
    """Rename what a requeue saved last to ``last.ckpt`` if a kill came before that; Lightning would prefer it."""
    for path in sorted(run_dir.glob("hpc_ckpt_*.ckpt"), key=lambda p: p.stat().st_mtime):
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        os.replace(path, run_dir / "checkpoints" / "last.ckpt")


def _holds_files(run_dir: Path) -> bool:
    return run_dir.is_dir() and any(path.name != LOCK_FILE for path in run_dir.iterdir())


def _status(run_dir: Path) -> str | None:
    """Return how ``summary.json`` says the run in a folder ended; ``running`` if it was killed."""
    try:
        summary = read_json(run_dir / "summary.json")
    except CheckpointError:
        return "running" if (run_dir / "config.yaml").exists() else None
    return summary.get("status") if isinstance(summary, dict) else None


def _begin_anew(tree: dict[str, Any], run_dir: Path, overrides: list[str]) -> RunConfig:
    """Return the configuration of a run that was ended before its first ``last.ckpt``, with what was typed on top."""
    from qmix_lightning.checkpoint.resume import merge_saved
    from qmix_lightning.config.resume import fill_missing_defaults
    from qmix_lightning.config.trust import trusted_config

    path = run_dir / "config.yaml"
    try:
        saved = read_yaml(path)
    except CheckpointError as error:
        raise ConfigurationError(f"{error}; repeat the command without ckpt_path=last") from error
    began_from = saved.get("init_from") if isinstance(saved, dict) else None
    saved = fill_missing_defaults(trusted_config(saved, path), path)
    if began_from is not None and "init_from" not in map(key_of, overrides):
        raise ConfigurationError(
            f"the run in {shown_path(run_dir)} was killed before its first checkpoint and had begun from networks, "
            f"which a file does not decide: type init_from={printable(began_from, 300)} too"
        )
    config = merge_saved(tree, saved, overrides, run_dir, path)
    print(
        f"{shown_path(run_dir)} holds no last.ckpt: the run ended before its first, and begins anew",
        file=sys.stderr,
    )
    return replace(config, ckpt_path=None)


def _has_no_capacity(overrides: list[str] | None) -> bool:
    """Return whether it is known that nobody typed the replay's capacity."""
    return overrides is not None and "replay.capacity" not in map(key_of, overrides)


def _run(
    config: RunConfig, run_dir: Path, resumed: Resumed | None, ranks: Ranks, *, fit_replay: bool = False
) -> dict[str, Any]:
    import torch

    from qmix_lightning.build import build_run
    from qmix_lightning.checkpoint.files import remove_leftovers
    from qmix_lightning.runtime.resources import keep_freed_memory, set_matmul_precision

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
        fresh = not _holds_files(run_dir)
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
    from qmix_lightning.checkpoint.files import set_aside
    from qmix_lightning.checkpoint.resume import version_changes

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
    from omegaconf import OmegaConf

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
    from qmix_lightning.training.end_table import print_end, print_start, resume_command
    from qmix_lightning.training.ending import RUNNING, Ending, ending_of
    from qmix_lightning.training.summary import write_summary
    from qmix_lightning.training.trackers.base import finish_trackers, open_trackers

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


def quieten_lightning() -> None:
    """Silence advice of Lightning that does not apply: the loaders are this package's own; srun may be there unused."""
    for noisy in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # what trainer.profiler was asked for
    warnings.filterwarnings("ignore", "The `srun` command is available.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
    warnings.filterwarnings("ignore", ".*`IterableDataset` has `__len__` defined.*")


def _leave_process_group() -> None:
    """Let a second job of a sweep start its own ranks."""
    import torch.distributed as dist

    launched = os.environ.pop(RANK_CONFIG, None)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    if launched:
        for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)


if __name__ == "__main__":
    main()
