"""Hostile run folders, rows, study indexes and suites: a report or a table ends in a line or in what is right."""

from __future__ import annotations

import json
import os
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmix_lightning.commands import bench, report
from support import inprocess
from support.containers import places, put
from support.suites import SUITE, small_plan, write_rows

pytestmark = pytest.mark.campaign

VALUES: list[Any] = [
    *("os.system", "evil_module:make", "${oc.env:HOME}", "../../outside", "/etc/passwd", "\x1b[2J", "<script>", "=1+1"),
    *(-1, 0, 10**9, 10**30, 10**400, 1e308, float("nan"), float("inf"), True, None, [], {}, [[1]], "1", ""),
    {"_target_": "evil_module.make"},
]
CELLS = ["nan", "inf", "1e400", "-1", "", "x", "1e18", "\x1b[2J", "9" * 400, "x" * 200_000, "\0", '"', "0x10", "1_0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, and the rows and the index of a suite."""
    folder = tmp_path_factory.mktemp("made")
    for algorithm in ("vdn", "qmix"):
        inprocess.succeed([f"run_dir={folder}/runs/{algorithm}", *inprocess.TINY, f"algorithm={algorithm}"])
        shutil.rmtree(folder / "runs" / algorithm / "checkpoints")
    plan = small_plan(folder / "bench")
    write_rows(
        plan, {(t, a): [1.0, 2.0] for t in plan.tasks for a in plan.algorithms}, suite="small", status="completed"
    )
    for path in (folder / "bench" / "rows").iterdir():
        task, algorithm = path.name.split("-")[:2]
        path.write_text(json.dumps({**json.loads(path.read_text()), "task": task, "algorithm": algorithm}))
    for cell in plan.cells:
        plan.study.place(cell.identity, cell.name.replace(" ", "/"), {"code": cell.code, "commit": "abc"})
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "above" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    (folder / "evil_module.py").write_text("open('IT RAN', 'w')\ndef make(*a, **k): open('IT RAN', 'w')\n")
    return folder


def _spoil_json(path: Path, rng: random.Random) -> str:
    kind = rng.choice(["value", "value", "value", "value", "key", "cut", "deep", "huge", "list", "link", "fifo"])
    content = json.loads(path.read_text())
    place: tuple[Any, ...] = ()
    if kind == "value":
        place, value = rng.choice(list(places(content))), rng.choice(VALUES)
        put(content, place, value)
        path.write_text(json.dumps(content))
        return f"{path.name}: {'.'.join(map(str, place))}={str(value)[:40]!r}"
    if kind == "key":
        content[rng.choice([v for v in VALUES if isinstance(v, str)])] = content.pop(rng.choice(sorted(content)))
        path.write_text(json.dumps(content))
    else:
        _damage(path, kind)
    return f"{path.name}: {kind}"


def _damage(path: Path, kind: str) -> None:
    text = path.read_text()
    path.unlink()
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text({"cut": text[: len(text) // 2], "deep": "[" * 100_000, "huge": "9" * 5000, "list": "[]"}[kind])


def _spoil_yaml(path: Path, rng: random.Random) -> str:
    kind = rng.choice(["value", "value", "value", "laughs", "itself", "python", "deep", "cut", "link"])
    content = yaml.safe_load(path.read_text())
    if kind == "value":
        place, value = rng.choice(list(places(content))), rng.choice([v for v in VALUES if v != 10**400])
        put(content, place, value)
        path.write_text(yaml.safe_dump(content))
        return f"{path.name}: {'.'.join(map(str, place))}={str(value)[:40]!r}"
    names = "abcdefghijklmnopqrst"
    laughs = ["a: &a [x,x,x,x,x,x,x,x,x]"] + [
        f"{n}: &{n} [{','.join(['*' + before] * 9)}]" for before, n in pairwise(names)
    ]
    more = {
        "laughs": "\n".join(laughs),
        "itself": "me: &me [*me]",
        "python": "x: !!python/object/apply:os.system [touch 'IT RAN']",
        "deep": "x: " + "[" * 20_000,
    }
    if kind in more:
        path.write_text(f"{path.read_text()}\n{more[kind]}\n")
    else:
        _damage(path, kind)
    return f"{path.name}: {kind}"


def _spoil_csv(path: Path, rng: random.Random) -> str:
    lines = [line.split(",") for line in path.read_text().splitlines()]
    row = rng.randrange(len(lines))
    column = rng.choice([i for i, name in enumerate(lines[0]) if name.startswith(("eval/", "env_steps"))])
    value = rng.choice(CELLS)
    before, lines[row][column] = lines[row][column], value
    path.write_text("\n".join(",".join(line) for line in lines))
    return f"{path.name}: row {row}, {lines[0][column][:20]}, {before!r} -> {value[:20]!r}"


SPOIL = {".json": _spoil_json, ".yaml": _spoil_yaml, ".csv": _spoil_csv}


def spoiled_run(work: Path, made: Path, rng: random.Random) -> str:
    shutil.copytree(made / "runs", work / "study")
    path = work / "study" / "vdn" / rng.choice(["summary.json", "config.yaml", "metrics.csv", "metrics.csv"])
    return SPOIL[path.suffix](path, rng)


def spoiled_rows(work: Path, made: Path, rng: random.Random) -> str:
    shutil.copytree(made / "bench", work / "study")
    path = rng.choice([*sorted((work / "study" / "rows").iterdir()), work / "study" / "study" / "study.json"])
    return SPOIL[path.suffix](path, rng)


def spoiled_suite(work: Path, made: Path, rng: random.Random) -> str:
    shutil.copytree(made / "bench", work / "study")
    return _spoil_yaml(work / "study" / "small.yaml", rng)


HOSTILE_OVERRIDES = [
    "callbacks.evil={_target_:evil_module.make}",
    "+callbacks.evil._target_=evil_module.make",
    "logger.evil={_target_:evil_module.make}",
    "env.id=evil_module:make",
    "env=evil_module:make",
    "env.opponents=evil_module:make",
    "run_dir=../outside",
    "ckpt_path=../outside",
    "init_from=../outside",
    "replay.memmap_dir=../outside",
    "rollout.python=/bin/sh",
    "+rollout.python=/bin/sh",
    "rollout={python:/bin/sh}",
    "ray.address=127.0.0.1:1",
    "hydra.run.dir=../outside",
    "hydra.searchpath=[file://../outside]",
    "hydra.job.env_set={PYTHONSTARTUP:evil_module.py}",
    "hydra/launcher=joblib",
    "--config-dir=.",
    "--config-name=evil",
    "-m=1",
    "trainer.default_root_dir=../outside",
    "trainer.profiler=${oc.create:{_target_:evil_module.make}}",
    "optimizer._target_=evil_module.make",
    "+x=1",
    "experiment=../../outside",
    "seed=5",
]


def hostile_suite(work: Path, made: Path, rng: random.Random) -> str:
    (work / "study").mkdir()
    override = rng.choice(HOSTILE_OVERRIDES)
    where = rng.choice(["- optimizer=adam", "overrides: [env=two_step", "[algorithm=vdn"])
    text = SUITE.replace(where, f"{where}\n  - '{override}'" if where.startswith("-") else f"{where}, '{override}'")
    (work / "study" / "small.yaml").write_text(text)
    return override


def report_it(work: Path, rng: random.Random) -> inprocess.Outcome:
    typed = ["study", "output=report", f"figures={rng.random() < 0.1}", "formats=[svg]"]
    return inprocess.without_hydra("qmix-report", report._report, typed)


def table_it(work: Path, rng: random.Random) -> inprocess.Outcome:
    typed = ["suite=study/small.yaml", "folder=study/study", "results=study/rows", "run=false"]
    return inprocess.without_hydra("qmix-bench", bench._bench, typed)


def run_it(work: Path, rng: random.Random) -> inprocess.Outcome:
    typed = ["suite=study/small.yaml", "folder=study/study", "results=study/rows", "seeds=[1]", "tasks=[two_step]"]
    return inprocess.without_hydra("qmix-bench", bench._bench, [*typed, "algorithms=[vdn]"])


KINDS = {
    "reports on hostile runs": (40, spoiled_run, report_it),
    "reports on hostile rows": (30, spoiled_rows, report_it),
    "tables of hostile rows": (30, spoiled_rows, table_it),
    "damaged suites": (15, spoiled_suite, table_it),
    "hostile suites": (len(HOSTILE_OVERRIDES), hostile_suite, run_it),
}


@pytest.mark.parametrize("part", KINDS)
def test_hostile_studies(campaign: Any, made: Path, work: Path, part: str):
    number, spoil, command = KINDS[part]
    for case in range(campaign.number(number)):
        for name in ("study", "report"):
            shutil.rmtree(work / name, ignore_errors=True)
        rng = random.Random(f"{campaign.seed}:{part}:{case}")
        said = spoil(work, made, rng)
        outcome = command(work, rng)
        with campaign.case(part, f"#{case} {said}: {outcome}"):
            left = {path.name for path in work.iterdir()} - {"study", "report"}
            assert left <= {"evil_module.py", "__pycache__"}, "nothing ran, and nothing was written elsewhere"
            assert list(work.parents[1].rglob("outside")) == []
            assert "\x1b" not in outcome.out + outcome.err
            if outcome.status:
                inprocess.check_line(outcome)
                campaign.count(part, "refused")
            else:
                campaign.count(part, "told, or without effect")
    campaign.check()
