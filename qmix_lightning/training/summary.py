"""Write ``summary.json``."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from qmix_lightning.config.env_address import env_label
from qmix_lightning.config.run_config import RunConfig
from qmix_lightning.environment import ENVIRONMENTS
from qmix_lightning.runtime.regular_files import write_whole
from qmix_lightning.runtime.text import aligned

if TYPE_CHECKING:
    from qmix_lightning.training.ending import Ending
    from qmix_lightning.training.run import Run

__all__ = ["eval_summary", "print_table", "versions", "with_interval", "write_json", "write_summary"]


def versions(env: str | None = None) -> dict[str, str]:
    """Return the versions of what decides a result: Python, packages, the kind of CPU.

    Args:
        env: the name of an environment: the packages that it needs, or that bring it, are looked up too.
    """
    import torch

    found = {"python": platform.python_version(), "cpu": torch.backends.cpu.get_cpu_capability()}
    names = ("qmix-lightning", "torch", "pytorch-lightning", "numpy", "pettingzoo", "gymnasium")
    for name in (*names, *_distributions_of(env)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _distributions_of(env: str | None) -> list[str]:
    """Return the distributions behind an environment's name: its plugin, or what this package's extra of it needs."""
    dist = ENVIRONMENTS.distribution_of(env) if env else None
    if dist is None:
        return []
    needed = [Requirement(text) for text in dist.requires or () if f"extra == '{env}'" in text.replace('"', "'")]
    return [dist.name, *(requirement.name for requirement in needed)]


def _plain(value: Any) -> Any:
    """Return ``value`` with null for NaN and infinities, which are no JSON."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write ``value`` as JSON atomically, so that a reader never finds half of it."""
    write_whole(json.dumps(_plain(value), indent=2) + "\n", path)


def eval_summary(results: dict[str, float]) -> dict[str, Any] | None:
    """Return an evaluation's metrics by the names of ``summary.json``; ``return_ci95`` is the interval's half width."""
    if not results:
        return None
    names = {n.removeprefix("eval/"): v for n, v in results.items()}
    summary: dict[str, Any] = {"episodes": int(names.pop("episodes"))}
    return summary | names


def print_table(rows: dict[str, str]) -> None:
    """Print ``rows`` as two aligned columns."""
    print(*aligned([(f"  {name}", value) for name, value in rows.items()]), sep="\n", flush=True)


def with_interval(mean: float, half_width: float | None) -> str:
    """Return ``mean ± half width (95 %)`` as text; the mean alone if the half width is not known."""
    known = half_width is not None and math.isfinite(half_width)
    return f"{mean:.4g} ± {half_width:.2g} (95 %)" if known else f"{mean:.4g}"


def write_summary(
    run: Run, config: RunConfig, run_dir: Path, ending: Ending, reached_before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``summary.json`` for a run that has come to ``ending``; return what it holds.

    ``reached_before``: the figures of a run that was to go on and did not, in place of what has not been restored.
    """
    counters, wall = run.data.counters, run.checkpoint.wall_s
    updates = run.trainer.global_step
    summary: dict[str, Any] = {
        "status": ending.status,
        "ended_by": ending.by,
        "why": ending.why,
        "env": env_label(config.env),
        "algorithm": config.algorithm["name"],
        "seed": config.seed,
        "env_steps": counters.env_steps,
        "episodes": counters.episodes,
        "updates": updates,
        "wall_s": round(wall, 3),
        "seconds": {name: round(value, 3) for name, value in run.log.seconds.items()},
        "env_steps_per_s": round(counters.env_steps / wall, 3),
        "updates_per_s": round(updates / wall, 3),
        "peak_rss_mb": run.checkpoint.memory.peak_mb,
        "eval": eval_summary(run.log.last_eval),
        "best": run.checkpoint.best_eval or None,
        "eval_wall_s": [list(pair) for pair in run.checkpoint.eval_wall_s.items()],
        "faults": counters.faults,
        "ranks": run.trainer.world_size,
        "num_threads": run.metadata.num_threads,
        "asynchronous": run.data.asynchronous,
        "versions": run.metadata.versions,
    }
    if config.objective is not None:
        summary["objective"] = (summary["eval"] or {}).get(config.objective)
    summary |= reached_before or {}
    write_json(summary, run_dir / "summary.json")
    return summary
