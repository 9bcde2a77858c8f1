"""How costs grow with sizes: one command, tables in Markdown, and the file that the picture in the docs is drawn from.

    python -W ignore benchmarks/growth.py [--parts environments replay] [--output growth.json]
    python benchmarks/growth_picture.py growth.json docs/growth.svg

A part that is measured replaces its rows in the output file; those of other parts stay, so parts may be measured on
different occasions.

``environments``: SMAX 3m, 1 to 256 copies in one compiled call, collected by a recurrent agent. ``workers``: 32 games
of foraging in 1 to 8 worker processes. ``replay``: 100 to 50,000 episodes of 60 steps and 5 agents held, memory and
times of adding an episode and of drawing a batch of 32. ``agents`` and ``steps``: an update of recurrent QMIX beside
the plain learner, 2 to 64 agents and episodes of 25 to 400 steps (``learner.py --growth`` has more columns).
``ranks``: a whole run of foraging, 16 games and batches of 32 episodes in all, on one process and on two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from learner import SHAPES, OurUpdate, growth_cases, measure, our_learner, random_batch
from replay import speed, spread
from rollout import CASES, compare, raw_foraging, raw_vector
from training import train

from qmix_lightning.memory import keep_freed_memory
from qmix_lightning.summary import versions
from qmix_lightning.threads import available_cores
from qmix_lightning.vector import Backend

Row = dict[str, Any]


def environments() -> list[Row]:
    """Joint steps per second of the collector."""
    rows = []
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        row = compare(raw_vector(CASES["smax_3m"], n), CASES["smax_3m"], n, Backend("sync"), 0.7, 5)
        rows.append({"size": n, "rate": {name: row[name] for name in ("median", "min", "max")}, "raw": row["raw"]})
        print(f"environments {n}: {row['median']:,.0f} joint steps/s", flush=True)
    return rows


def workers() -> list[Row]:
    """Joint steps per second of the collector, 0 workers: in the training process."""
    rows = []
    for n in (0, 1, 2, 4, 8):
        backend = Backend("process", num_workers=n) if n else Backend("sync")
        row = compare(raw_foraging(), CASES["lbf_8x8_2p_3f"], 32, backend, 0.7, 5)
        rows.append({"size": n, "rate": {name: row[name] for name in ("median", "min", "max")}, "raw": row["raw"]})
        print(f"workers {n}: {row['median']:,.0f} joint steps/s", flush=True)
    return rows


def replay() -> list[Row]:
    """Bytes, and milliseconds of adding and drawing; times are those of the processor."""
    torch.manual_seed(0)
    update = OurUpdate(our_learner(SHAPES["small"]), random_batch(SHAPES["small"]), "float32")
    rows = []
    for n in (100, 500, 1000, 5000, 10_000, 50_000):
        row = speed(n, "float32", False, update, 7)
        rows.append({"size": n, "gb": row["bytes"] / 1e9, "add_ms": row["add_ms"], "sample_ms": row["sample_ms"]})
        print(f"replay {n}: {rows[-1]['gb']:.3f} GB, {row['sample_ms']['median']:.2f} ms to draw", flush=True)
    return rows


def _updates(kind: str) -> list[Row]:
    keep_freed_memory()
    rows = []
    for name, shape in growth_cases().items():
        if name.startswith(kind):
            torch.manual_seed(0)
            row = measure(name, random_batch(shape), 5, 0.3, "cpu")
            ms, faster = row["ms"], row["faster_than_plain"]["float32"]
            size = int(name.partition("_")[2])
            rows.append({"size": size, "floor_ms": row["floor_ms"], "ms": ms, "faster": faster})
            print(f"{kind} {size}: {ms['float32']['median']:.1f} ms, plain {ms['plain']['median']:.1f}", flush=True)
    return rows


def ranks() -> list[Row]:
    """Joint steps per second of whole runs; what is collected and learned from is divided over the ranks."""
    rows = []
    for n in (1, 2):
        settings = [
            *("env=lbf", "env.task=8x8-2p-3f", f"rollout.num_envs={16 // n}", "rollout.update_every=4"),
            *("rollout.pipelined=false", "trainer.accelerator=cpu", f"trainer.devices={n}"),
            *(["trainer.strategy=ddp"] if n > 1 else []),
        ]
        runs = [train(settings, 16_000) for _ in range(3)]
        rates = [run["steps_per_s"] for run in runs]
        memory = statistics.median(run["peak_rss_mb"] for run in runs)
        rows.append({"size": n, "rate": spread(rates), "peak_rss_mb_of_rank_0": memory})
        print(f"ranks {n}: {statistics.median(rates):,.0f} joint steps/s", flush=True)
    return rows


PARTS: dict[str, Callable[[], list[Row]]] = {
    "environments": environments,
    "workers": workers,
    "ranks": ranks,
    "replay": replay,
    "agents": lambda: _updates("agents"),
    "steps": lambda: _updates("steps"),
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(value: dict[str, float], with_range: bool = True) -> str:
    text = _number(value["median"])
    return f"{text} ({_number(value['min'])} to {_number(value['max'])})" if with_range else text


def table(part: str, rows: list[Row]) -> str:
    """Rows of a part in Markdown; the last column is the cost of one unit of work."""
    if part in ("environments", "workers", "ranks"):
        head = [part, "joint steps/s", "a joint step, microseconds"]
        cells = [[row["size"], _spread(row["rate"]), _number(1e6 / row["rate"]["median"])] for row in rows]
    elif part == "replay":
        head = ["episodes held", "GB", "kB each", "to add one, ms", "to draw a batch, ms"]
        cells = [
            [
                *(f"{row['size']:,}", f"{row['gb']:.3f}", _number(row["gb"] * 1e6 / row["size"])),
                *(_spread(row["add_ms"]), _spread(row["sample_ms"])),
            ]
            for row in rows
        ]
    else:
        head = [part, "plain, ms", "float32, ms", "`bf16-mixed`, ms", "floor, ms", "float32, ms for each", "faster by"]
        cells = [
            [
                row["size"],
                *(_number(row["ms"][name]["median"]) for name in ("plain", "float32", "bf16-mixed")),
                *(_number(row["floor_ms"]), f"{row['ms']['float32']['median'] / row['size']:.3g}"),
                f"{row['faster']['median']:.2f} [{row['faster']['min']:.2f}, {row['faster']['max']:.2f}]",
            ]
            for row in rows
        ]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path("growth.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    for part in options.parts:
        rows = PARTS[part]()
        machine = {"machine": platform.machine(), "cores": available_cores(), "torch_threads": 1}
        found[part] = {"machine": machine | {"load": os.getloadavg(), "versions": versions()}, "rows": rows}
        options.output.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n{table(part, rows)}\n", flush=True)


if __name__ == "__main__":
    main()
