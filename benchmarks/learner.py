"""Measure how fast the learner is, beside a plain one in the same run.

    python benchmarks/learner.py [--cases small large ...] [--turns 15] [--output learner.json]
    python benchmarks/learner.py --threads 1 2     # on one core, then on both
    python benchmarks/learner.py --growth          # agents 2 to 64, episode length 25 to 400
    python benchmarks/learner.py --device cuda     # the same on a GPU

An update of recurrent QMIX (hidden 64, mixer 32, hypernetworks of two layers of 64, double Q): loss, gradient, clipping
and a step of RMSprop, on a batch of 32 episodes that is sampled already. ``plain`` is the textbook learner of
``plain.py``; both start from the same weights, and their first losses are compared before anything is timed. The
learners take turns, so that ratios hold on a machine that does other work too; a turn's ratio is that of its own
timings. Torch uses one thread unless set otherwise; with more, time passes for all of them, and only a quiet machine
gives figures.

Cases: ``small`` is 32 x 60 steps, 5 agents, observation 80, state 120, 11 actions; ``large`` is 32 x 120 steps, 27
agents, observation 285, state 1199, 36 actions; both at full length with all agents alive. ``smax_3m`` and
``lbf_8x8_2p_3f`` are batches of real episodes, lengths and deaths as they come after some training; there the plain
learner pads to the longest episode of the batch, and ``full`` is our learner on the same batch with nothing left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from plain import PlainBatch, PlainLearner
from specs import spec_of
from torch import nn

from qmix_lightning.algorithms.q_learning import QLearning
from qmix_lightning.build import build_run
from qmix_lightning.components import build_learner
from qmix_lightning.config.run_config import RunConfig, validate
from qmix_lightning.runtime.resources import keep_freed_memory
from qmix_lightning.training.summary import versions
from qmix_lightning.types import TrajectoryBatch

HIDDEN, EMBED, HYPERNET = 64, 32, 64


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch, in the order of the axes."""

    episodes: int
    steps: int
    agents: int
    actions: int
    obs: int
    state: int

    @property
    def gflop(self) -> float:
        """Return the GFLOP that the matrix products of one update need at full length.

        Forward thrice (online, target, and the gradient of the weights) and once more for the gradient of what flows
        between layers.
        """
        inputs = self.obs + self.actions + self.agents
        first, inner = inputs * HIDDEN, 6 * HIDDEN * HIDDEN + HIDDEN * self.actions
        rows = self.episodes * (self.steps + 1) * self.agents
        hyper = self.state * (2 * HYPERNET + 2 * EMBED)
        mixing = HYPERNET * EMBED * (self.agents + 1) + EMBED + self.agents * EMBED + EMBED
        return 2e-9 * (rows * (3 * first + 4 * inner) + self.episodes * self.steps * (3 * hyper + 4 * mixing))


SHAPES = {"small": Shape(32, 60, 5, 11, 80, 120), "large": Shape(32, 120, 27, 36, 285, 1199)}
REAL = {"smax_3m": 400_000, "lbf_8x8_2p_3f": 500_000}
"""Environment steps of training before the batch is drawn: both play well by then."""
PEER_MS = {"small": 64.6, "large": 695.0}
"""PyMARL's update at one thread on a machine that multiplied matrices at 95 GFLOP/s."""
PEER_GFLOPS = 95.0


def random_batch(shape: Shape) -> TrajectoryBatch:
    """Return random full episodes, every agent alive, most actions legal."""
    b, t, n, a = shape.episodes, shape.steps, shape.agents, shape.actions
    avail = torch.rand(b, t + 1, n, a) > 0.3
    avail[..., 0] = True
    never = torch.zeros(b, t, dtype=torch.bool)
    ends = never.clone()
    ends[:, -1] = True
    return TrajectoryBatch(
        obs=torch.randn(b, t + 1, n, shape.obs),
        state=torch.randn(b, t + 1, shape.state),
        avail_actions=avail,
        agent_mask=torch.ones(b, t + 1, n, dtype=torch.bool),
        actions=torch.where(avail[:, :-1], torch.rand(b, t, n, a), -1.0).argmax(-1),
        reward=torch.randn(b, t),
        terminated=ends,
        truncated=never,
        filled=~never,
    )


def shape_of(batch: TrajectoryBatch) -> Shape:
    """Return the sizes of a batch."""
    b, t, n = batch.actions.shape
    return Shape(b, t, n, batch.avail_actions.shape[-1], batch.obs.shape[-1], batch.state.shape[-1])


def configuration(*overrides: str) -> RunConfig:
    """Return the configuration that a command line with these overrides would have."""
    with initialize_config_module("qmix_lightning.conf", version_base=None):
        composed = compose("train", list(overrides))
    return validate(OmegaConf.to_container(composed, resolve=True))


