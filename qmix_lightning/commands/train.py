"""Train a team, resume a run, or sweep over many: the command ``qmix-train``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmix_lightning.cli.hydra_app import SweepJobs, run_command
from qmix_lightning.config.early_checks import check_early
from qmix_lightning.config.resume import refuse_untyped_interpreter
from qmix_lightning.config.run_config import RunConfig, validate
from qmix_lightning.config.tree import key_of
from qmix_lightning.config.without_effect import remarks_on_typed
from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.runtime.launch import Ranks, is_first_rank, is_requeued, launched_by
from qmix_lightning.runtime.regular_files import read_json, read_yaml
from qmix_lightning.runtime.run_lock import LOCK_FILE, RunLock, holds_files
from qmix_lightning.runtime.text import printable, shown_path

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
            if overrides is not None and is_first_rank() and holds_files(run_dir):
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
    from qmix_lightning.fit import fit_run

    if config.ckpt_path is None and (overrides is None or not holds_files(run_dir)):
        return fit_run(config, run_dir, None, ranks, fit_replay=_has_no_capacity(overrides))

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
            return fit_run(config, run_dir, None, ranks, fit_replay=_has_no_capacity(overrides))
        tree = {**tree, "ckpt_path": "last"}
        config = validate(tree)
    if config.ckpt_path == "last" and not resumable and not ended and overrides is not None:
        return fit_run(_begin_anew(tree, run_dir, overrides), run_dir, None, ranks)
    # A simulator.log may be there, and a config.yaml that a kill cut short: neither says how the run was to be trained.
    if config.ckpt_path == "last" and begun and status is None and not (run_dir / "checkpoints").exists():
        raise ConfigurationError(
            f"the run in {shown_path(run_dir)} was killed before it had written its config.yaml: repeat its command "
            "without ckpt_path=last"
        )
    resumed = load_resumed(config, tree, run_dir, overrides, opened)
    return fit_run(resumed.config, run_dir, resumed, ranks)


def _adopt_requeued(run_dir: Path) -> None:
    """Rename what a requeue saved last to ``last.ckpt`` if a kill came before that; Lightning would prefer it."""
    for path in sorted(run_dir.glob("hpc_ckpt_*.ckpt"), key=lambda p: p.stat().st_mtime):
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        os.replace(path, run_dir / "checkpoints" / "last.ckpt")


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


if __name__ == "__main__":
    main()
