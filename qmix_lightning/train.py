"""``qmix-train``: train a team; resume one; sweep over many."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmix_lightning.cli import RANK_CONFIG, _shown, run_command
from qmix_lightning.config import RunConfig, check_resumable, flatten, imported, validate
from qmix_lightning.errors import CheckpointError, ConfigurationError, RunInterrupted
from qmix_lightning.older import complete_config
from qmix_lightning.threads import available_cores, choose_pipelining, choose_threads

if TYPE_CHECKING:
    from qmix_lightning.build import Run

__all__ = ["main", "train"]

_WHOLE = ("algorithm", "experiment")
"""Choices that set keys of other groups too: typed on resume, they bring the whole command."""
_COMPONENTS = ("env", "mixer", "agent", "replay", "rollout", "exploration", "optimizer")
_OUTSIDE = ("logger", "callbacks")


def main() -> None:
    """Console entry point."""
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
    resume_from: Path | None = None
    source: Path | None = None
    saved: dict[str, Any] | None = None
    if config.ckpt_path is not None:
        from qmix_lightning.checkpoint import find_last, folder_of_segments, read_checkpoint, verify_segments

        resume_from = find_last(run_dir) if config.ckpt_path == "last" else Path(config.ckpt_path)
        saved = read_checkpoint(resume_from)
        if "loops" not in saved:
            raise CheckpointError(f"{resume_from} holds networks only, for qmix-eval; resume from a last.ckpt")
        saved["config"] = complete_config(saved["config"], resume_from)
        source = folder_of_segments(saved, resume_from)
        verify_segments(saved, source)
        if overrides is not None:
            if config.ckpt_path != "last" and not any(o.startswith("run_dir=") for o in overrides):
                run_dir = source.resolve().parent  # the run goes on where it was
            config = _with_saved(tree, saved["config"], overrides, run_dir)
        try:
            check_resumable(saved["config"], config.to_dict(), resume_from)
        except ConfigurationError as error:
            whole = [o for o in overrides or () if o.partition("=")[0].lstrip("+~") in _WHOLE]
            if not whole:
                raise
            hint = f"{whole[0]} sets more than its own section: leave it out, or type the whole command"
            raise ConfigurationError(f"{error}; {hint}") from None
    elif overrides is not None and _holds_run(run_dir):
        raise ConfigurationError(
            f"{_shown(run_dir)} holds a run already: add ckpt_path=last to go on with it, or choose another run_dir"
        )
    return _run(config, run_dir, resume_from, source, saved)


def _adopt_requeued(run_dir: Path) -> None:
    """What a requeue saved last, if the job was killed before it became ``last.ckpt``; Lightning would prefer it."""
    for path in sorted(run_dir.glob("hpc_ckpt_*.ckpt"), key=lambda p: p.stat().st_mtime):
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        os.replace(path, run_dir / "checkpoints" / "last.ckpt")


def _holds_run(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("*.ckpt"))


def _with_saved(tree: dict[str, Any], saved: dict[str, Any], typed: list[str], run_dir: Path) -> RunConfig:
    """The checkpoint's configuration with what was typed on top: a choice brings its section, a recipe everything."""
    names = [o.lstrip("+~").partition("=")[0] for o in typed]
    if any(name in _WHOLE for name in names):
        merged = dict(tree)
    else:
        composed = flatten(tree)
        merged = _copy(saved)
        for name in [*names, "ckpt_path"]:
            for key in (k for k in composed if k == name or k.startswith(f"{name}.")):
                _set(merged, key, composed[key])
            if name in (*_COMPONENTS, *_OUTSIDE, "trainer"):
                merged[name] = tree[name]
        if any(name in _COMPONENTS for name in names):  # what runs beside the training is the command's, as ever
            merged |= {name: tree[name] for name in _OUTSIDE}
    for key, value in flatten({group: merged[group] for group in ("logger", "callbacks")}).items():
        if value is not None and value in (saved["run_dir"], tree["run_dir"]):
            merged = _copy(merged)
            _set(merged, key, str(run_dir))  # an interpolation of run_dir when it was composed
    merged["run_dir"] = str(run_dir)
    _refuse_imports(merged, tree)
    return validate(merged)


