"""Choose the checkpoint that a run is resumed from, and merge its configuration with what was typed.

Which settings a resumed run may change is decided in :mod:`qmix_lightning.config.resume`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.checkpoint.manifest import Manifest, RunMetadata, check_manifest
from qmix_lightning.checkpoint.segments import folder_of_segments, verify_segments
from qmix_lightning.config.resume import check_resumable, fill_missing_defaults, refuse_untyped_imports
from qmix_lightning.config.run_config import SHARES, RunConfig, validate
from qmix_lightning.config.tree import flatten, key_of
from qmix_lightning.config.trust import REPORTING_GROUPS, kept_callback, shipped_section, trusted_config
from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.runtime.text import printable, shown_path

__all__ = [
    "Resumed",
    "check_same_shape",
    "find_last",
    "folder_to_resume",
    "holds_resumable",
    "load_resumed",
    "merge_saved",
    "refuse_links_out",
    "version_changes",
]


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a run goes on from.

    Attributes:
        path: of the checkpoint.
        manifest: its contents, read once and checked, as are its replay segments.
        source: the ``checkpoints`` folder of the run that wrote it, where its replay segments are.
        config: its configuration with what was typed on top.
        damaged: newer checkpoints that were passed over.
    """

    path: Path
    manifest: Manifest
    source: Path
    config: RunConfig
    damaged: tuple[Path, ...]


def folder_to_resume(
    config: RunConfig, run_dir: Path, overrides: list[str] | None
) -> tuple[Path, dict[str, Any] | None]:
    """Return the folder in which a run that is resumed goes on: that of its checkpoint, unless ``run_dir`` was typed.

    Returns:
        The folder, and the contents of the checkpoint if they had to be read for that.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if overrides is None or config.ckpt_path == "last" or "run_dir" in map(key_of, overrides):
        return run_dir, None
    path = Path(str(config.ckpt_path))
    payload = read_checkpoint(path)
    return folder_of_segments(payload, path).resolve().parent, payload


def load_resumed(
    config: RunConfig,
    tree: dict[str, Any],
    run_dir: Path,
    overrides: list[str] | None,
    payload: dict[str, Any] | None = None,
) -> Resumed:
    """Load the checkpoint that ``config.ckpt_path`` names, and decide with which configuration the run goes on.

    Args:
        config: what was composed, validated.
        tree: what was composed, as plain containers.
        run_dir: where it goes on, and the folder whose newest checkpoint ``ckpt_path=last`` means.
        overrides: what the user typed; the rest comes from the checkpoint. ``None``: take ``config`` as it is.
        payload: what :func:`folder_to_resume` has read of it.

    Raises:
        CheckpointError: there is none that can be resumed.
        ConfigurationError: something was typed that a resumed run may not change.
    """
    if config.ckpt_path == "last":
        path, manifest, problems = find_last(run_dir)
        source = path.parent
        for problem in problems.values():
            print(f"passed over: {problem}", file=sys.stderr)
        if not (last := path.with_name("last.ckpt")).exists():
            print(f"passed over: {last} is gone", file=sys.stderr)
        if problems or not last.exists():
            print(f"going on from {path}", file=sys.stderr)
    else:
        path, problems = Path(str(config.ckpt_path)), {}
        payload = read_checkpoint(path) if payload is None else payload
        if "loops" not in payload:
            raise CheckpointError(f"{path} holds networks only, for qmix-eval; resume from a last.ckpt")
        source = folder_of_segments(payload, path, run_dir)
        manifest = check_manifest(payload, path)
        verify_segments(payload, source)
    saved = fill_missing_defaults(trusted_config(manifest.run.config, path), path)
    if overrides is not None:
        config = merge_saved(tree, saved, overrides, run_dir, path)
    try:
        check_resumable(saved, config.to_dict(), path)
    except ConfigurationError as error:
        whole = [o for o in overrides or () if key_of(o) in _MULTI_SECTION_GROUPS]
        if not whole:
            raise
        hint = f"{whole[0]} sets more than its own section: leave it out, or type the whole command"
        raise ConfigurationError(f"{error}; {hint}") from None
    # Not below the working folder, which an environment may change.
    return Resumed(path.absolute(), manifest, source.absolute(), config, tuple(p.absolute() for p in problems))


def find_last(run_dir: str | Path) -> tuple[Path, Manifest, dict[Path, str]]:
    """Return the newest checkpoint of a run folder that can be resumed; damaged ones are passed over.

    Returns:
        The checkpoint, its contents, and those that cannot be resumed, each with what is wrong with it.

    Raises:
        CheckpointError: there is none; the message says what was found.
    """
    folder = Path(shown_path(Path(run_dir))) / "checkpoints"
    found = sorted(folder.glob("*.ckpt")) if folder.is_dir() else []
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}; name the folder of the run with run_dir=")
    candidates: list[tuple[int, float, Path, Manifest]] = []
    problems: dict[Path, str] = {}
    for path in found:
        try:
            payload = read_checkpoint(path)
            if "loops" in payload:
                manifest = check_manifest(payload, path)
                candidates.append((payload["global_step"], path.stat().st_mtime, path, manifest))
        except CheckpointError as error:
            problems[path] = str(error)
    for *_, path, manifest in sorted(candidates, key=lambda c: c[:3], reverse=True):
        try:
            verify_segments(manifest.payload, folder)  # of an older one only if a newer one is damaged
        except CheckpointError as error:
            problems[path] = str(error)
        else:
            return path, manifest, problems
    raise CheckpointError(f"no checkpoint in {folder} can be resumed" + "".join(f"; {p}" for p in problems.values()))


def holds_resumable(run_dir: Path) -> bool:
    """Return whether a run folder holds a checkpoint of a whole run, damaged or not.

    ``best.ckpt`` is none: it is written before the first ``last.ckpt`` where evaluations come before checkpoints.
    """
    return any(path.name != "best.ckpt" for path in (run_dir / "checkpoints").glob("*.ckpt"))


def refuse_links_out(run_dir: Path) -> None:
    """Refuse a run folder with links that lead out of it, where what is written would go, and pipes, which are endless.

    Raises:
        ConfigurationError: names the first.
    """
    inside = run_dir.resolve()
    for folder, names, files in os.walk(run_dir):
        for path in (Path(folder, name) for name in (*names, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise ConfigurationError(
                    f"{path} is a link out of the run's folder, which is not followed: remove it, or name the folder "
                    "that is meant with run_dir="
                )
            if not (path.is_symlink() or path.is_file() or path.is_dir()):
                raise ConfigurationError(f"{path} is neither a file nor a folder: remove it")


def version_changes(saved: object, now: Mapping[str, str]) -> list[str]:
    """Return what has changed since a checkpoint was written, of what decides a result to the last bit."""
    before = saved if isinstance(saved, Mapping) else {}
    return [
        f"{name} {printable(before[name], 30)}, now {now.get(name, 'gone')}"
        for name in sorted(before.keys())
        if isinstance(name, str) and name != "qmix-lightning" and before[name] != now.get(name)
    ]


_MULTI_SECTION_GROUPS = ("algorithm", "experiment", "preset")
"""Choices that set keys of other groups too: typed on resume, they bring the whole command."""


_COMPONENTS = ("env", "mixer", "agent", "replay", "rollout", "exploration", "optimizer")


def merge_saved(tree: dict[str, Any], saved: dict[str, Any], typed: list[str], run_dir: Path, path: Path) -> RunConfig:
    """Merge what was typed into a file's configuration: a choice brings its section, a recipe everything.

    Args:
        tree: what was composed, as plain containers.
        saved: the file's, as :func:`trusted_config` returns it.
        typed: what the user typed.
        run_dir: where the run goes on.
        path: of the file, for messages.
    """
    names = list(map(key_of, typed))
    if any(name in _MULTI_SECTION_GROUPS for name in names):
        merged = {**tree, "run_dir": str(run_dir)}
    else:
        composed = flatten(tree)
        merged = _copy(saved)
        merged |= {group: {} for group in REPORTING_GROUPS}
        for name in [*names, "ckpt_path"]:
            for key in (k for k in composed if k == name or k.startswith(f"{name}.")):
                _set(merged, key, composed[key])
            if name in (*_COMPONENTS, *REPORTING_GROUPS, "trainer"):
                merged[name] = tree[name]
        merged["run_dir"] = str(run_dir)
        if any(name in _COMPONENTS for name in names):  # what runs beside the training is the command's, as ever
            merged |= {name: tree[name] for name in REPORTING_GROUPS}
        else:
            _add_shipped(merged, saved, names, path)
    merged = _keep_shares(merged, saved, names)
    refuse_untyped_imports(merged["env"], tree["env"], "the checkpoint")
    return validate(merged)


def _keep_shares(merged: dict[str, Any], saved: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the configuration with shares of the budget, unless typed, as the steps they were when the run began."""
    before, now, kept = flatten(saved), flatten(merged), _copy(merged)
    for key in SHARES:
        if key not in names and str(now.get(key)).endswith("%") and key in before:
            _set(kept, key, before[key])
    return kept


