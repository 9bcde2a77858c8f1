"""The files that one update runs through are those that docs/reading.md names, phase by phase."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import qmix_lightning
import qmix_lightning.envs
from qmix_lightning.components import build_learner, env_maker
from qmix_lightning.replay.factory import make_store
from qmix_lightning.replay.sampler import ReplaySampler
from qmix_lightning.rollout.collector import Collector
from qmix_lightning.types import Episode
from support.compositions import run_config

ROOT = Path(__file__).parent.parent
PHASES = ("a joint step", "store and draw", "learn")


def named() -> dict[str, set[str]]:
    """Phase -> files, from the table of the page."""
    text = (ROOT / "docs" / "reading.md").read_text()
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (`.+`) \|$", text, re.MULTILINE))
    return {phase: set(re.findall(r"`([^`]+)`", rows[phase])) for phase in PHASES}


def files_of(run: Callable[[], Any]) -> set[str]:
    """The project's files in which something is called while ``run`` runs."""
    roots = {next(iter(qmix_lightning.envs.__path__)): "envs/", str(Path(qmix_lightning.__file__).parent): ""}
    found: set[str] = set()

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        for root, prefix in roots.items():
            if event == "call" and name.startswith(root):
                found.add(prefix + name[len(root) + 1 :])
                return

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


def test_the_page_names_the_files_of_one_update(tmp_path: Path):
    config = run_config("preset=pymarl", "env=mpe", "algorithm=qmix", "replay.batch_size=4")
    env = env_maker(config.env)(1)
    learner = build_learner(config, env.spec)
    collector = Collector(env, learner.policy, seed=1, rank=0)
    store = make_store(config.replay, env.spec, 1, tmp_path)
    sampler = ReplaySampler(store, share=4, seed=1, rank=0)
    store.extend([episode for _ in range(4) for episode in collector.collect(0.5).episodes])
    cpu = torch.device("cpu")

    def learn() -> None:
        learner.observe(batch)
        terms = learner.loss(batch)
        (terms.total / terms.count).backward()
        learner.after_update(episodes=1, updates=1)

    episodes: list[Episode] = []
    measured = {"a joint step": files_of(lambda: episodes.extend(collector.collect(0.5).episodes))}
    measured["store and draw"] = files_of(lambda: (store.extend(episodes), sampler.draw(1, 100, cpu)))
    batch = sampler.draw(2, 100, cpu)[0]
    measured["learn"] = files_of(learn)
    env.close()
    assert named() == measured
    assert len(set().union(*named().values())) == 29
    assert "29 files" in (ROOT / "docs" / "reading.md").read_text()
