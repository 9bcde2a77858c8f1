"""Run ``qmix-train`` over several seeds, once each, in a folder, and sum them up with an interval."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["QUIET", "interval", "train_once", "with_half"]

QUIET = [
    "logger=none",
    "num_threads=1",
    "trainer.enable_progress_bar=false",
    "checkpoint_interval=1000000000",
]
"""Settings of a run of which only the summary is wanted."""

_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t for a two-sided 95 % interval, by number of values."""


def train_once(name: str, overrides: list[str], folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run, which is made if it is not there yet; ``None`` if it failed.

    Args:
        name: what is printed with its result.
        overrides: arguments of ``qmix-train``.
        folder: where the run writes; what an earlier one left unfinished there is removed.
    """
    summary = folder / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["status"] != "completed":
        shutil.rmtree(folder, ignore_errors=True)
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "qmix_lightning.commands.train",
            *overrides,
            f"run_dir={folder}",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: {done.stdout}{done.stderr}".strip(), file=sys.stderr, flush=True)
            return None
    found = json.loads(summary.read_text())
    print(f"{name}: {found['eval']['return_mean']:.3g} ({found['wall_s']:.0f} s)", flush=True)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half of its 95 % interval (Student's t); half is NaN for one value."""
    if len(values) < 2:
        return statistics.mean(values), math.nan
    return statistics.mean(values), _T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def with_half(values: list[float]) -> str:
    """Return mean and half of the interval, as text."""
    if len(values) < 2:
        return f"{values[0]:.3g} (1 seed)" if values else "failed"
    mean, half = interval(values)
    return f"{mean:.3g} ± {half:.2g}"
