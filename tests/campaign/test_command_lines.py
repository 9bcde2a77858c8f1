"""Mutated command lines: each ends with a line, leaves nothing behind, and shows no traceback."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qmix_lightning.commands import bench, envs, import_policy, report, train
from qmix_lightning.study import sweep
from qmix_lightning.study.runner import Outcome
from support import commands, inprocess

pytestmark = pytest.mark.campaign

MOST_LINES = 25
LINES = [
    ("train", "experiment=two_step_qmix seed=3 run_dir=out total_env_steps=100"),
    ("train", "env=lbf env.task=8x8-2p-3f algorithm=vdn agent.hidden_dim=32 optimizer.lr=1e-3 run_dir=out"),
    ("train", "env=mpe env.scenario=simple_spread env.kwargs.N=3 mixer=qmix rollout.num_envs=4 run_dir=out"),
    ("train", "env=pettingzoo env.id=support.fakes:VaryingLength replay=prioritized replay.capacity=64 run_dir=out"),
    ("train", "-m algorithm=iql,vdn seed=1,2 run_dir=out hydra.sweeper.max_batch_size=2"),
    ("train", "run_dir=run ckpt_path=last total_env_steps=500"),
    ("train", "ckpt_path=run/checkpoints/last.ckpt trainer.log_every_n_steps=5 logger=none"),
    ("train", "algorithm=coma exploration.epsilon_start=0.5 rollout=process rollout.num_workers=2 run_dir=out"),
    (
        "train",
        "trainer.accelerator=cpu trainer.max_time={minutes:1} callbacks=q_table matmul_precision=high run_dir=out",
    ),
    ("train", "--cfg job --resolve algorithm=qplex"),
    ("train", "--help"),
    ("evaluate", "ckpt_path=run/checkpoints/best.ckpt episodes=2 num_envs=1 seed=1 output=out.json"),
    ("evaluate", "ckpt_path=run/checkpoints/last.ckpt episodes=1 env.episode_limit=5 output=-"),
    ("envs", "list"),
    ("envs", "show mpe kwargs.N=3"),
    ("envs", "show two_step"),
    ("envs", "check two_step --steps 10 --seed 1"),
    ("envs", "new my_env --path ."),
    ("envs", "trust"),
    ("watch", "policy=two_step output=out.gif episodes=1 page=true seed=2"),
    ("watch", "run output=out.mp4 epsilon=0.1 env.episode_limit=5"),
    ("export", "run output=out card=true ckpt_path=last"),
    ("export", "policy=two_step output=out programs=torch_export"),
    ("import", "pymarl run env=smac env.map_name=3m output=out config=run/config.json"),
    ("report", "run output=out figures=false formats=[png] metric=return_mean"),
    ("report", "run outputs output=out page=false"),
    ("bench", "suite=games tasks=[two_step,climbing] algorithms=vdn,qmix seeds=[1,2] folder=out run=false"),
    ("bench", "suite=quick jobs=2 also=[optimizer.lr=5e-4] rerun=stale report=out.md run=false"),
]
SCRIPTS = {
    "train": "qmix-train",
    "evaluate": "qmix-eval",
    "envs": "qmix-envs",
    "watch": "qmix-watch",
    "export": "qmix-export",
    "import": "qmix-import",
    "report": "qmix-report",
    "bench": "qmix-bench",
}
WITHOUT_HYDRA = {
    "envs": envs._dispatch,
    "import": import_policy._import,
    "report": report._report,
    "bench": bench._bench,
}
ODD = [
    "",
    "null",
    "nan",
    "-1",
    "1e999",
    "[]",
    "{}",
    "[1,",
    "{a:1}",
    "'",
    '"',
    "${seed}",
    "${",
    "???",
    "é",
    "\x07",
    "true",
]
ODD += ["0x10", "1_000", "~", "*", "%s", "x" * 3000, "=", "a=b", "-", "--", "+", "@", ":", "...", "../x", "\n", "\\"]


def mutated(words: list[str], rng: random.Random) -> list[str]:
    """Return the words with one to three changes."""
    words = list(words)
    for _ in range(rng.choice([1, 1, 2, 3])):
        i = rng.randrange(len(words)) if words else 0
        kind = rng.randrange(9)
        word = words[i] if words else ""
        key, equals, value = word.partition("=")
        at = rng.randrange(len(word) + 1)
        if kind == 0:
            words[i : i + 1] = [word[:at] + word[at + 1 :]]
        elif kind == 1:
            words[i : i + 1] = [word[:at] + rng.choice("=.,:+~-_ '\"[]{}$@/abcxyz019é") + word[at:]]
        elif kind == 2:
            words[i : i + 1] = [key + equals + rng.choice(ODD)]
        elif kind == 3:
            words[i : i + 1] = []
        elif kind == 4:
            words[i : i + 1] = [word, word]
        elif kind == 5:
            words[i : i + 1] = [rng.choice(["+", "++", "~", "-", "--"]) + word]
        elif kind == 6:
            words[i : i + 1] = [key, *([equals] if rng.random() < 0.5 else []), value]
        elif kind == 7:
            words[i : i + 1] = [word[:at] + word[at : at + 2][::-1] + word[at + 2 :]]
        else:
            words.insert(i, rng.choice(["--seed", "epochs=3", "n_envs=2", "--resolve", "-m", "x=1", "--info", *ODD]))
    return words


def _in_this_process(command: str, words: list[str]) -> inprocess.Outcome:
    if command not in WITHOUT_HYDRA:
        return inprocess.command(words, command)
    return inprocess.without_hydra(SCRIPTS[command], WITHOUT_HYDRA[command], words)


def _check(command: str, words: list[str], outcome: inprocess.Outcome) -> None:
    where = f"{command} {words!r}: {outcome}"
    assert "Traceback" not in outcome.err + outcome.out, where
    assert outcome.status in (0, 1, 2), where
    if outcome.status:
        assert len(outcome.err.splitlines()) <= MOST_LINES, where
        assert max(map(len, outcome.err.splitlines()), default=0) <= 4000, where
        assert outcome.err or (command, outcome.status) == ("envs", 1), where
        assert "HYDRA_FULL_ERROR" not in outcome.err, where


def test_in_one_process(campaign, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Training itself is left out: what is composed and checked before it is what is mutated."""
    monkeypatch.setattr(train, "_run", lambda *_, **__: {})
    monkeypatch.setattr(bench, "_run_missing", lambda *_: 0)
    monkeypatch.setattr(sweep, "run_all", lambda jobs, *_, **__: [Outcome("failed", "not run")] * len(jobs))
    rng, part = campaign.rng("command lines"), "command lines, in one process"
    for number in range(campaign.number(1700)):
        command, line = rng.choice(LINES)
        words = mutated(line.split(), rng)
        work = tmp_path / str(number)
        work.mkdir()
        monkeypatch.chdir(work)
        shutil.copytree(finished_run, work / "run")
        before = inprocess.snapshot(work)
        outcome = _in_this_process(command, words)
        # Hydra composes a later batch of a sweep when the one before has run: its jobs are there by then.
        begun = "failed: not run" in outcome.out
        with campaign.case(part, words):
            _check(command, words, outcome)
            assert outcome.status != 2 or begun or inprocess.snapshot(work) == before, outcome
        campaign.count(part, f"status {outcome.status}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(work)
    campaign.check()


def test_through_the_console_scripts(campaign, finished_run: Path, tmp_path: Path):
    rng, part = campaign.rng("console scripts"), "command lines, console scripts"
    for number in range(campaign.number(300)):
        command, line = rng.choice(LINES)
        words = [word.replace("\0", "") for word in mutated(line.split(), rng)]
        if command == "train" and ("-m" in words or not any(word.startswith("-") for word in words)):
            words.append("total_env_steps=0")  # refused, unless something else is before
        if command == "bench" and "run=false" not in words:
            words.append("jobs=0")
        work = tmp_path / str(number)
        work.mkdir()
        shutil.copytree(finished_run, work / "run")
        before = inprocess.snapshot(work)
        ended = subprocess.run(
            [Path(sys.executable).with_name(SCRIPTS[command]), *words],
            cwd=work,
            env={k: v for k, v in commands.environ().items() if k not in ("HYDRA_FULL_ERROR", "PYTHONWARNINGS")},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        outcome = inprocess.Outcome(ended.returncode, ended.stdout, ended.stderr)
        with campaign.case(part, words):
            _check(command, words, outcome)
            assert outcome.status != 2 or inprocess.snapshot(work) == before, outcome
        campaign.count(part, f"status {outcome.status}")
        shutil.rmtree(work)
    campaign.check()