def _refuse_imports(merged: dict[str, Any], tree: dict[str, Any]) -> None:
    """A checkpoint must not decide what is imported: only what is typed, or shipped with this package.

    Raises:
        ConfigurationError: says what to type to let it be imported.
    """
    from omegaconf import OmegaConf

    for key, value in imported(merged["env"]).items():
        if value != tree["env"].get(key):
            raise ConfigurationError(
                f"the checkpoint names the environment '{value}', which is not in the registry; to let it be imported, "
                f"say env.{key}={value}"
            )
    for group in ("logger", "callbacks"):
        files = resources.files("qmix_lightning.conf").joinpath(group).iterdir()
        shipped = [OmegaConf.to_container(OmegaConf.create(file.read_text())) for file in files]
        known = _targets([shipped, tree[group]])
        for target in _targets(merged[group]):
            if target not in known:
                raise ConfigurationError(
                    f"the checkpoint names '{target}' under {group}, which is not shipped with this package; to let it "
                    f"be imported, repeat the {group} settings of the run on the command line"
                )


def _targets(tree: Any) -> list[str]:
    """Every ``_target_`` of nested containers."""
    if isinstance(tree, dict):
        found = [str(tree["_target_"])] if "_target_" in tree else []
        return found + [target for value in tree.values() for target in _targets(value)]
    return [target for value in tree for target in _targets(value)] if isinstance(tree, list) else []


def _copy(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in tree.items()}


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _run(
    config: RunConfig, run_dir: Path, resume_from: Path | None, source: Path | None, saved: dict[str, Any] | None
) -> dict[str, Any]:
    import torch
    from omegaconf import OmegaConf

    from qmix_lightning.build import build_run
    from qmix_lightning.checkpoint import remove_leftovers
    from qmix_lightning.memory import keep_freed_memory
    from qmix_lightning.precision import set_matmul_precision

    _quieten_lightning()
    keep_freed_memory()
    run = build_run(config, run_dir, source, saved["env_steps"] if saved else 0)
    try:
        if saved is not None and resume_from is not None:
            _check_same_shape(run, saved, resume_from)
        run.data.pipelined = _pipelined(run, config, saved)
        torch.set_num_threads(_threads(run, config, saved))
        set_matmul_precision(config.matmul_precision)
        first = run.trainer.global_rank == 0
        if first:
            print(*filter(None, [run.replay_size, run.replay_place.line]), sep="\n", flush=True)
        fresh = not run_dir.exists() or not any(run_dir.iterdir())
        if first:
            run_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(run_dir)
            OmegaConf.save(OmegaConf.create(config.to_dict()), run_dir / "config.yaml")
            os.environ[RANK_CONFIG] = str((run_dir / "config.yaml").resolve())
        return _fit(run, config, run_dir, resume_from, first and fresh)
    finally:
        run.data.teardown("fit")
        _leave_process_group()


def _pipelined(run: Run, config: RunConfig, saved: dict[str, Any] | None) -> bool:
    """Whether rounds are collected ahead; a run that is resumed goes on as it began, since its data depend on it."""
    rollout = config.rollout
    if rollout.pipelined != "auto":
        pipelined, reason = rollout.pipelined, "rollout.pipelined"
    elif saved is not None:
        pipelined, reason = saved["ReplayDataModule"].get("pipelined", False), "as the run began"
    else:
        pipelined, reason = choose_pipelining(
            available_cores(),
            ranks=run.trainer.num_devices,
            on_policy=config.replay.kind == "on_policy",
            own_process=rollout.collector == "process",
            num_envs=rollout.num_envs,
            workers=_workers(config),
        )
    if run.trainer.global_rank == 0:
        what = "while an update runs, by the policy from before it" if pipelined else "between updates"
        print(f"collecting: {what} ({reason})", flush=True)
    return pipelined


def _workers(config: RunConfig) -> int:
    """Processes that step environments; there are no more of them than environments."""
    return min(config.rollout.num_workers, config.rollout.num_envs) if config.rollout.backend == "process" else 0


def _threads(run: Run, config: RunConfig, saved: dict[str, Any] | None) -> int:
    """Intra-op threads; those that a run was begun with stay, since sums depend on them."""
    cores = available_cores()
    workers = _workers(config)
    pipelined = run.data.pipelined
    if config.num_threads is not None:
        threads, reason = config.num_threads, "num_threads"
    elif saved is not None and "num_threads" in saved:
        threads, reason = saved["num_threads"], "as the run began"
    else:
        threads = choose_threads(cores, ranks=run.trainer.num_devices, workers=workers, pipelined=pipelined)
        busy = [f"{workers} worker processes"] * bool(workers) + ["collecting meanwhile"] * pipelined
        reason = ", ".join([f"{cores} cores", *busy])
    run.module.extra_checkpoint["num_threads"] = threads
    if run.trainer.global_rank == 0:
        print(f"threads: {threads} ({reason})", flush=True)
    return threads


