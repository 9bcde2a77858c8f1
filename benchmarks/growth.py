"""Measure how costs grow with sizes: tables in Markdown, and the file that the docs' picture is drawn from.

    python -W ignore benchmarks/growth.py [--parts environments replay] [--output growth.json]
    python benchmarks/growth_picture.py growth.json docs/growth.svg

A part that is measured replaces its rows in the output file; those of other parts stay, so parts may be measured on
different occasions.

``environments``: SMAX 3m, 1 to 256 copies in one compiled call, collected by a recurrent agent. ``workers``: 32 games
of foraging in 1 to 8 worker processes. ``replay``: 100 to 50,000 episodes of 60 steps and 5 agents held, bytes and
times of adding an episode and of drawing a batch of 32. ``agents`` and ``steps``: an update of recurrent QMIX beside
the plain learner, 2 to 64 agents and episodes of 25 to 400 steps (``learner.py --growth`` has more columns).
``ranks``: a whole run of foraging, 16 games and batches of 32 episodes in all, on one process and on two. Processor
time is that of all processes and threads together, and hardly depends on what else the machine does; speeds do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from learner import SHAPES, OurUpdate, growth_cases, measure, our_learner, random_batch
from pytorch_lightning import Callback
from replay import speed, spread
from rollout import CASES, compare, raw_foraging, raw_vector
from training import train

from qmix_lightning.runtime.resources import available_cores, keep_freed_memory
from qmix_lightning.training.summary import versions
from qmix_lightning.vector.factory import Backend

Row = dict[str, Any]


class Processor(Callback):
    """Callback that writes this rank's processor seconds and the joint steps of all ranks.

    They are counted from a while after the start to the end. What Lightning, compilation and the first batch take is
    left out.
    """

    def __init__(self, folder: str, begin: int) -> None:
        self.folder, self.begin = Path(folder), begin
        self.first: tuple[float, float, int] | None = None

    def _now(self, trainer: Any) -> tuple[float, float, int]:
        return time.process_time(), time.perf_counter(), trainer.datamodule.counters.env_steps

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if self.first is None and trainer.datamodule.counters.env_steps >= self.begin:
            self.first = self._now(trainer)

    def on_train_end(self, trainer: Any, *args: Any) -> None:
        assert self.first is not None
        (cpu, wall, steps), (cpu_0, wall_0, steps_0) = self._now(trainer), self.first
        taken = {"cpu": cpu - cpu_0, "wall": wall - wall_0, "steps": steps - steps_0}
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(taken))


def _collected(size: int, row: dict[str, float]) -> Row:
    rate = {name: row[name] for name in ("median", "min", "max")}
    print(f"{size}: {row['median']:,.0f} joint steps/s, {row['cpu_us']:.1f} microseconds of processor each", flush=True)
    return {"size": size, "rate": rate, "cpu_us": row["cpu_us"]}


def environments() -> list[Row]:
    """Measure joint steps per second of the collector, by the number of environments."""
    return [
        _collected(n, compare(raw_vector(CASES["smax_3m"], n), CASES["smax_3m"], n, Backend("sync"), 0.5, 5))
        for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    ]


def workers() -> list[Row]:
    """Measure joint steps per second of the collector, by the number of workers; 0: in the training process."""
    rows = []
    for n in (0, 1, 2, 4, 8):
        backend = Backend("process", num_workers=n) if n else Backend("sync")
        rows.append(_collected(n, compare(raw_foraging(), CASES["lbf_8x8_2p_3f"], 32, backend, 0.5, 5)))
    return rows


def replay() -> list[Row]:
    """Measure bytes, and milliseconds of adding and drawing, by the episodes held; times are the processor's."""
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
    """Measure a joint step of whole runs, by ranks; what is collected and learned from is divided over the ranks."""
    rows = []
    for n in (1, 2):
        rates, costs = [], []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                train(
                    [
                        *("env=lbf", "env.task=8x8-2p-3f", f"rollout.num_envs={16 // n}", "rollout.update_every=4"),
                        *("rollout.asynchronous=false", "trainer.accelerator=cpu", f"trainer.devices={n}"),
                        *(["trainer.strategy=ddp"] if n > 1 else []),
                        f"callbacks.processor={{_target_:growth.Processor,folder:{folder},begin:4000}}",
                    ],
                    12_000,
                )
                taken = [json.loads(path.read_text()) for path in Path(folder).glob("rank*.json")]
            assert len(taken) == n
            rates.append(taken[0]["steps"] / max(t["wall"] for t in taken))
            costs.append(1e6 * sum(t["cpu"] for t in taken) / taken[0]["steps"])
        rows.append(_collected(n, {**spread(rates), "cpu_us": statistics.median(costs)}))
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
    """Return rows of a part as a table in Markdown; the last column is the cost of one unit of work."""
    if part in ("environments", "workers", "ranks"):
        head = [part, "joint steps/s", "processor time of a joint step, microseconds"]
        cells = [[row["size"], _spread(row["rate"]), _number(row["cpu_us"])] for row in rows]
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