def our_learner(shape: Shape) -> QLearning:
    """Make this package's learner of recurrent QMIX for a shape."""
    spec = spec_of(agents=shape.agents, actions=shape.actions, obs=shape.obs, state=shape.state)
    learner = build_learner(configuration("preset=pymarl", "algorithm=qmix", "agent=recurrent"), spec)
    assert isinstance(learner, QLearning)
    return learner


def plain_learner(shape: Shape, ours: QLearning) -> PlainLearner:
    """Make the plain learner with our weights."""
    plain = PlainLearner(
        n_agents=shape.agents,
        n_actions=shape.actions,
        obs_dim=shape.obs,
        state_dim=shape.state,
        hidden_dim=HIDDEN,
        embed_dim=EMBED,
        hypernet_dim=HYPERNET,
    )
    agent: Any = ours.policy.agent
    pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
    for mine, layer in ((plain.agent.encode, agent.encode), (plain.agent.decode, agent.head)):
        pairs += [(mine.weight, layer.weight), (mine.bias, layer.bias)]
    cell = plain.agent.cell
    for mine, theirs in ((("weight_ih", "bias_ih"), agent.input_gates), (("weight_hh", "bias_hh"), agent.state_gates)):
        pairs += [(getattr(cell, mine[0]), theirs.weight), (getattr(cell, mine[1]), theirs.bias)]
    mixers = dict(ours.mixer.named_parameters())
    pairs += [(p, mixers[name]) for name, p in plain.mixer.named_parameters()]
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs.reshape(mine.shape))
    plain.target_agent.load_state_dict(plain.agent.state_dict())
    plain.target_mixer.load_state_dict(plain.mixer.state_dict())
    return plain


