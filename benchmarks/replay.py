"""Measure what the replay costs: bytes of an episode, and the time to add one and to draw a batch.

    python benchmarks/replay.py [--capacities 100 1000 5000 50000] [--turns 15] [--output replay.json]

Bytes are those in use once the store is full and has been gone around, for episodes that fill half of their limit,
beside a padded float32 store with one-hot actions (observations, states, rewards and legal actions in 4 bytes each,
actions as int64 and as one-hot float32). ``deaths``: agents die at even intervals, the last one stays alive.

Times are of ``small``, the learner's shape of 5 agents (observation 80, state 120, 11 actions) and 60 steps, at full
length with all agents alive, for batches of 32 episodes. Sampling, adding and an update of recurrent QMIX on a sampled
batch take turns in one process with one thread; a share is that of one turn. Times are those of the processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learner import SHAPES, OurUpdate, our_learner
from specs import spec_of

from qmix_lightning.replay.episode_replay import EpisodeReplay
from qmix_lightning.replay.prioritized import PrioritizedReplay, importance_weights
from qmix_lightning.training.summary import versions
from qmix_lightning.types import EnvSpec, Episode

BATCH = 32


@dataclass(frozen=True)
class Task:
    """Sizes of an environment."""

    agents: int
    actions: int
    obs: int
    state: int
    limit: int
    joined: bool = False
    """The state is the agents' observations joined."""

    def spec(self) -> EnvSpec:
        return spec_of(agents=self.agents, actions=self.actions, obs=self.obs, state=self.state, limit=self.limit)

    def padded_bytes(self) -> int:
        """Return the bytes of an episode in a padded float32 store with one-hot actions."""
        n, a = self.agents, self.actions
        row = 4 * (n * self.obs + self.state + 1 + n * a + n * a) + 8 * n + 8 + 1  # and actions, filled, terminated
        return row * (self.limit + 1)

    def episode(self, length: int, *, deaths: bool = False, seed: int = 0) -> Episode:
        """Return a random episode; with ``deaths`` the agents die one after the other."""
        g = torch.Generator().manual_seed(seed)
        rows, n = length + 1, self.agents
        alive = torch.ones(rows, n, dtype=torch.bool)
        if deaths:
            alive = torch.arange(rows)[:, None] <= length * (torch.arange(n) + 1) / n
        obs = torch.randn(rows, n, self.obs, generator=g).where(alive[..., None], 0.0)
        return Episode(
            obs=obs,
            state=obs.flatten(1) if self.joined else torch.randn(rows, self.state, generator=g),
            avail_actions=torch.rand(rows, n, self.actions, generator=g) > 0.3,
            agent_mask=alive,
            actions=torch.randint(self.actions, (length, n), generator=g),
            reward=torch.randn(length, generator=g),
            terminated=True,
            truncated=False,
        )


SMALL = SHAPES["small"]
TASKS = {
    "3s5z": Task(8, 14, 128, 216, 150),
    "MMM": Task(10, 16, 160, 290, 150),
    "27m_vs_30m": Task(27, 36, 285, 1170, 180),
    "lbf_8x8_2p_3f": Task(2, 6, 15, 30, 50, joined=True),
    "simple_spread": Task(3, 5, 18, 54, 25, joined=True),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
    "float16, deaths": {"dtype": "float16", "deaths": True},
}


def memory() -> list[dict[str, Any]]:
    """Measure the bytes of an episode, for each task and setting."""
    results = []
    width = max(map(len, SETTINGS)) + 2
    print(f"{'task':<16}{'padded kB':>12}" + "".join(f"{f'{name} kB':>{width + 3}}{'share':>8}" for name in SETTINGS))
    for name, task in TASKS.items():
        line = f"{name:<16}{task.padded_bytes() / 1e3:>12,.1f}"
        for setting, options in SETTINGS.items():
            store = EpisodeReplay(task.spec(), capacity := 50, dtype=options["dtype"])
            one = task.episode(task.limit // 2, deaths=options.get("deaths", False))
            for _ in range(2 * capacity + 7):
                store.add(one)
            each = store.nbytes() / capacity
            share = each / task.padded_bytes()
            results.append(
                {"task": name, "setting": setting, "padded": task.padded_bytes(), "bytes": each} | {"share": share}
            )
            line += f"{each / 1e3:>{width + 3},.1f}{share:>8.3f}"
        print(line, flush=True)
    return results


def _status(name: str) -> int:
    """Read a line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def resident(capacity: int) -> dict[str, Any] | None:
    """Measure how much the process grows, at most, while a store is filled and gone around; ``None`` without Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    task = Task(SMALL.agents, SMALL.actions, SMALL.obs, SMALL.state, SMALL.steps)
    one, store = task.episode(task.limit), EpisodeReplay(task.spec(), capacity)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    for _ in range(2 * capacity):
        store.add(one)
    peak = _status("VmHWM") - before
    print(f"\n{capacity:,} episodes of 'small' in float32 use {store.nbytes() / 1e9:.3f} GB; the process grew by "
          f"{peak / 1e9:.3f} GB at most")  # fmt: skip
    return {"episodes": capacity, "bytes": store.nbytes(), "peak": peak}


def timed(call: Callable[[], object], repeats: int) -> float:
    """Return milliseconds of processor time of one call."""
    begun = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - begun) / repeats * 1e3


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the least and the most of ``values``."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def draw_by_priority(store: PrioritizedReplay, keys: Any) -> None:
    """Draw a prioritised batch and its weights, and apply priorities from TD errors."""
    ids, probabilities = store.draw(BATCH, next(keys))
    assert probabilities is not None
    store.gather(ids)
    importance_weights(probabilities, float(probabilities.min()), 0.4)
    store.update_priorities(ids, np.abs(np.sin(ids)) + 0.1)