def _fit(run: Run, config: RunConfig, run_dir: Path, resume_from: Path | None, fresh: bool) -> dict[str, Any]:
    """Train, and leave a summary that says how it ended."""
    first = run.trainer.global_rank == 0
    status = "failed"
    try:
        if first:
            _write_summary(run, config, run_dir, "running")
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=resume_from, weights_only=True)
        # Lightning's own limits (max_steps, max_time, EarlyStopping) end a run too.
        status = "completed" if run.data.counters.env_steps >= config.total_env_steps else "stopped"
    except RunInterrupted as stop:
        status = "interrupted"
        again = "".join(f" env.{key}={value}" for key, value in imported(config.env).items())
        resume = f"qmix-train run_dir={_shown(run_dir.resolve())} ckpt_path=last{again}"
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
        summary = _write_summary(run, config, run_dir, status) if first else {}
    if first:
        _print_end(summary, run_dir)
    return summary


def _check_same_shape(run: Run, saved: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint whose ranks, kind of device or environment are not those of this run."""
    now = run.module.extra_checkpoint
    if saved["world_size"] != now["world_size"]:
        raise ConfigurationError(
            f"{path} was written by {saved['world_size']} rank(s), this run has {now['world_size']}: each rank has its "
            f"own replay and episodes, so resume with trainer.devices={saved['world_size']}"
        )
    if saved["device"] != now["device"]:
        raise ConfigurationError(
            f"{path} was trained on {saved['device']}, this run is on {now['device']}: set trainer.accelerator alike"
        )
    if saved["spec"] != now["spec"]:
        different = [key for key in now["spec"] if saved["spec"].get(key) != now["spec"][key]]
        raise ConfigurationError(f"{path} was trained on another environment: it differs in {', '.join(different)}")


def _write_summary(run: Run, config: RunConfig, run_dir: Path, status: str) -> dict[str, Any]:
    from qmix_lightning.summary import eval_summary, peak_rss_mb, write_json

    counters, wall = run.data.counters, run.checkpoint.wall_s
    updates = run.trainer.global_step
    summary = {
        "status": status,
        "env": config.env["name"],
        "algorithm": config.algorithm["name"],
        "seed": config.seed,
        "env_steps": counters.env_steps,
        "episodes": counters.episodes,
        "updates": updates,
        "wall_s": round(wall, 3),
        "env_steps_per_s": round(counters.env_steps / wall, 3),
        "updates_per_s": round(updates / wall, 3),
        "peak_rss_mb": peak_rss_mb(),
        "eval": eval_summary(run.log.last_eval),
        "faults": counters.faults,
        "num_threads": run.module.extra_checkpoint["num_threads"],
        "pipelined": run.data.pipelined,
        "versions": run.module.extra_checkpoint["versions"],
    }
    write_json(summary, run_dir / "summary.json")
    return summary


def _print_end(summary: dict[str, Any], run_dir: Path) -> None:
    from qmix_lightning.summary import print_table, with_interval

    rows = {
        "algorithm": f"{summary['algorithm']} on {summary['env']}, seed {summary['seed']}",
        "env steps": f"{summary['env_steps']:,} in {_seconds(summary['wall_s'])} ({summary['env_steps_per_s']:,.0f}/s)",
        "updates": f"{summary['updates']:,} ({summary['updates_per_s']:,.0f}/s)",
    }
    if result := summary["eval"]:
        rows["eval return"] = (
            f"{with_interval(result['return_mean'], result['return_ci95'])}, {result['episodes']} episodes"
        )
        if "win_rate" in result:
            rows["eval win rate"] = f"{result['win_rate']:.1%}"
    rows["written to"] = _shown(run_dir.resolve())
    print_table(rows)


def _seconds(wall: float) -> str:
    return f"{wall:.0f} s" if wall >= 10 else f"{wall:.1f} s"


def _quieten_lightning() -> None:
    """Advice that does not apply: the loaders are this package's own and have no workers."""
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