class OurUpdate:
    """Update of our learner on one batch: what the module does for it, without Lightning around it."""

    def __init__(self, learner: QLearning, batch: TrajectoryBatch, precision: str) -> None:
        self.learner = learner
        self.batch = batch
        self.precision = precision
        self.optimizer = torch.optim.RMSprop(learner.parameter_groups(), lr=5e-4, alpha=0.99, eps=1e-5, foreach=True)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def loss(self) -> torch.Tensor:
        device = self.batch.obs.device.type
        low = torch.autocast(device, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()
        with low:
            terms = self.learner.loss(self.batch)
        return terms.total / terms.count

    def __call__(self) -> None:
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()


def real_batch(name: str, train_steps: int) -> TrajectoryBatch:
    """Return 32 episodes from the replay of the task's own recipe after ``train_steps`` environment steps."""
    silent = ("logger=none", "trainer.enable_progress_bar=false", "trainer.limit_val_batches=0")
    steps = (f"total_env_steps={train_steps}", f"eval_interval={train_steps}", f"checkpoint_interval={train_steps}")
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(configuration(f"experiment={name}", *silent, *steps, f"run_dir={folder}"), Path(folder))
        try:
            run.trainer.fit(run.module, datamodule=run.data)
            return run.data.replay.sample(32, key=1)
        finally:
            run.data.teardown("fit")


def completed(batch: TrajectoryBatch) -> TrajectoryBatch:
    """Return the same batch as if every episode were as long as the longest and nobody died."""
    full = batch.map(torch.clone)
    for mask in (full.filled, full.agent_mask):
        mask.fill_(True)
    return full


def matrix_gflops(dtype: torch.dtype, device: str) -> float:
    """Return the best rate of a product of two square matrices, in GFLOP/s."""
    size = 1024 if device == "cpu" else 8192
    a, b, c = (torch.rand(size, size).to(device, dtype) for _ in range(3))
    best = float("inf")
    for _ in range(10):
        start = clock(device)
        torch.mm(a, b, out=c)
        best = min(best, clock(device) - start)
    return 2 * size**3 / best / 1e9


def clock(device: str) -> float:
    """Return seconds of a clock: the processor's for one thread, else those that pass.

    The processor's leave out what others take on a busy machine. Of one thread on an idle machine the two are the same.
    """
    if device == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(
    updates: dict[str, Callable[[], object]], turns: int, seconds: float, device: str = "cpu"
) -> dict[str, list[float]]:
    """Measure milliseconds of an update of each, in turns of about ``seconds``."""
    repeats = {}
    for name, update in updates.items():
        update()
        begun = clock(device)
        update()
        repeats[name] = max(1, round(seconds / (clock(device) - begun)))
    taken: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(turns):
        for name, update in updates.items():
            begun = clock(device)
            for _ in range(repeats[name]):
                update()
            taken[name].append((clock(device) - begun) / repeats[name] * 1e3)
    return taken


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the least and the most of ``values``."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Return the spread of the ratios of the two timings of each turn."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def measure(name: str, batch: TrajectoryBatch, turns: int, seconds: float, device: str) -> dict[str, Any]:
    """Time one case; refuses to if the learners do not compute the same."""
    shape = shape_of(batch)
    ours = our_learner(shape)
    plain, plain_batch = plain_learner(shape, ours), PlainBatch.of(batch)
    updates = {precision: OurUpdate(copy.deepcopy(ours), batch, precision) for precision in ("float32", "bf16-mixed")}
    everyone = replace(batch, agent_mask=batch.row_valid()[..., None].expand_as(batch.agent_mask))
    check = OurUpdate(ours, everyone, "float32").loss().item()
    expected = plain.loss(PlainBatch.of(everyone)).item()
    if abs(check - expected) > 1e-4 * abs(expected):
        raise RuntimeError(f"{name}: the loss is {check}, the plain one {expected}")
    calls: dict[str, Callable[[], object]] = {"plain": partial(plain.update, plain_batch), **updates}
    if name in REAL:
        calls["full"] = OurUpdate(copy.deepcopy(ours), completed(batch), "float32")
    taken = take_turns(calls, turns, seconds, device)
    gflops = matrix_gflops(torch.float32, device)
    alive = batch.agent_mask & batch.row_valid()[..., None]
    result: dict[str, Any] = {
        "case": name,
        "threads": torch.get_num_threads(),
        "shape": asdict(shape),
        "episode_length": spread(batch.filled.sum(1).float().tolist()),
        "filled": batch.filled.float().mean().item(),
        "alive": alive.float().mean().item(),
        "gflops_float32": gflops,
        "gflops_bfloat16": matrix_gflops(torch.bfloat16, device),
        "floor_ms": shape.gflop / gflops * 1e3,
        "ms": {key: spread(values) for key, values in taken.items()},
        "faster_than_plain": {key: ratio(taken["plain"], taken[key]) for key in updates},
    }
    if name in PEER_MS and device == "cpu" and torch.get_num_threads() == 1:
        peer = PEER_MS[name] * PEER_GFLOPS / gflops
        result["plain_to_pymarl_scaled"] = statistics.median(taken["plain"]) / peer
    if name in REAL:
        result["faster_than_full"] = ratio(taken["full"], taken["float32"])
    return result


def show(result: dict[str, Any]) -> None:
    """Print the result of one case as a row of the table."""
    ms, faster = result["ms"], result["faster_than_plain"]
    print(
        f"{result['case']:<20}{result['threads']:>8}{ms['plain']['median']:>9.1f}{ms['float32']['median']:>9.1f}"
        f"{ms['bf16-mixed']['median']:>9.1f}{result['floor_ms']:>9.1f}",
        *(f"{faster[p]['median']:>7.2f} [{faster[p]['min']:.2f}, {faster[p]['max']:.2f}]" for p in faster),
        sep="",
        flush=True,
    )
    if "plain_to_pymarl_scaled" in result:
        print(f"    plain is {result['plain_to_pymarl_scaled']:.2f} of PyMARL's time, scaled by the matrix product")
    if "faster_than_full" in result:
        gain = result["faster_than_full"]
        print(
            f"    {result['filled']:.0%} of steps filled, {result['alive']:.0%} of agents' steps alive; float32 is "
            f"{gain['median']:.2f} [{gain['min']:.2f}, {gain['max']:.2f}] times faster than with everything computed"
        )


def growth_cases() -> dict[str, Shape]:
    """Return the small case with one size changed, by name."""
    small = SHAPES["small"]
    agents = {f"agents_{n}": replace(small, agents=n) for n in (2, 4, 8, 16, 32, 64)}
    return agents | {f"steps_{t}": replace(small, steps=t) for t in (25, 50, 100, 200, 400)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[*SHAPES, *REAL], choices=[*SHAPES, *REAL])
    parser.add_argument("--growth", action="store_true", help="the small case with other sizes, instead of the cases")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn of one learner")
    parser.add_argument("--train-steps", type=int, help=f"environment steps before real episodes; {REAL} by default")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1], help="torch's threads; several: one after another"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", default="learner.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads[0])
    torch.set_default_device(options.device)
    keep_freed_memory()
    results: list[dict[str, Any]] = []
    print(
        f"{'case':<20}{'threads':>8}{'plain ms':>9}{'ours ms':>9}{'bf16 ms':>9}{'floor ms':>9}"
        f"{'faster [spread]':>20}{'bf16':>8}"
    )
    for name, shape in growth_cases().items() if options.growth else [(n, SHAPES.get(n)) for n in options.cases]:
        torch.manual_seed(0)
        with torch.device("cpu"):  # moved as in training, so that the host keeps the masks
            batch = random_batch(shape) if shape else real_batch(name, options.train_steps or REAL[name])
        batch = batch.to(torch.device(options.device))
        for threads in options.threads:
            torch.set_num_threads(threads)
            results.append(measure(name, batch, options.turns, options.seconds, options.device))
            show(results[-1])
        torch.set_num_threads(options.threads[0])
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "load": os.getloadavg(),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": versions(),
    }
    Path(options.output).write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
