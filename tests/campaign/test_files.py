"""Damaged and hostile files: nothing is silently wrong, nothing runs, nothing is written elsewhere."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qmix_lightning.checkpoint.files import read_checkpoint
from qmix_lightning.errors import CheckpointError
from support import inprocess, runs

pytestmark = pytest.mark.campaign

BUDGET = 200
SETTINGS = [a for a in inprocess.TINY if not a.startswith(("logger", "total_env_steps"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that stopped at 60 steps, and one that went on from there, undisturbed, to the end."""
    folder = tmp_path_factory.mktemp("made")
    inprocess.succeed([f"run_dir={folder}/run", *SETTINGS, "total_env_steps=60"])
    shutil.copytree(folder / "run", folder / "whole")
    inprocess.succeed([f"run_dir={folder}/whole", "ckpt_path=last", f"total_env_steps={BUDGET}"])
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a copy of the run, and a marker that code from a file would make."""
    folder = tmp_path / "work"
    shutil.copytree(made / "run", folder / "run")
    monkeypatch.chdir(folder)
    (folder / "evil_module.py").write_text("open('IT RAN', 'w')\ndef make(*a, **k): open('IT RAN', 'w')\n")
    return folder


class _TookTooLong(BaseException):
    pass


def within(seconds: int, call: Callable[[], inprocess.Outcome]) -> inprocess.Outcome:
    """Run a command in this process; one that hangs fails the test."""

    def give_up(*_: Any) -> None:
        raise _TookTooLong

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        return call()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# -- damage --------------------------------------------------------------------------------------------------------


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def _noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.randrange(4096)))


def _zeros(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    length = rng.randrange(1, 4096)
    content[start : start + length] = bytes(len(content[start : start + length]))
    path.write_bytes(content)


def _remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def _no_permission(path: Path, rng: random.Random) -> None:
    path.chmod(0)


DAMAGE = [_flip, _flip, _flip, _cut, _noise, _zeros, _remove, _folder, _empty, _no_permission]


def test_damage(campaign, made: Path, work: Path):
    """A run that goes on ends as the undisturbed one; one that does not says why."""
    rng = campaign.rng("damage")
    part = "damaged files and folders"
    for _ in range(campaign.number(200)):
        shutil.rmtree(work / "run", ignore_errors=True)
        shutil.copytree(made / "run", work / "run")
        files = sorted(path for path in (work / "run").rglob("*") if path.is_file() and "events" not in path.name)
        chosen = rng.sample(files, rng.choice([1, 1, 2]))
        done = []
        for path in chosen:
            damage = rng.choice(DAMAGE)
            damage(path, rng)
            done.append(f"{damage.__name__} {path.relative_to(work)}")
        useless = any(path.name == "last.ckpt" and not _is_readable(path) for path in chosen)
        with campaign.case(part, done):
            typed = ["run_dir=run", "ckpt_path=last", f"total_env_steps={BUDGET}"]
            outcome = within(120, lambda typed=typed: inprocess.command(typed))
            if outcome.status:
                inprocess.check_line(outcome)
                campaign.count(part, "ended with a line")
                continue
            _assert_same(made / "whole", work / "run", rows="metrics.csv" not in " ".join(done))
            campaign.count(part, "went on and said what was wrong" if outcome.err else "without effect")
            assert outcome.err or not useless, "a checkpoint that cannot be read was passed over in silence"
    campaign.check()


def _is_readable(path: Path) -> bool:
    """Return whether a file opens as a checkpoint: what a bit of a date in its archive says, say, matters to nobody."""
    try:
        read_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _assert_same(left: Path, right: Path, *, rows: bool) -> None:
    if rows:
        runs.assert_same_run(left, right)
        return
    a, b = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (left, right))
    for key, value in a["state_dict"].items():
        same = torch.equal(value, b["state_dict"][key]) if isinstance(value, torch.Tensor) else True
        assert same, f"{key} differs"


# -- hostile -------------------------------------------------------------------------------------------------------

ABSOLUTE = "/outside"
"""Stands for that folder beside the working folder, by its whole path."""
EVIL_TARGETS = [
    {"_target_": "os.system", "command": "touch 'IT RAN'"},
    {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["IT RAN"]}},
    {"_target_": "evil_module.make"},
    {"_target_": "builtins.exec", "_args_": ["open('IT RAN', 'w')"]},
    {"_target_": "torch.load", "f": "run/evil.pt", "weights_only": False},
    {"_target_": "pytorch_lightning.loggers.TensorBoardLogger", "save_dir": "../outside", "name": ABSOLUTE},
    {"_target_": "pytorch_lightning.loggers.TensorBoardLogger", "save_dir": "run", "name": "NAME"},
]
INTERPOLATIONS = [
    "${oc.create:{_target_: torch.load, f: run/evil.pt, weights_only: false}}",
    "${oc.create:{_target_: evil_module.make}}",
    "${oc.env:HOME}",
    "${oc.decode:1}",
    "${now:%Y}",
    "${hydra:runtime.cwd}",
    "x${seed}",
]
TEXTS = [
    ABSOLUTE,
    "../outside",
    "https://example.org/x",
    "a.b:c",
    "evil_module:make",
    "\x1b[2J",
    "a\nb",
    "~",
    "\0",
]
NUMBERS = [-1, 0, 10**9, 10**15, 2**63, -(2**70), float("nan"), float("inf"), True, None, "1", [], {}]


def _paths_of(tree: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every leaf of nested containers that is not a tensor."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _paths_of(value, (*prefix, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _paths_of(value, (*prefix, i))
    elif not isinstance(tree, torch.Tensor):
        yield prefix


def _outside() -> str:
    return str(Path.cwd().parent / "outside")


def _put(tree: Any, way: tuple[Any, ...], value: Any) -> None:
    for step in way[:-1]:
        tree = tree[step]
    tree[way[-1]] = _outside() if value is ABSOLUTE else value


def _hostile_config(payload: dict[str, Any], rng: random.Random) -> str:
    config = payload["config"]
    kind = rng.randrange(5)
    if kind == 0:
        group, target = rng.choice(["logger", "callbacks"]), dict(rng.choice(EVIL_TARGETS))
        if target.get("name") == "NAME":
            target["name"] = rng.choice(INTERPOLATIONS)
        elif target.get("name") == ABSOLUTE:
            target["name"] = _outside()
        config[group] = {rng.choice(["tensorboard", "q_table", "mine"]): target}
        return f"{group} {target}"
    if kind == 1:
        ways = [way for way in _paths_of(config) if len(way) > 1]
        way, value = rng.choice(ways), rng.choice(INTERPOLATIONS)
    elif kind == 2:
        way, value = rng.choice(list(_paths_of(config))), rng.choice(TEXTS)
    elif kind == 3:
        way, value = rng.choice(list(_paths_of(config))), rng.choice(NUMBERS)
    else:
        way = rng.choice([("env", "id"), ("env", "module"), ("env", "name"), ("trainer", "model_registry"), ("x", "y")])
        config.setdefault(way[0], {})
        value = rng.choice(TEXTS)
    _put(config, way, value)
    return f"config.{'.'.join(map(str, way))} = {value!r}"


def _hostile_numbers(payload: dict[str, Any], rng: random.Random) -> str:
    parts = {key: value for key, value in payload.items() if key not in ("config", "state_dict")}
    way, value = rng.choice(list(_paths_of(parts))), rng.choice([*NUMBERS, *TEXTS[:3]])
    _put(payload, way, value)
    return f"{way} = {value!r}"


def _hostile_references(payload: dict[str, Any], rng: random.Random) -> str:
    """A small list that is more than there is memory for once it is copied or printed, or that holds itself."""
    value: list[Any] = ["x"]
    for _ in range(18):
        value = [value] * 9
    if rng.random() < 0.3:
        value.append(value)
    parts = {key: inner for key, inner in payload.items() if key != "state_dict"}
    way = rng.choice(list(_paths_of(parts)))
    _put(payload, way, value)
    return f"{way} = a list that refers to its own parts"


def _hostile_tensor(payload: dict[str, Any], rng: random.Random) -> str:
    name = rng.choice([key for key, value in payload["state_dict"].items() if isinstance(value, torch.Tensor)])
    tensor = payload["state_dict"][name]
    made = rng.choice(["nan", "shape", "dtype", "gone"])
    if made == "gone":
        del payload["state_dict"][name]
    else:
        changed = {"nan": tensor.float() * float("nan"), "shape": torch.zeros(3, 1, 4), "dtype": tensor.bool()}
        payload["state_dict"][name] = changed[made]
    return f"state_dict.{name} {made}"


def _hostile_segment(payload: dict[str, Any], rng: random.Random, folder: Path) -> str:
    """A segment with made-up contents and right sums."""
    import hashlib

    segments = payload["ReplayDataModule"]["ranks"][0]["replay"]
    segment = rng.choice(segments)
    columns = torch.load(folder / "replay" / segment["name"], weights_only=True)
    name = rng.choice(sorted(columns))
    column = columns[name]
    made = rng.choice(["gone", "zeros", "large", "negative", "cut", "float", "noise", "text"])
    columns[name] = {
        "zeros": torch.zeros_like(column),
        "large": (column.double() * 0 + 10**15).to(torch.int64),
        "negative": -column.to(torch.int64) - 1,
        "cut": column[:1],
        "float": column.float(),
        "noise": torch.randint(0, 2, column.shape).to(column.dtype),
        "text": "x",
    }.get(made)
    if made == "gone":
        del columns[name]
    path = folder / "replay" / "new.pt"
    torch.save(columns, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    new = f"replay-rank0-{segment['first_id']}-{segment['last_id']}-{digest[:16]}.pt"
    os.replace(path, folder / "replay" / new)
    segment |= {"name": new, "sha256": digest}
    return f"segment {name} {made}"


class _Bomb:
    def __reduce__(self) -> Any:
        return open, ("IT RAN", "w")


def _links(work: Path, rng: random.Random) -> str:
    outside = work / "outside"
    outside.mkdir(exist_ok=True)
    name = rng.choice(["checkpoints/replay", "metrics.csv", "summary.json", "tensorboard", "config.yaml"])
    path = work / "run" / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.symlink_to(outside if "." not in name else outside / "file")
    return f"link {name}"


def _snapshot_outside(work: Path) -> dict[str, str]:
    return {name: value for name, value in inprocess.snapshot(work).items() if name.split("/")[0] != "run"}


VERY_LONG = ("eval_episodes", "rollout.updates", "episode_limit")
"""Settings that make a run as long as they say."""

COMMANDS = [
    ("train", ["run_dir=run", "ckpt_path=last", "total_env_steps=70"]),
    ("train", ["ckpt_path=run/checkpoints/last.ckpt", "total_env_steps=70"]),
    ("evaluate", ["ckpt_path=run/checkpoints/last.ckpt", "episodes=2", "output=run/eval.json"]),
    ("evaluate", ["ckpt_path=run/checkpoints/best.ckpt", "episodes=2", "output=run/eval.json"]),
]


def test_hostile(campaign, made: Path, work: Path):
    rng = campaign.rng("hostile")
    part = "hostile files"
    for number in range(campaign.number(60)):
        shutil.rmtree(work / "run", ignore_errors=True)
        shutil.copytree(made / "run", work / "run")
        torch.save(_Bomb(), work / "run" / "evil.pt")
        folder = work / "run" / "checkpoints"
        said = ""
        for path in [folder / "last.ckpt", folder / "previous.ckpt", folder / "best.ckpt"]:
            draws = random.Random(f"{campaign.seed}:{number}")
            payload = torch.load(path, weights_only=True)
            kind = draws.choice(
                [
                    "config",
                    "config",
                    "config",
                    "numbers",
                    "numbers",
                    "tensor",
                    "segment",
                    "pickle",
                    "link",
                    "references",
                ]
            )
            if kind == "config":
                said = _hostile_config(payload, draws)
            elif kind == "numbers":
                said = _hostile_numbers(payload, draws)
            elif kind == "references":
                said = _hostile_references(payload, draws)
            elif kind == "tensor":
                said = _hostile_tensor(payload, draws)
            elif kind == "segment" and path.name != "best.ckpt":
                said = _hostile_segment(payload, draws, folder)
            elif kind == "pickle":
                payload["extra"], said = _Bomb(), "pickle"
            torch.save(payload, path)
        if kind == "link":
            said = _links(work, rng)
        command, typed = COMMANDS[number % len(COMMANDS)]
        before = _snapshot_outside(work)
        outcome = within(120, lambda typed=typed, command=command: inprocess.command(typed, command))
        with campaign.case(part, f"#{number} {said}, {command}: {outcome}"):
            assert not (work / "IT RAN").exists()
            assert _snapshot_outside(work) == before
            assert not (work.parent / "outside").exists()
            if _TookTooLong.__name__ in outcome.err:
                assert any(text in said for text in VERY_LONG)
                campaign.count(part, "a very long run by its numbers, ended here")
            elif outcome.status:
                inprocess.check_line(outcome)
                campaign.count(part, "refused")
            else:
                assert "\x1b" not in outcome.out + outcome.err
                campaign.count(part, "without effect")
    campaign.check()
