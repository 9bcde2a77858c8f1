"""``summary.json`` and the table at the end of a run."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["eval_summary", "print_table", "versions", "write_json"]


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"python": platform.python_version()}
    for name in ("qmix-lightning", "torch", "pytorch-lightning", "numpy", "pettingzoo", "gymnasium"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_rss_mb() -> float:
    """The most memory this process had resident, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def _plain(value: Any) -> Any:
    """NaN and infinities are no JSON; they become null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write atomically, so that a reader never finds half of it."""
    temporary = path.with_name(path.name + ".writing")
    temporary.write_text(json.dumps(_plain(value), indent=2) + "\n")
    os.replace(temporary, path)


def eval_summary(results: dict[str, float]) -> dict[str, Any] | None:
    """An evaluation's metrics by the names of ``summary.json``; ``return_ci95`` is the half width of the interval."""
    if not results:
        return None
    names = {n.removeprefix("eval/"): v for n, v in results.items()}
    summary: dict[str, Any] = {"episodes": int(names.pop("episodes"))}
    return summary | names


def print_table(rows: dict[str, str]) -> None:
    """Two aligned columns."""
    width = max(map(len, rows))
    print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()), flush=True)


def with_interval(mean: float, half_width: float | None) -> str:
    """``mean ± half width`` for people."""
    known = half_width is not None and math.isfinite(half_width)
    return f"{mean:.4g} ± {half_width:.2g} (95 %)" if known else f"{mean:.4g}"
