"""Run folders as a training leaves them, made of a few numbers: what reads them needs no training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def write_run(
    folder: Path,
    values: Sequence[float],
    *,
    seed: int = 1,
    algorithm: str = "qmix",
    env: Mapping[str, Any] | None = None,
    status: str = "completed",
    metric: str = "return_mean",
    **settings: Any,
) -> Path:
    """Write a run with an evaluation every 100 steps, ten seconds each; returns its folder.

    Args:
        folder: of the run.
        values: of the evaluations.
        seed, algorithm, env: of its configuration.
        status: of its summary; ``""``: it has none yet.
        metric: what the values are; a win rate has returns ten times as high beside it.
        settings: more of its configuration, sections as nested dictionaries.
    """
    folder.mkdir(parents=True)
    config = {"env": dict(env or {"name": "lbf"}), "algorithm": {"name": algorithm}, "seed": seed}
    config |= {"optimizer": {"lr": 0.1}, "total_env_steps": 100 * len(values), "run_dir": str(folder), **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    head = ["updates", "env_steps", "episodes", "train/loss", "eval/return_mean", "eval/return_ci95"]
    rates = metric == "win_rate"
    lines = [",".join(head + ["eval/win_rate"] * rates)]
    for number, value in enumerate(values, 1):
        row = [number, 100 * number, number, "", 10 * value if rates else value, 0.5]
        lines += [f"{number},{100 * number - 50},{number},0.5,,{',' * rates}"]
        lines += [",".join(map(str, [*row, value] if rates else row))]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if status:
        summary = {"status": status, "env_steps": 100 * len(values), "wall_s": 10.0 * len(values), "versions": {}}
        summary["eval_wall_s"] = [[100 * number, 10.0 * number] for number in range(1, len(values) + 1)]
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
