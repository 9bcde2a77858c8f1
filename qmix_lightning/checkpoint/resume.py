"""Choose the checkpoint that a run is resumed from, and merge its configuration with what was typed.

Which settings a resumed run may change is decided in :mod:`qmix_lightning.config.resume`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.checkpoint.segments import folder_of_segments, verify_segments
from qmix_lightning.config.resume import check_resumable, fill_missing_defaults, imported
from qmix_lightning.config.run_config import SHARES, RunConfig, validate
from qmix_lightning.config.tree import flatten
from qmix_lightning.errors import CheckpointError, ConfigurationError

__all__ = ["Resumed", "check_same_shape", "find_last", "load_resumed"]


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a run goes on from.

    Attributes:
        path: of the checkpoint.
        checkpoint: its contents, verified.
        source: the ``checkpoints`` folder of the run that wrote it, where its replay segments are.
        config: its configuration with what was typed on top.
        run_dir: where the run goes on: its own folder, unless another one was typed.
    """

    path: Path
    checkpoint: dict[str, Any]
    source: Path
    config: RunConfig
    run_dir: Path


def load_resumed(config: RunConfig, tree: dict[str, Any], run_dir: Path, overrides: list[str] | None) -> Resumed:
    """Load the checkpoint that ``config.ckpt_path`` names, and decide with which configuration the run goes on.

    Args:
        config: what was composed, validated.
        tree: what was composed, as plain containers.
        run_dir: the folder whose newest checkpoint ``ckpt_path=last`` means.
        overrides: what the user typed; the rest comes from the checkpoint. ``None``: take ``config`` as it is.

    Raises:
        CheckpointError: there is none that can be resumed.
        ConfigurationError: something was typed that a resumed run may not change.
    """
    path = find_last(run_dir) if config.ckpt_path == "last" else Path(str(config.ckpt_path))
    saved = read_checkpoint(path)
    if "loops" not in saved:
        raise CheckpointError(f"{path} holds networks only, for qmix-eval; resume from a last.ckpt")
    saved["config"] = fill_missing_defaults(saved["config"], path)
    source = folder_of_segments(saved, path)
    verify_segments(saved, source)
    if overrides is not None:
        if config.ckpt_path != "last" and not any(o.startswith("run_dir=") for o in overrides):
            run_dir = source.resolve().parent  # the run goes on where it was
        config = _merge_saved(tree, saved["config"], overrides, run_dir)
    try:
        check_resumable(saved["config"], config.to_dict(), path)
    except ConfigurationError as error:
        whole = [o for o in overrides or () if o.partition("=")[0].lstrip("+~") in _MULTI_SECTION_GROUPS]
        if not whole:
            raise
        hint = f"{whole[0]} sets more than its own section: leave it out, or type the whole command"
        raise ConfigurationError(f"{error}; {hint}") from None
    return Resumed(path, saved, source, config, run_dir)


def find_last(run_dir: str | Path) -> Path:
    """Return the newest checkpoint of a run folder that can be resumed; damaged ones are passed over.

    Raises:
        CheckpointError: there is none; the message says what was found.
    """
    folder = Path(run_dir) / "checkpoints"
    found = sorted(folder.glob("*.ckpt")) if folder.is_dir() else []
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}; name the folder of the run with run_dir=")
    candidates: list[tuple[int, float, Path]] = []
    problems: list[str] = []
    for path in found:
        try:
            payload = read_checkpoint(path)
            if "loops" in payload:
                verify_segments(payload, folder)
                candidates.append((payload["global_step"], path.stat().st_mtime, path))
        except CheckpointError as error:
            problems.append(str(error))
    if not candidates:
        raise CheckpointError(f"no checkpoint in {folder} can be resumed" + "".join(f"; {p}" for p in problems))
    return max(candidates)[2]


_MULTI_SECTION_GROUPS = ("algorithm", "experiment", "preset")
"""Choices that set keys of other groups too: typed on resume, they bring the whole command."""


_COMPONENTS = ("env", "mixer", "agent", "replay", "rollout", "exploration", "optimizer")


_REPORTING_GROUPS = ("logger", "callbacks")


def _merge_saved(tree: dict[str, Any], saved: dict[str, Any], typed: list[str], run_dir: Path) -> RunConfig:
    """Merge what was typed into the checkpoint's configuration: a choice brings its section, a recipe everything."""
    names = [o.lstrip("+~").partition("=")[0] for o in typed]
    if any(name in _MULTI_SECTION_GROUPS for name in names):
        merged = dict(tree)
    else:
        composed = flatten(tree)
        merged = _copy(saved)
        for name in [*names, "ckpt_path"]:
            for key in (k for k in composed if k == name or k.startswith(f"{name}.")):
                _set(merged, key, composed[key])
            if name in (*_COMPONENTS, *_REPORTING_GROUPS, "trainer"):
                merged[name] = tree[name]
        if any(name in _COMPONENTS for name in names):  # what runs beside the training is the command's, as ever
            merged |= {name: tree[name] for name in _REPORTING_GROUPS}
    merged = _keep_shares(merged, saved, names)
    for key, value in flatten({group: merged[group] for group in ("logger", "callbacks")}).items():
        if value is not None and value in (saved["run_dir"], tree["run_dir"]):
            merged = _copy(merged)
            _set(merged, key, str(run_dir))  # an interpolation of run_dir when it was composed
    merged["run_dir"] = str(run_dir)
    _refuse_imports(merged, tree)
    return validate(merged)


def _keep_shares(merged: dict[str, Any], saved: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the configuration with shares of the budget, unless typed, as the steps they were when the run began."""
    before, now = flatten(saved), flatten(merged)
    kept = [key for key in SHARES if key not in names and str(now.get(key)).endswith("%") and key in before]
    merged = _copy(merged)
    for key in kept:
        _set(merged, key, before[key])
    return merged


def _refuse_imports(merged: dict[str, Any], tree: dict[str, Any]) -> None:
    """Refuse imports that only the checkpoint names: they must be typed, or shipped with this package.

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
    """Return every ``_target_`` of nested containers."""
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


def check_same_shape(now: Mapping[str, Any], saved: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint whose ranks, kind of device or environment are not those of this run."""
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
