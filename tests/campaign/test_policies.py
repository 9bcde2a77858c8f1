"""Hostile policy folders, cards, answers of a hub and files of PyMARL: nothing runs, nothing is written elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qmix_lightning.commands import import_policy
from qmix_lightning.policies.tensors import describe
from qmix_lightning.policies.zoo import zoo_folder
from support import inprocess
from support.containers import places, put
from support.hub import COMMIT, files_of, serve
from support.pymarl import DATA

pytestmark = pytest.mark.campaign

TEXTS = [
    "os.system",
    "evil_module:make",
    "${oc.env:HOME}",
    "${oc.create:{_target_: evil_module.make}}",
    "../../outside",
    "/etc/passwd",
    "http://127.0.0.1/x",
    "\x1b[2J",
    "a" * 100_000,
]
NUMBERS = [-1, 0, 10**9, 10**18, 10**400, 1.5, True, None, [], {"_target_": "evil_module.make"}]


class _Bomb:
    def __reduce__(self) -> Any:
        return (open, ("IT RAN", "w"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "above" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("HF_HOME", str(folder / "cache" / "hf"))
    (folder / "evil_module.py").write_text("open('IT RAN', 'w')\ndef make(*a, **k): open('IT RAN', 'w')\n")
    return folder


def spoil_json(content: dict[str, Any], rng: random.Random, within: str | None = None) -> str:
    """Put a hostile value somewhere."""
    found = [place for place in places(content) if within is None or place[0] == within]
    place, value = rng.choice(found), rng.choice([rng.choice(TEXTS), rng.choice(NUMBERS)])
    put(content, place, value)
    return f"{'.'.join(map(str, place))}={str(value)[:40]!r}"


def spoil_tensors(path: Path, rng: random.Random) -> str:
    """Spoil a file of tensors."""
    kind = rng.choice(["pickle", "header", "overlap", "cut", "link", "empty"])
    content = path.read_bytes()
    if kind == "pickle":
        torch.save(_Bomb(), path)
    elif kind == "header":
        path.write_bytes(struct.pack("<Q", 2**60) + content[8:])
    elif kind == "overlap":
        header = {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}, "__metadata__": {"y": "z"}}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "link":
        path.unlink()
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes(b"")
    return kind


def spoiled_folder(work: Path, rng: random.Random) -> str:
    """A copy of a policy folder, one thing in it made hostile and its hashes made to fit."""
    shutil.copytree(zoo_folder("two_step"), work / "team")
    path = work / "team" / "policy.json"
    content = json.loads(path.read_text())
    if rng.random() < 0.6:
        said = spoil_json(content, rng)
    else:
        name = rng.choice(["policy.safetensors", "learner.safetensors"])
        said = f"{name} {spoil_tensors(work / 'team' / name, rng)}"
        with contextlib.suppress(OSError):
            content["files"][name] = describe(work / "team" / name)
    path.write_text(json.dumps(content))
    return said


def spoiled_card(work: Path, rng: random.Random) -> str:
    shutil.copytree(zoo_folder("two_step"), work / "team")
    path = work / "team" / "policy.json"
    content = json.loads(path.read_text())
    said = spoil_json(content, rng, "card")
    path.write_text(json.dumps(content))
    return said


def spoiled_pymarl(work: Path, rng: random.Random) -> str:
    shutil.copytree(DATA / "dying_agents", work / "theirs")
    name = rng.choice(["agent.th", "mixer.th", "opt.th", "config.json"])
    path = work / "theirs" / name
    if name == "config.json":
        content = json.loads(path.read_text())
        said = spoil_json(content, rng)
        path.write_text(json.dumps(content))
        return f"{name} {said}"
    kind = rng.choice(["pickle", "inside", "name", "shape", "nan", "link", "cut", "view"])
    content = torch.load(path, weights_only=True)
    first = next(iter(content))
    if kind == "pickle":
        content = _Bomb()
    elif kind == "inside":
        content["extra"] = _Bomb()
    elif kind == "name":
        content[rng.choice(TEXTS)] = content.pop(first)
    elif kind == "shape":
        content[first] = torch.zeros(3, 1, 2)
    elif kind == "nan":
        content[first] = torch.full((2, 2), np.nan)
    elif kind == "view":
        content[first] = torch.zeros(1).expand(10**12)
    torch.save(content, path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[: rng.randrange(100, 1000)])
    elif kind == "link":
        path.unlink()
        path.symlink_to("/etc/passwd")
    return f"{name} {kind}"


def import_it(_: Path) -> inprocess.Outcome:
    typed = ["pymarl", "theirs", "env=pettingzoo", "env.id=support.pymarl:OfItsSizes", "output=imported"]
    return inprocess.without_hydra("qmix-import", import_policy._import, typed)


def evaluate_it(_: Path) -> inprocess.Outcome:
    return inprocess.command(["team", "episodes=2", "seed=1", "num_envs=1"], "evaluate")


def spoiled_hub(work: Path, rng: random.Random) -> str:
    """A folder to be served, and what its hub lies about."""
    said = spoiled_folder(work, rng) if rng.random() < 0.5 else "a whole folder"
    if not (work / "team").exists():
        shutil.copytree(zoo_folder("two_step"), work / "team")
    (work / "team" / "evil.py").write_text("open('IT RAN', 'w')")
    commit = rng.choice([COMMIT, COMMIT, "../../outside", "x" * 10_000, "HEAD"])
    (work / "team" / "commit").write_text(commit)
    return f"{said}, commit {commit[:20]}"


def fetch_it(work: Path) -> inprocess.Outcome:
    team = work / "team"
    files = {name: content for name, content in files_of(team).items() if not (team / name).is_symlink()}
    shutil.rmtree(team)
    with serve(files) as hub:
        hub.commit = files.pop("commit").decode()
        os.environ["HF_ENDPOINT"] = hub.endpoint
        try:
            return inprocess.command(["policy=hf://owner/name", "episodes=2", "seed=1", "num_envs=1"], "evaluate")
        finally:
            del os.environ["HF_ENDPOINT"]


Kind = tuple[int, Callable[[Path, random.Random], str], Callable[[Path], inprocess.Outcome]]
KINDS: dict[str, Kind] = {
    "policy folders": (25, spoiled_folder, evaluate_it),
    "cards": (10, spoiled_card, evaluate_it),
    "hub answers": (10, spoiled_hub, fetch_it),
    "files of PyMARL": (15, spoiled_pymarl, import_it),
}
"""Part of the campaign -> how many, what is spoiled, and the command that reads it."""


@pytest.mark.parametrize("part", KINDS)
def test_hostile_policies(campaign: Any, work: Path, part: str):
    number, spoil, command = KINDS[part]
    for case in range(campaign.number(number)):
        for name in ("team", "theirs", "imported", "cache"):
            shutil.rmtree(work / name, ignore_errors=True)
        said = spoil(work, random.Random(f"{campaign.seed}:{part}:{case}"))
        outcome = command(work)
        with campaign.case(part, f"#{case} {said}: {outcome}"):
            left = {path.name for path in work.iterdir()} - {"team", "theirs", "imported", "cache"}
            assert left == {"evil_module.py"}, "nothing ran, and nothing was written elsewhere"
            assert list(work.parents[1].rglob("outside")) == []
            assert "\x1b" not in outcome.out + outcome.err
            if outcome.status:
                inprocess.check_line(outcome)
                campaign.count(part, "refused")
            else:
                campaign.count(part, "without effect")
    campaign.check()
