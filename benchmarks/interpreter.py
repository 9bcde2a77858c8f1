"""Compare workers under another Python with forks of this one: joint steps a second, in turns.

    python benchmarks/interpreter.py --python PATH --env lbf --turns 8

The same environments, seeds and random legal actions; each turn steps both for a while, one after the other, and the
ratio is that of the medians. With the same Python on both sides, what differs is how the workers were started, and that
what another Python writes is looked at once more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch

from qmix_lightning import environment
from qmix_lightning.vector.factory import Backend, interpreter_of, make_vector_env


def steps_per_second(env: Any, seconds: float, rng: np.random.Generator) -> tuple[float, int]:
    """Step all with random legal actions for some seconds; return joint steps a second, and how many there were."""
    everyone = torch.ones(env.num_envs, dtype=torch.bool)
    begin, seed, taken, start = everyone, 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        if begin.any():
            seed += 1
            shown = env.reset(begin, torch.arange(env.num_envs) + 1000 * seed)
        legal = shown.avail_actions.numpy()
        outcome = env.step(torch.from_numpy((rng.random(legal.shape) * legal).argmax(-1)), everyone)
        shown, begin = outcome.next, outcome.terminated | outcome.truncated
        taken += env.num_envs
    return taken / (time.perf_counter() - start), taken


def processor_time(env: Any) -> float:
    """Return the processor time, in seconds, that this process and the workers have used."""
    seconds = time.process_time()
    for pid in env.worker_pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--env", default="lbf")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the environment, as JSON")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    factory = environment.load(options.env)
    places = {
        "process": Backend("process", options.workers),
        "python": Backend("process", options.workers, interpreter=interpreter_of(options.python, [])),
    }
    made = {
        name: make_vector_env(factory, options.settings, num_envs=options.num_envs, name=options.env, backend=place)
        for name, place in places.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in made}
    used: dict[str, list[float]] = {name: [] for name in made}
    rng = np.random.default_rng(0)
    for turn in range(options.turns + 1):
        for name in sorted(made, reverse=turn % 2 == 1):
            before = processor_time(made[name])
            rate, taken = steps_per_second(made[name], options.seconds, rng)
            if turn:  # the first warms up
                rates[name].append(rate)
                used[name].append(1e6 * (processor_time(made[name]) - before) / taken)
    for env in made.values():
        env.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        cost = statistics.median(used[name])
        print(f"{name:8} {medians[name]:8.0f} joint steps/s [{min(values):.0f}, {max(values):.0f}], CPU {cost:.1f} us")
    clock = medians["python"] / medians["process"]
    processor = statistics.median(used["process"]) / statistics.median(used["python"])
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"ratio {clock:.2f} by the clock, {processor:.2f} by processor time, {load}")


if __name__ == "__main__":
    main()
