"""Measure speed on a GPU with one command: updates, replay and whole runs; see docs/speed.md.

    python benchmarks/gpu.py [--repeats 3] [--output gpu.json]
    python benchmarks/gpu.py --device cpu --quick      # the same in small, to see that it runs

* ``learner``: an update of both learner shapes of ``learner.py`` in float32, TF32 and bfloat16: how long it takes, how
  often the host waits for the device in it, and where the time goes (torch's profiler).
* ``replay``: a batch of the same shapes from a replay in the host's memory and from one on the device, on the device.
* ``runs``: whole SMAX runs with the trainer on the device, the policy beside the environments or on the device too,
  and how busy the GPU was meanwhile (``nvidia-smi``, every half second; ``null`` without one).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import training
from learner import SHAPES, OurUpdate, Shape, matrix_gflops, our_learner, random_batch, spread
from specs import spec_of

from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.runtime.resources import keep_freed_memory, set_matmul_precision
from qmix_lightning.training.summary import versions
from qmix_lightning.types import Episode, TrajectoryBatch

QUICK_SHAPES = {"small": Shape(4, 6, 2, 3, 5, 7), "large": Shape(4, 8, 3, 4, 6, 9)}
PRECISIONS = {"float32": ("highest", "float32"), "tf32": ("high", "float32"), "bf16-mixed": ("highest", "bf16-mixed")}
"""``matmul_precision`` and what the update is done in."""
ON_DEVICE = "rollout.policy_device=device"
RUNS = {
    "policy_with_env": [],
    "policy_with_env_asynchronous": ["rollout.asynchronous=true"],
    "policy_on_device": [ON_DEVICE],
    "bf16-mixed": ["trainer.precision=bf16-mixed"],
}
QUICK_RUN = ["env=two_step", "rollout.num_envs=2", "replay.batch_size=8", "replay.capacity=32", "agent.hidden_dim=8"]
REPLAY_EPISODES = 64


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device, turns: int, seconds: float) -> dict[str, Any]:
    """Return milliseconds of a call: the median, least and most of ``turns`` turns of about ``seconds``."""
    for _ in range(2):
        call()
    wait(device)
    begun = time.perf_counter()
    call()
    wait(device)
    repeats = max(1, round(seconds / (time.perf_counter() - begun)))
    taken = []
    for _ in range(turns):
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        wait(device)
        taken.append((time.perf_counter() - begun) / repeats * 1e3)
    return {"ms": spread(taken), "turns": turns, "calls_in_a_turn": repeats}


def waits(call: Callable[[], object], device: torch.device) -> int | None:
    """Return how often a call makes the host wait for the device; ``None`` without a GPU."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(w.message) for w in caught)


