"""Predict from one node's costs what a run on two nodes costs, then measure it on two network namespaces.

    python -W ignore benchmarks/nodes.py predict prediction.json
    sudo PYTHONPATH=tests:benchmarks .venv/bin/python -W ignore benchmarks/nodes.py measure prediction.json

Level-based foraging 8x8-2p-3f by its own recipe (QMIX, an update on 32 episodes every 128 joint steps), one rank a
node, one torch thread. The figure is what an update with the steps it is bought by takes on a rank, in seconds of the
processor: on two machines whose cores have nothing else to do, it is the time but for the network's delays, and it
can be measured where both nodes share busy cores. Prediction: half of the joint steps, an update on half of the
batch, and one all-reduce of the gradient; the small collectives that agree on counters are not in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback

RECIPE, STEPS_PER_UPDATE, TURNS = "experiment=lbf_8x8_2p_3f", 128, 5
FIRST, LAST = 20, 170
"""Updates between which a run's processor time is measured: after start-up, and after its buffers are there."""


class ProcessorTime(Callback):
    """Writes what each update took of its rank's processor, from the first counted one to the last."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.began = (0.0, 0.0)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        now, updates = (time.process_time(), time.perf_counter()), trainer.datamodule.counters.updates
        if updates == FIRST:
            self.began = now
        elif updates == LAST:
            each = [(end - begin) / (LAST - FIRST) for begin, end in zip(self.began, now, strict=True)]
            row = dict(zip(("processor_s", "wall_s"), each, strict=True))
            Path(f"{self.path}{trainer.global_rank}.json").write_text(json.dumps(row))


def all_reduce_s(rank: int, file: str, numbers: int, result: Any) -> None:
    """Measure the processor time of an all-reduce between two processes of this machine."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    values, times = torch.zeros(numbers), []
    for _ in range(TURNS + 1):
        began = time.process_time()
        for _ in range(20):
            dist.all_reduce(values)
        times.append((time.process_time() - began) / 20)
    dist.destroy_process_group()
    if rank == 0:
        result.put(statistics.median(times[1:]))


def predict() -> dict[str, float]:
    """Return the costs of one node and the prediction, in seconds of a rank's processor for an update."""
    from scale import measure

    costs, context = measure(TURNS), multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        result, numbers = context.Queue(), 70_000
        ranks = [context.Process(target=all_reduce_s, args=(r, f"{folder}/store", numbers, result)) for r in range(2)]
        for process in ranks:
            process.start()
        reduce_s = result.get()
        for process in ranks:
            process.join()
    collecting = STEPS_PER_UPDATE * (costs.step_s + costs.insert_s / costs.episode_steps)
    one = collecting + costs.sample_s + costs.update_s
    two = collecting / 2 + costs.sample_s / 2 + costs.half_update_s + reduce_s
    parts = {"collecting_s": collecting, "update_s": costs.update_s, "half_update_s": costs.half_update_s}
    return {**parts, "all_reduce_s": reduce_s, "one_node_s": one, "two_nodes_s": two, "speedup": one / two}


def run_on(nodes: Any, count: int, folder: Path) -> dict[str, float]:
    """Train on one or two nodes; return what an update took: of the busiest rank's processor, and in all."""
    from support.nodes import INTERFACE, finish

    steps = (LAST + 5) * STEPS_PER_UPDATE + 2000  # before the first update, a batch has to be there
    command = ["-m", "torch.distributed.run", f"--nnodes={count}", "--nproc-per-node=1", "--master-port=29511"]
    options = [f"total_env_steps={steps}", "trainer.limit_val_batches=0", "checkpoint_interval=1000000"]
    options += ["rollout.asynchronous=false", "num_threads=1", "trainer.accelerator=cpu", "logger=none"]
    options += [f"trainer.num_nodes={count}", f"trainer.strategy={'auto' if count == 1 else 'ddp'}"]
    options += [f"run_dir={folder}/run", f"callbacks.time={{_target_:nodes.ProcessorTime,path:{folder}/rank}}"]
    train = ["-m", "qmix_lightning", "train", RECIPE, *options]
    started = [
        nodes.start(
            node,
            [*command, f"--node-rank={node}", "--master-addr=10.77.0.1", *train],
            {"GLOO_SOCKET_IFNAME": INTERFACE, "PYTHONPATH": os.environ["PYTHONPATH"]},
        )
        for node in range(count)
    ]
    if any(finish(started, 1200)):
        sys.exit("".join(node.printed() for node in started))
    rows = [json.loads(path.read_text()) for path in folder.glob("rank*.json")]
    return {name: max(row[name] for row in rows) for name in rows[0]}


def measure_nodes(turns: int) -> dict[str, Any]:
    """Measure runs on one and on two nodes, by turns; medians."""
    from support.nodes import TwoNodes

    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for turn in range(turns):
        for count, rows in found.items():
            with tempfile.TemporaryDirectory() as folder, TwoNodes(Path(folder)) as nodes:
                rows.append(run_on(nodes, count, Path(folder)))
            print(f"turn {turn + 1}, nodes {count}: {rows[-1]}", flush=True)
    one, two = ({name: statistics.median(row[name] for row in rows) for name in rows[0]} for rows in found.values())
    return {"one_node": one, "two_nodes": two, "speedup": one["processor_s"] / two["processor_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("predict", "measure"))
    parser.add_argument("file", type=Path, help="of the prediction: written first, compared with afterwards")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "predict":
        arguments.file.write_text(json.dumps(predict(), indent=1) + "\n")
        print(arguments.file.read_text())
    else:
        predicted = json.loads(arguments.file.read_text())
        print(json.dumps({"predicted": predicted, "measured": measure_nodes(arguments.turns)}, indent=1))


if __name__ == "__main__":
    main()
