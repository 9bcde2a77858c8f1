"""Measure what a run's parts cost here, and compute what that makes of many environments on many nodes.

    python -W ignore benchmarks/scale.py [--turns 5] [--output scale.json]
    python -W ignore benchmarks/scale.py --envs 1000 --nodes 50 --bandwidth 125e6

Level-based foraging 8x8-2p-3f by its own recipe, QMIX, one torch thread: bytes of an episode's arrays, time of a
joint step with acting, bytes and time of a publication of the policy, and times of adding an episode, of drawing a
batch and of an update on all of it and on half. Times are the processor's, medians of turns. From them a round, in
which every environment plays an episode, is simulated for numbers of nodes and of steps that an update is bought by:
each node has one core that collects, one learner takes episodes in and updates meanwhile. What a node more costs in
start-up, faults and unequal episodes is not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from learner import OurUpdate, configuration

from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.build import build_run
from qmix_lightning.components import env_maker
from qmix_lightning.rollout.collectors import make_collector
from qmix_lightning.training.summary import versions
from qmix_lightning.types import Episode


@dataclass(frozen=True)
class Costs:
    """What was measured; times in seconds of the processor."""

    episode_steps: float
    episode_bytes: float
    step_s: float
    weight_bytes: int
    publish_s: float
    insert_s: float
    sample_s: float
    update_s: float
    half_update_s: float


@dataclass(frozen=True)
class Round:
    """Seconds of the parts of one round, in which every environment plays an episode; its bytes."""

    publish_s: float
    collect_s: float
    transfer_s: float
    insert_s: float
    update_s: float
    steps: float
    round_bytes: float

    @property
    def steps_per_s(self) -> float:
        """Environment steps a second where updates go on while the next round is collected."""
        return self.steps / max(self.publish_s + self.collect_s + self.transfer_s, self.insert_s + self.update_s)

    @property
    def bound(self) -> str:
        """Return what the round waits for most."""
        parts = {"collecting": self.collect_s, "network": self.publish_s + self.transfer_s, "learner": self.update_s}
        return max({**parts, "adding": self.insert_s}.items(), key=lambda part: part[1])[0]


def spent(action: Callable[[], object], times: int) -> float:
    """Return the processor time of one call, in seconds."""
    began = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - began) / times


def bytes_of(episode: Episode) -> int:
    """Return the bytes of an episode's arrays, without the rest of what they are views of."""
    return sum(value.nbytes for value in vars(episode).values() if isinstance(value, torch.Tensor))


def measure(turns: int) -> Costs:
    """Measure every part by turns."""
    torch.set_num_threads(1)
    silent = ("logger=none", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "rollout.num_envs=20")
    with tempfile.TemporaryDirectory() as folder:
        config = configuration("experiment=lbf_8x8_2p_3f", *silent, f"run_dir={folder}")
        run = build_run(config, Path(folder))
        learner, data = run.module.learner, run.data
        assert isinstance(learner, QLearning)
        env = env_maker(config.env)(config.rollout.num_envs)
        collector = make_collector(env, learner.policy, seed=1, rank=0, round_episodes=None, policy_device=None)
        try:
            episodes, steps, stepping = [], 0, []
            for _ in range(turns):
                before, began, fresh = steps, time.process_time(), []
                while steps - before < 2000:
                    collected = collector.collect(0.3)
                    fresh += collected.episodes
                    steps += collected.env_steps
                stepping.append((time.process_time() - began) / (steps - before))
                episodes += fresh
            data.replay.extend(episodes)
            batch = data.replay.sample(data.batch_size, key=1)
            half = batch.map(lambda values: values[: data.batch_size // 2])
            updates = [OurUpdate(learner, rows, "32-true") for rows in (batch, half)]
            actions = {
                "publish_s": (lambda: collector.publish(learner.policy), 50),
                "insert_s": (lambda: data.replay.extend(episodes[:50]), 1),
                "sample_s": (lambda: data.replay.sample(data.batch_size, key=1), 20),
                "update_s": (updates[0], 5),
                "half_update_s": (updates[1], 5),
            }
            times = {name: [spent(*action) for _ in range(turns)] for name, action in actions.items()}
        finally:
            env.close()
            data.teardown("fit")
    median = {name: statistics.median(values) for name, values in times.items()}
    median["insert_s"] /= 50
    weights = sum(value.numel() * value.element_size() for value in learner.policy.state_dict().values())
    return Costs(
        episode_steps=statistics.mean(episode.length for episode in episodes),
        episode_bytes=statistics.mean(bytes_of(episode) for episode in episodes),
        step_s=statistics.median(stepping),
        weight_bytes=weights,
        **median,
    )


def simulate(costs: Costs, envs: int, nodes: int, steps_per_update: float, bandwidth: float) -> Round:
    """Return the parts of a round of ``envs`` environments, one collecting core a node and one learner for all."""
    steps, received = envs * costs.episode_steps, envs * costs.episode_bytes
    return Round(
        publish_s=costs.publish_s + nodes * costs.weight_bytes / bandwidth,
        collect_s=steps / nodes * costs.step_s,
        transfer_s=received / bandwidth,
        insert_s=envs * costs.insert_s,
        update_s=steps / steps_per_update * (costs.update_s + costs.sample_s),
        steps=steps,
        round_bytes=received,
    )


def rows(costs: Costs, envs: int, bandwidth: float) -> list[dict[str, object]]:
    """Return what bounds ``envs`` environments, by the number of nodes and the steps that an update is bought by."""
    found = []
    for nodes in (1, 2, 5, 10, 50, 200):
        for steps_per_update in (costs.episode_steps, 1_000, 10_000, 50_000):
            one = simulate(costs, envs, nodes, steps_per_update, bandwidth)
            row = {"nodes": nodes, "steps_per_update": steps_per_update, "steps_per_s": round(one.steps_per_s)}
            found.append(row | {"bound": one.bound, "round_s": round(one.steps / one.steps_per_s, 3)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--envs", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--bandwidth", type=float, default=125e6, help="bytes a second into the learner")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    costs = measure(arguments.turns)
    one = simulate(costs, arguments.envs, arguments.nodes, costs.episode_steps, arguments.bandwidth)
    one_node_s = 1 / costs.step_s
    breaks = {
        "updates a second of one learner": 1 / (costs.update_s + costs.sample_s),
        "steps an update has to be worth for the learner to keep up": (costs.update_s + costs.sample_s)
        * one_node_s
        * arguments.nodes,
        "nodes whose episodes fill the bandwidth": arguments.bandwidth
        / (one_node_s / costs.episode_steps * costs.episode_bytes),
        "nodes whose episodes one replay can add": costs.step_s * costs.episode_steps / costs.insert_s,
        "publications a second that fill the bandwidth": arguments.bandwidth / (arguments.nodes * costs.weight_bytes),
    }
    report = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": versions("lbf"),
        "costs": asdict(costs),
        "round": {"envs": arguments.envs, "nodes": arguments.nodes, **asdict(one)},
        "breaks": breaks,
        "simulated": rows(costs, arguments.envs, arguments.bandwidth),
    }
    print(json.dumps(report, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
