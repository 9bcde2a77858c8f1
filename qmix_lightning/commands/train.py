"""Train a team, resume a run, or sweep over many: the command ``qmix-train``."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmix_lightning.cli.hydra_app import RANK_CONFIG, run_command
from qmix_lightning.config.resume import imported
from qmix_lightning.config.run_config import RunConfig, validate
from qmix_lightning.errors import ConfigurationError, RunInterrupted
from qmix_lightning.runtime.resources import available_cores, choose_asynchronous, choose_threads
from qmix_lightning.runtime.text import shown_path

if TYPE_CHECKING:
    from qmix_lightning.checkpoint.resume import Resumed
    from qmix_lightning.training.run import Run

__all__ = ["main", "train"]


def main() -> None:
    """Run the command; the console entry point."""
    run_command("train", _task)


def _task(tree: dict[str, Any], folder: Path, overrides: list[str] | None) -> None:
    train(tree, folder, overrides)


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
    if overrides is not None:
        _adopt_requeued(run_dir)
    if tree.get("ckpt_path") is None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and _holds_run(run_dir):
        tree = {**tree, "ckpt_path": "last"}  # a requeued job repeats its command
    config = validate(tree)
    resumed: Resumed | None = None
    if config.ckpt_path is not None:
        from qmix_lightning.checkpoint.resume import load_resumed

        resumed = load_resumed(config, tree, run_dir, overrides)
        config, run_dir = resumed.config, resumed.run_dir
    elif overrides is not None and _holds_run(run_dir):
        raise ConfigurationError(
            f"{shown_path(run_dir)} holds a run already: add ckpt_path=last to go on with it, or choose another run_dir"
        )
    return _run(config, run_dir, resumed)


def _adopt_requeued(run_dir: Path) -> None:
    """Rename what a requeue saved last to ``last.ckpt`` if a kill came before that; Lightning would prefer it."""
    for path in sorted(run_dir.glob("hpc_ckpt_*.ckpt"), key=lambda p: p.stat().st_mtime):
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        os.replace(path, run_dir / "checkpoints" / "last.ckpt")


def _holds_run(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("*.ckpt"))


def _run(config: RunConfig, run_dir: Path, resumed: Resumed | None) -> dict[str, Any]:
    import torch
    from omegaconf import OmegaConf

    from qmix_lightning.build import build_run
    from qmix_lightning.checkpoint.files import remove_leftovers
    from qmix_lightning.checkpoint.resume import check_same_shape
    from qmix_lightning.runtime.resources import keep_freed_memory, set_matmul_precision

    quieten_lightning()
    keep_freed_memory()
    saved = resumed.checkpoint if resumed else None
    run = build_run(config, run_dir, resumed.source if resumed else None, saved["env_steps"] if saved else 0)
    try:
        if resumed is not None:
            check_same_shape(run.module.extra_checkpoint, resumed.checkpoint, resumed.path)
        run.data.asynchronous = _asynchronous(run, config, saved)
        torch.set_num_threads(_threads(run, config, saved))
        set_matmul_precision(config.matmul_precision)
        first = run.trainer.global_rank == 0
        if first:
            print(*filter(None, [run.replay_size, run.replay_device.line]), sep="\n", flush=True)
        fresh = not run_dir.exists() or not any(run_dir.iterdir())
        if first:
            run_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(run_dir)
            OmegaConf.save(OmegaConf.create(config.to_dict()), run_dir / "config.yaml")
            os.environ[RANK_CONFIG] = str((run_dir / "config.yaml").resolve())
        return _fit(run, config, run_dir, resumed.path if resumed else None, first and fresh)
    finally:
        run.data.teardown("fit")
        _leave_process_group()


def _asynchronous(run: Run, config: RunConfig, saved: dict[str, Any] | None) -> bool:
    """Return whether rollouts are asynchronous; a resumed run continues as it began, since its data depend on it."""
    rollout = config.rollout
    if rollout.asynchronous != "auto":
        asynchronous, reason = rollout.asynchronous, "rollout.asynchronous"
    elif saved is not None:
        asynchronous, reason = saved["ReplayDataModule"].get("asynchronous", False), "as the run began"
    else:
        asynchronous, reason = choose_asynchronous(
            available_cores(),
            ranks=run.trainer.num_devices,
            on_policy=config.replay.kind == "on_policy",
            own_process=rollout.collector == "process",
            num_envs=rollout.num_envs,
            workers=_workers(config),
        )
    if run.trainer.global_rank == 0:
        what = "while an update runs, by the policy from before it" if asynchronous else "between updates"
        print(f"collecting: {what} ({reason})", flush=True)
    return asynchronous


def _workers(config: RunConfig) -> int:
    """Return the number of processes that step environments; there are no more of them than environments."""
    return min(config.rollout.num_workers, config.rollout.num_envs) if config.rollout.backend == "process" else 0


def _threads(run: Run, config: RunConfig, saved: dict[str, Any] | None) -> int:
    """Choose the intra-op threads; those that a run was begun with stay, since sums depend on them."""
    cores = available_cores()
    workers = _workers(config)
    asynchronous = run.data.asynchronous
    if config.num_threads is not None:
        threads, reason = config.num_threads, "num_threads"
    elif saved is not None and "num_threads" in saved:
        threads, reason = saved["num_threads"], "as the run began"
    else:
        threads = choose_threads(cores, ranks=run.trainer.num_devices, workers=workers, asynchronous=asynchronous)
        busy = [f"{workers} worker processes"] * bool(workers) + ["collecting meanwhile"] * asynchronous
        reason = ", ".join([f"{cores} cores", *busy])
    run.module.extra_checkpoint["num_threads"] = threads
    if run.trainer.global_rank == 0:
        print(f"threads: {threads} ({reason})", flush=True)
    return threads


def _fit(run: Run, config: RunConfig, run_dir: Path, resume_from: Path | None, fresh: bool) -> dict[str, Any]:
    """Train, and write a summary that says how it ended."""
    from qmix_lightning.training.summary import print_end, write_summary

    first = run.trainer.global_rank == 0
    status = "failed"
    try:
        if first:
            write_summary(run, config, run_dir, "running")
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=resume_from, weights_only=True)
        # Lightning's own limits (max_steps, max_time, EarlyStopping) end a run too.
        status = "completed" if run.data.counters.env_steps >= config.total_env_steps else "stopped"
    except RunInterrupted as stop:
        status = "interrupted"
        again = "".join(f" env.{key}={value}" for key, value in imported(config.env).items())
        resume = f"qmix-train run_dir={shown_path(run_dir.resolve())} ckpt_path=last{again}"
        stop.args = (f"{stop} and saved; to go on: {resume}",)
        if first:
            raise
        # A rank that ends with another status is taken for crashed, and all others are killed.
    except ConfigurationError:
        if first and fresh:
            shutil.rmtree(run_dir, ignore_errors=True)
            first = False
        raise
    finally:
        summary = write_summary(run, config, run_dir, status) if first else {}
    if first:
        print_end(summary, run_dir)
    return summary


def quieten_lightning() -> None:
    """Silence advice of Lightning that does not apply: the loaders are this package's own and have no workers."""
    for noisy in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # what trainer.profiler was asked for
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
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
