"""Answer mistakes in sections of components before torch is imported, which takes seconds.

Components check their own settings, and what is checked here they would refuse too. What they are is read off without
importing them: numbers from the shipped YAML files, the Trainer's arguments from its source.
"""

from __future__ import annotations

import ast
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

from qmix_lightning.config.resume import shipped_defaults
from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.config.schema import typed
from qmix_lightning.config.trainer_settings import check_competing
from qmix_lightning.errors import CheckpointError, ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["check_early"]

_GROUPS = ("algorithm", "mixer", "agent", "optimizer")

_RANGES = {
    "algorithm.gamma": (0.0, 1.0, "in [0, 1]"),
    "algorithm.td_lambda": (0.0, 1.0, "in [0, 1]"),
    "optimizer.lr": (math.ulp(0.0), math.inf, "above 0"),
    "optimizer.eps": (math.ulp(0.0), math.inf, "above 0"),
    "optimizer.weight_decay": (0.0, math.inf, "at least 0"),
}
"""Key -> lowest and highest value, and how a message says it."""


def check_early(config: RunConfig) -> None:
    """Check that a checkpoint is there, the Trainer's arguments, and that numbers of components are in their range.

    Raises:
        CheckpointError, ConfigurationError: names the first mistake.
    """
    _check_checkpoint(config.ckpt_path)
    known = _trainer_arguments()
    for name in config.trainer:
        if known and name not in known:
            hint = did_you_mean(name, known, "trainer.").split(";")[0]
            hint = hint or "; trainer.* takes the arguments of Lightning's Trainer"
            raise ConfigurationError(f"unknown key 'trainer.{name}'{hint}")
    check_competing(config.trainer)
    strategy = config.trainer.get("strategy")
    if isinstance(strategy, str) and any(way in strategy for way in ("_spawn", "_fork", "_notebook")):
        raise ConfigurationError(
            f"trainer.strategy={strategy} copies this process, whose environments and files cannot be copied: use ddp"
        )
    for group in _GROUPS:
        section: dict[str, Any] = getattr(config, group)
        defaults = shipped_defaults(group, section)
        for name, value in section.items():
            default = defaults.get(name)
            if value is None or isinstance(default, bool) or not isinstance(default, int | float):
                continue
            key = f"{group}.{name}"
            if isinstance(value, bool) or not isinstance(value, int | float):
                wanted = "an integer" if isinstance(default, int) else "a number"
                raise ConfigurationError(f"{key} must be {wanted}, not {typed(value)}")
            lowest, highest, allowed = _RANGES.get(key, (-math.inf, math.inf, ""))
            if not lowest <= value <= highest and allowed:
                raise ConfigurationError(f"{key} must be {allowed}, not {float(value)}")


def _check_checkpoint(ckpt_path: str | None) -> None:
    """Refuse a checkpoint to go on from that is a folder or not there."""
    path = Path(ckpt_path or "last")
    if str(path) == "last" or path.is_file():
        return
    if str(path) == "best" and not path.exists():
        raise CheckpointError("a run's best.ckpt holds networks only, for qmix-eval; it goes on from ckpt_path=last")
    if (path / "checkpoints" / "last.ckpt").is_file():
        raise CheckpointError(f"{path} is the folder of a run: run_dir={path} ckpt_path=last goes on with it")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a .ckpt file in it")
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")


@cache
def _trainer_arguments() -> frozenset[str]:
    """Return the names of the Trainer's arguments, read off its source; empty if that is not as expected."""
    spec = importlib.util.find_spec("pytorch_lightning")
    if spec is None or spec.origin is None:
        return frozenset()
    try:
        tree = ast.parse((Path(spec.origin).parent / "trainer" / "trainer.py").read_text())
    except (OSError, SyntaxError):
        return frozenset()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                    arguments = function.args
                    return frozenset(a.arg for a in (*arguments.args, *arguments.kwonlyargs) if a.arg != "self")
    return frozenset()