def profile(call: Callable[[], object], device: torch.device, calls: int, rows: int = 15) -> list[dict[str, Any]]:
    """Return the operations that took most time, per call: on the device where there is a GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(calls):
            call()
        wait(device)
    found = [
        {
            "name": event.key,
            "calls": event.count / calls,
            "device_ms": event.self_device_time_total / calls / 1e3 if device.type == "cuda" else None,
            "cpu_ms": event.self_cpu_time_total / calls / 1e3,
        }
        for event in profiler.key_averages()
    ]
    return sorted(found, key=lambda r: r["device_ms"] or r["cpu_ms"], reverse=True)[:rows]


def learner_case(name: str, shape: Shape, device: torch.device, turns: int, seconds: float) -> dict[str, Any]:
    """Measure an update of one shape in every precision."""
    torch.manual_seed(0)
    # Moved there as in training, so that the host keeps the masks.
    batch = random_batch(shape).to(device)
    ours = our_learner(shape).to(device)
    result: dict[str, Any] = {"case": name, "shape": vars(shape), "gflop": shape.gflop, "precisions": {}}
    for precision, (products, kind) in PRECISIONS.items():
        set_matmul_precision(products)
        update = OurUpdate(copy.deepcopy(ours), batch, kind)
        found = timed(update, device, turns, seconds)
        found |= {"waits": waits(update, device), "profile": profile(update, device, calls=3)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            update()
            found["peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        result["precisions"][precision] = found
        low, high = found["ms"]["min"], found["ms"]["max"]
        waited = "" if found["waits"] is None else f", the host waits {found['waits']} times"
        print(f"{name:<8}{precision:<12}{found['ms']['median']:>9.2f} ms [{low:.2f}, {high:.2f}]{waited}", flush=True)
    set_matmul_precision("highest")
    return result


def episodes_of(batch: TrajectoryBatch) -> Iterator[Episode]:
    """Yield the rows of a batch as episodes."""
    for b in range(batch.batch_size):
        yield Episode(
            obs=batch.obs[b],
            state=batch.state[b],
            avail_actions=batch.avail_actions[b],
            agent_mask=batch.agent_mask[b],
            actions=batch.actions[b],
            reward=batch.reward[b],
            terminated=True,
            truncated=False,
        )


def replay_case(name: str, shape: Shape, device: torch.device, turns: int, seconds: float) -> dict[str, Any]:
    """Measure drawing a batch of one shape from a replay in the host's memory and from one on the device."""
    spec = spec_of(agents=shape.agents, actions=shape.actions, obs=shape.obs, state=shape.state, limit=shape.steps)
    result: dict[str, Any] = {"case": name, "places": {}}
    for replay_device in ("host", "device"):
        store = EpisodeReplay(spec, REPLAY_EPISODES, device=device if replay_device == "device" else None)
        while len(store) < REPLAY_EPISODES:
            for episode in episodes_of(random_batch(shape)):
                store.add(episode)
        ids = np.arange(shape.episodes) * (REPLAY_EPISODES // shape.episodes)
        pin = device.type == "cuda"

        def draw(store: EpisodeReplay = store, ids: np.ndarray = ids, pin: bool = pin) -> None:
            store.gather(ids, pin=pin).to(device)

        found = timed(draw, device, turns, seconds) | {"waits": waits(draw, device)}
        result["places"][replay_device] = found
        print(f"{name:<8}replay, {replay_device:<10}{found['ms']['median']:>9.2f} ms a batch", flush=True)
    return result


class Utilisation:
    """Sampler of how busy a GPU is while something runs, as ``nvidia-smi`` reports twice a second."""

    FIELDS = ("utilization.gpu", "memory.used", "power.draw")

    def __init__(self, index: int) -> None:
        self._command = ["nvidia-smi", f"--query-gpu={','.join(self.FIELDS)}", f"--id={index}"]
        self._command.append("--format=csv,noheader,nounits")
        self._samples: list[list[float]] = []

    @contextmanager
    def sampled(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._sample, args=(over,), daemon=True)
        if shutil.which("nvidia-smi"):
            thread.start()
        try:
            yield
        finally:
            over.set()
            if thread.is_alive():
                thread.join()

    def _sample(self, over: threading.Event) -> None:
        while not over.wait(0.5):
            answer = subprocess.run(self._command, capture_output=True, text=True)
            try:
                self._samples.append([float(value) for value in answer.stdout.split(",")])
            except ValueError:  # some devices do not report their power
                continue

    def result(self) -> dict[str, Any] | None:
        if not self._samples:
            return None
        columns = zip(self.FIELDS, zip(*self._samples, strict=True), strict=True)
        return {"samples": len(self._samples)} | {name: spread(list(values)) for name, values in columns}


def run_case(name: str, overrides: list[str], steps: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Measure whole runs with these overrides: their speed, bytes and how busy the GPU was."""
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    usage = Utilisation(device.index or 0)
    runs = []
    for _ in range(repeats):
        with usage.sampled():
            runs.append(training.train([*overrides, f"trainer.accelerator={accelerator}"], steps))
    speed = spread([run["steps_per_s"] for run in runs])
    busy = usage.result() if device.type == "cuda" else None
    of_gpu = f", GPU {busy['utilization.gpu']['median']:.0f} % busy" if busy else ""
    print(f"{name:<32}{speed['median']:>9,.0f} joint steps/s [{speed['min']:,.0f}, {speed['max']:,.0f}]{of_gpu}")
    updates = spread([run["updates_per_s"] for run in runs])
    return {"case": name, "overrides": overrides, "steps": steps, "repeats": repeats, "steps_per_s": speed} | {
        "updates_per_s": updates, "peak_rss_mb": statistics.median(run["peak_rss_mb"] for run in runs),
        "utilisation": busy,
    }  # fmt: skip


def machine_of(device: torch.device, threads: int) -> dict[str, Any]:
    """Return what is known of the machine and the device, and how fast they multiply matrices."""
    found: dict[str, Any] = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "threads": threads,
        "device": device.type,
        "versions": versions() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "gflops_float32": matrix_gflops(torch.float32, device.type),
        "gflops_bfloat16": matrix_gflops(torch.bfloat16, device.type),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gb": properties.total_memory / 1e9}
        found["compute_capability"] = f"{properties.major}.{properties.minor}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny shapes and one short run of the two-step game")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn")
    parser.add_argument("--repeats", type=int, default=3, help="of a whole run")
    parser.add_argument("--steps", type=int, default=60000, help="joint steps of a whole run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no CUDA device; --device cpu --quick runs without one", file=sys.stderr)
        raise SystemExit(2)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    turns, seconds, repeats, steps = options.turns, options.seconds, options.repeats, options.steps
    shapes, runs, base = SHAPES, RUNS, training.RUNS["smax_3m"][1]
    if options.quick:
        turns, seconds, repeats, steps = 2, 0.01, 1, 200
        shapes, runs, base = QUICK_SHAPES, {"policy_on_device": RUNS["policy_on_device"]}, QUICK_RUN
    result = {
        "machine": machine_of(device, options.threads),
        "quick": options.quick,
        "learner": [learner_case(name, shape, device, turns, seconds) for name, shape in shapes.items()],
        "replay": [replay_case(name, shape, device, turns, seconds) for name, shape in shapes.items()],
        "runs": [run_case(name, [*base, *more], steps, repeats, device) for name, more in runs.items()],
    }
    Path(options.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
