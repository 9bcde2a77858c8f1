"""What a run leaves behind, and what it shows."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import struct
import termios
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qmix_lightning.config.trust import recorded_config
from qmix_lightning.training.callbacks.progress_bar import EnvStepsBar
from support import inprocess
from support.commands import Command
from support.runs import rows

TINY = [argument for argument in inprocess.TINY if argument != "logger=none"]
NOTE = "needs more"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, inprocess.Outcome]:
    folder = tmp_path_factory.mktemp("outputs") / "run"
    typed = [f"run_dir={folder}", "seed=5", "callbacks=q_table", *TINY, f"+preset.note='{NOTE}'"]
    return folder, inprocess.succeed(typed)


@pytest.fixture(scope="module")
def run(finished: tuple[Path, inprocess.Outcome]) -> Path:
    return finished[0]


def test_these_files_and_no_others(run: Path):
    top = {path.name for path in run.iterdir()}
    files = {"config.yaml", "metrics.csv", "summary.json", "q_table.json"}
    assert top == files | {"checkpoints", "tensorboard"}
    assert {"last.ckpt", "best.ckpt", "replay"} <= {path.name for path in (run / "checkpoints").iterdir()}
    assert not list(run.rglob("*.writing"))


def test_config_yaml_is_the_resolved_configuration(run: Path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "${" not in (run / "config.yaml").read_text()
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["config"]
    assert recorded_config(config) == saved
    assert (saved["logger"], saved["callbacks"]) == ({"tensorboard": []}, {"q_table": {}})
    assert (config["seed"], config["agent"]["hidden_dim"], config["run_dir"]) == (5, 8, str(run))
    assert config["logger"]["tensorboard"]["save_dir"] == str(run)


def test_metrics_csv(run: Path):
    found = rows(run)
    assert list(found[0])[:3] == ["updates", "env_steps", "episodes"]
    assert {"train/loss", "train/epsilon", "train/grad_norm", "eval/return_mean", "eval/episodes"} <= set(found[0])
    steps = [int(row["env_steps"]) for row in found]
    assert steps == sorted(steps)
    evaluated = [row for row in found if row["eval/return_mean"]]
    assert [int(row["env_steps"]) for row in evaluated] == [32, 60], "at the first update past 30, and at the end"
    assert all(row["eval/episodes"] == "4" for row in evaluated)
    # Epsilon is that of the environment step: from 1 to 0.05 over 50,000.
    for row in found:
        if row["train/epsilon"]:
            assert float(row["train/epsilon"]) == pytest.approx(1 - 0.95 * int(row["env_steps"]) / 50000, abs=1e-3)


def test_tensorboard_has_the_same_numbers(run: Path):
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    written = {int(row["env_steps"]): float(row["train/loss"]) for row in rows(run) if row["train/loss"]}
    assert set(shown) == set(written)
    assert all(shown[step] == pytest.approx(written[step], rel=1e-5) for step in shown)
    assert "eval/return_mean" in events.Tags()["scalars"]


def test_best_holds_the_networks_and_no_replay(run: Path):
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert best["state_dict"].keys() == last["state_dict"].keys()
    assert {"ReplayDataModule", "loops", "optimizer_states"} <= set(last)
    assert not {"ReplayDataModule", "loops", "optimizer_states"} & set(best)
    assert last["global_step"] == int(rows(run)[-1]["updates"])
    evaluated = {int(r["env_steps"]): float(r["eval/return_mean"]) for r in rows(run) if r["eval/return_mean"]}
    newest_best = max(evaluated, key=lambda step: (evaluated[step], step))
    assert (best["env_steps"], best["eval"]["eval/return_mean"]) == (newest_best, evaluated[newest_best])


def test_summary_json(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    fields = [
        "status",
        "ended_by",
        "why",
        "env",
        "algorithm",
        "seed",
        "env_steps",
        "updates",
        "wall_s",
        "env_steps_per_s",
    ]
    fields += [
        "updates_per_s",
        "seconds",
        "peak_rss_mb",
        "eval",
        "best",
        "eval_wall_s",
        "faults",
        "ranks",
        "num_threads",
        "asynchronous",
        "versions",
    ]
    assert set(summary) == {*fields, "episodes"}
    assert [summary[key] for key in fields[:2]] == ["completed", "budget"]
    assert [summary[key] for key in fields[3:6]] == ["two_step", "qmix", 5]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert (summary["best"]["env_steps"], summary["best"]["return_mean"]) == (
        best["env_steps"],
        best["eval"]["eval/return_mean"],
    )
    assert set(summary["seconds"]) == {"act", "env", "update", "evaluate"}
    assert 0 < sum(summary["seconds"].values()) < summary["wall_s"]
    last, row = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True), rows(run)[-1]
    assert summary["env_steps"] == last["env_steps"] == int(row["env_steps"]) == 60
    assert summary["updates"] == last["global_step"] == int(row["updates"])
    assert summary["episodes"] == int(row["episodes"]) == 30, "two steps each"
    assert summary["env_steps_per_s"] == pytest.approx(60 / summary["wall_s"], rel=0.02)
    assert summary["updates_per_s"] == pytest.approx(summary["updates"] / summary["wall_s"], rel=0.02)
    assert 50 < summary["peak_rss_mb"] < 10_000
    assert summary["eval"]["episodes"] == 4
    assert summary["eval"]["return_mean"] == float(row["eval/return_mean"])
    assert {"return_mean", "return_ci95"} <= set(summary["eval"])
    assert "win_rate" not in summary["eval"], "the two-step game is not won or lost"
    assert summary["faults"] == {}
    assert {"python", "qmix-lightning", "torch", "pytorch-lightning"} <= set(summary["versions"])


def test_q_table_json(run: Path):
    """The format of the issue: rows are agent 1's action, columns agent 2's."""
    table = json.loads((run / "q_table.json").read_text())
    assert list(table) == ["learned", "exact", "greedy_return"]
    for part in ("learned", "exact"):
        assert list(table[part]) == ["1", "2A", "2B"]
        assert all(len(t) == 2 and all(len(row) == 2 for row in t) for t in table[part].values())
    exact = [table["exact"]["1"], table["exact"]["2A"], table["exact"]["2B"]]
    assert exact[0] == [pytest.approx([6.93, 6.93]), pytest.approx([7.92, 7.92])]
    assert exact[1:] == [[[7.0, 7.0], [7.0, 7.0]], [[0.0, 1.0], [1.0, 8.0]]]
    # What is played follows from the table: QMIX is monotonic, so the greedy joint action is the table's largest.
    best = max((value, i) for i, row in enumerate(table["learned"]["1"]) for value in row)[1]
    if best == 0:
        assert table["greedy_return"] == 7.0
    else:
        cells = {(i, j): v for i, row in enumerate(table["learned"]["2B"]) for j, v in enumerate(row)}
        i, j = max(cells, key=lambda cell: cells[cell])
        assert table["greedy_return"] == table["exact"]["2B"][i][j]


def test_the_end_says_what_was_reached_and_where(finished: tuple[Path, inprocess.Outcome]):
    run, outcome = finished
    summary = json.loads((run / "summary.json").read_text())
    shown = dict(re.findall(r"^  (\w+(?: \w+)*) {2,}(.*)$", outcome.out, re.MULTILINE))
    assert shown["algorithm"] == "qmix on two_step, seed 5"
    assert shown["env steps"].startswith("60 in ")
    assert shown["updates"].startswith(f"{summary['updates']} (")
    assert shown["eval return"].startswith(f"{summary['eval']['return_mean']:.4g}")
    assert shown["eval return"].endswith("4 episodes")
    assert shown["written to"].endswith("run")
    assert shown["ended by"] == "the budget of 60 environment steps"
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert shown["best return"] == f"{best['eval']['eval/return_mean']:.4g}, after {best['env_steps']} env steps"
    assert shown["next"] == f"qmix-eval ckpt_path={run}/checkpoints/best.ckpt"
    assert (
        outcome.out.splitlines()[-1].split() == f"qmix-train run_dir={run} ckpt_path=last total_env_steps=120".split()
    )
    start = outcome.out.split("  algorithm ")[0]
    assert f"run: {run}\nwatch: tensorboard --logdir {run}/tensorboard\n" in start
    assert "state 2B" in outcome.out
    assert outcome.err == "", "no progress bar and no advice where there is no terminal"


def test_a_log_file_gets_a_line_now_and_then_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(EnvStepsBar.__init__, "__defaults__", (0.05,))
    outcome = inprocess.succeed([f"run_dir={tmp_path}/run", *inprocess.TINY])
    first, *_, last = outcome.err.splitlines()
    line = r"\d+/60 env steps, [\d,]+/s, (\d\d:\d\d|\?) left, eps [\d.]+"
    assert re.match(r"(no return yet|(train )?return [\d.]+), " + line, first), first
    assert re.match(r"return [\d.]+, " + line + r", loss [\d.e+-]+$", last), last


def test_the_last_return_stays_known_while_no_episode_ends(tmp_path: Path):
    run = tmp_path / "run"
    often = ["rollout.num_envs=1", "rollout.update_every=1", "rollout.updates=2"]  # two updates for each episode
    inprocess.succeed([f"run_dir={run}", *inprocess.TINY, *often])
    *_, before, last = [row for row in rows(run) if row["train/loss"]]
    assert before["train/return_mean"]
    assert last["train/return_mean"] == ""
    log = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["MetricsLog"]
    assert log["last_train"]["train/loss"] == float(last["train/loss"])
    assert log["last_train"]["train/return_mean"] == float(before["train/return_mean"])


def test_what_a_profiler_found_is_printed_and_no_progress_is_where_it_is_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(EnvStepsBar.__init__, "__defaults__", (0.05,))
    typed = ["trainer.profiler=simple", "trainer.enable_progress_bar=false"]
    with caplog.at_level(logging.INFO):
        outcome = inprocess.succeed([f"run_dir={tmp_path}/run", *typed, *inprocess.TINY])
    assert outcome.err == ""
    assert "FIT Profiler Report" in caplog.text
    assert "run_training_batch" in caplog.text


def test_a_run_that_goes_on_elsewhere_writes_only_there(run: Path, tmp_path: Path):
    before = inprocess.snapshot(run)
    goes_on = [f"ckpt_path={run}/checkpoints/last.ckpt", f"run_dir={tmp_path}/new", "total_env_steps=64"]
    outcome = inprocess.succeed(goes_on)
    assert inprocess.snapshot(run) == before
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in run.iterdir()}
    assert re.search(r"goes on from environment step 60, update [1-9]\d*\n", outcome.out)
    assert NOTE not in outcome.out, "it was said when the run began"


def under_a_terminal(arguments: list[str], columns: int) -> str:
    """What a command writes to a terminal so many columns wide."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = Command("qmix_lightning.commands.train", arguments, output=os.ttyname(follower))
    shown = os.read(leader, 4096)  # so the command has opened its end
    os.close(follower)
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:
        pass  # Linux: the other end was closed
    finally:
        os.close(leader)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_a_terminal_shows_a_bar_with_the_return_first_and_as_much_as_it_has_room_for(tmp_path: Path):
    tiny = [a for a in inprocess.TINY if not a.startswith(("total_env_steps", "eval_interval"))]
    shown = under_a_terminal(["total_env_steps=100", "eval_interval=50", f"run_dir={tmp_path}/run", *tiny], 80)
    bars = [part for part in re.split(r"[\r\n]+", shown) if "%|" in part]
    assert re.fullmatch(r"return \d\S* 100%\|█+\| 100/100 steps, \S+/s, 00:00 left", bars[-1]), bars[-1]
    assert max(map(len, bars)) < 80
    assert "written to" in shown


def test_the_help_fits_a_terminal(tmp_path: Path):
    shown = under_a_terminal(["--help"], 80).splitlines()
    begin, end = (next(i for i, line in enumerate(shown) if line.startswith(name)) for name in ("agent: ", "trainer: "))
    assert max(map(len, shown[begin:end])) < 80
    assert any(line.startswith("logger: csv, mlflow, none, tensorboard") for line in shown)


def test_what_a_preset_says_of_a_family_is_said_first(finished: tuple[Path, inprocess.Outcome]):
    assert finished[1].out.startswith(f"{NOTE}\n")