def speed(capacity: int, dtype: str, prioritized: bool, update: Callable[[], None], turns: int) -> dict[str, Any]:
    """Measure a full store of so many episodes: bytes, and times beside an update of the same run."""
    task = Task(SMALL.agents, SMALL.actions, SMALL.obs, SMALL.state, SMALL.steps)
    given = {"alpha": 0.6, "beta": 0.4, "beta_anneal_steps": None} if prioritized else {}
    store = (PrioritizedReplay if prioritized else EpisodeReplay)(task.spec(), capacity, dtype=dtype, **given)
    episodes = [task.episode(task.limit, seed=i) for i in range(8)]
    for i in range(capacity + capacity // 10):
        store.add(episodes[i % 8])
    keys = count()
    if isinstance(store, PrioritizedReplay):
        draw = partial(draw_by_priority, store, keys)
    else:
        draw = lambda: store.sample(BATCH, next(keys))  # noqa: E731
    timed(draw, 5), timed(update, 1)
    taken: dict[str, list[float]] = {"sample_ms": [], "add_ms": [], "update_ms": []}
    for _ in range(turns):
        taken["sample_ms"].append(timed(draw, 10))
        taken["add_ms"].append(timed(lambda: store.add(episodes[0]), 10))
        taken["update_ms"].append(timed(update, 2))
    shares = [s / u for s, u in zip(taken["sample_ms"], taken["update_ms"], strict=True)]
    return {
        "episodes": capacity,
        "dtype": dtype,
        "kind": "prioritized" if prioritized else "uniform",
        "bytes": store.nbytes(),
        **{name: spread(values) for name, values in taken.items()},
        "share_of_update": spread(shares),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacities", type=int, nargs="*", default=[100, 1000, 5000, 50_000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--output", default="replay.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"memory": memory(), "resident": resident(5000), "speed": []}
    task = Task(SMALL.agents, SMALL.actions, SMALL.obs, SMALL.state, SMALL.steps)
    store = EpisodeReplay(task.spec(), BATCH)
    for i in range(BATCH):
        store.add(task.episode(task.limit, seed=i))
    torch.manual_seed(0)
    update = OurUpdate(our_learner(SMALL), store.sample(BATCH, 0), "32-true")
    columns = f"{'GB':>7}{'add ms':>8}{'sample ms':>11}{'range':>14}{'update ms':>11}{'share':>7}"
    print(f"\n{'episodes':>9}  {'dtype':<9}{'draw':<12}{columns}")
    for dtype in options.dtypes:
        for prioritized in (False, True):
            for capacity in options.capacities:
                row = speed(capacity, dtype, prioritized, update, options.turns)
                results["speed"].append(row)
                sample, share = row["sample_ms"], row["share_of_update"]["median"]
                begin = f"{capacity:>9,}  {dtype:<9}{row['kind']:<12}{row['bytes'] / 1e9:>7.3f}"
                times = f"{sample['median']:>11.2f}{sample['min']:>7.2f}-{sample['max']:<6.2f}"
                end = f"{row['update_ms']['median']:>11.1f}{share:>7.3f}"
                print(f"{begin}{row['add_ms']['median']:>8.3f}{times}{end}", flush=True)
    machine = {"processor": platform.machine(), "torch_threads": 1, "turns": options.turns, "versions": versions()}
    Path(options.output).write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