def _add_shipped(merged: dict[str, Any], saved: dict[str, Any], names: list[str], path: Path) -> None:
    """Add the shipped loggers and callbacks that the file names; say which of its others are left out."""
    left_out = []
    for group in (group for group in REPORTING_GROUPS if group not in names):
        for name, changed in saved[group].items():
            entry = f"{group}.{name}"
            typed = {n for n in names if f"{n}.".startswith(f"{entry}.")}
            shipped = shipped_section(group, name, merged)
            if shipped is not None:
                kept = kept_callback(shipped, changed) if group == "callbacks" else {}
                merged[group][name] = shipped | kept | (merged[group].get(name) or {})
                left_out += [f"{entry}.{k}" for k in changed if k not in kept and not {entry, f"{entry}.{k}"} & typed]
            elif not typed:
                left_out.append(entry)
    if left_out:
        print(
            f"{path} does not decide what is imported or where it writes: the run goes on without its "
            f"{printable(', '.join(left_out), 200)}; type them again to have them",
            file=sys.stderr,
        )


def _copy(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in tree.items()}


def _set(tree: dict[str, Any], dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def check_same_shape(now: RunMetadata, saved: RunMetadata, path: Path) -> None:
    """Refuse a checkpoint whose ranks, kind of device or environment are not those of this run."""
    if saved.world_size != now.world_size:
        raise ConfigurationError(
            f"{path} was written by {saved.world_size} rank(s), this run has {now.world_size}: each rank has its "
            f"own replay and episodes, so resume with trainer.devices={saved.world_size}"
        )
    if saved.device != now.device:
        raise ConfigurationError(
            f"{path} was trained on {saved.device}, this run is on {now.device}: set trainer.accelerator alike"
        )
    if saved.spec != now.spec:
        different = [key for key in now.spec if saved.spec.get(key) != now.spec[key]]
        raise ConfigurationError(f"{path} was trained on another environment: it differs in {', '.join(different)}")
