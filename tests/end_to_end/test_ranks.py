"""Two ranks: one gradient, one set of counters and two shards. That a kill loses nothing of them is in test_resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from qmix_lightning.checkpoint.files import read_checkpoint
from support import inprocess, runs

ALGORITHMS = (
    *("iql", "vdn", "qmix", "qmix_ns", "qmix_lin", "vdn_s", "qplex", "qatten"),
    *("qtran_base", "qtran_alt", "cw_qmix", "ow_qmix", "coma", "ippo", "mappo", "pqn_vdn", "pqn_qmix"),
)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with every algorithm's gradients, of one process and of two: a start of each serves all."""
    one, two = (tmp_path_factory.mktemp(f"gradients{ranks}") for ranks in (1, 2))
    script = "support.gradient_script"
    runs.run(["1", str(one), *ALGORITHMS], script)
    runs.run_two_ranks(["2", str(two), *ALGORITHMS], script)
    return [one, two]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_ranks_have_the_gradient_of_the_joined_batch(gradients: list[Path], algorithm: str):
    one, two = (torch.load(folder / f"{algorithm}.pt", weights_only=True) for folder in gradients)
    assert one.keys() == two.keys()
    assert len(one) >= 6
    for name, grad in one.items():
        assert grad.abs().sum() > 0, f"{name} received no gradient"
        torch.testing.assert_close(two[name], grad, rtol=1e-6, atol=1e-6 * float(grad.abs().max()), msg=name)


@pytest.fixture(scope="module")
def two_rank_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Begun by ``python -m qmix_lightning train``, as which the second rank has to be started, too."""
    folder = tmp_path_factory.mktemp("ranks") / "run"
    arguments = ["train", *runs.BASE, *runs.TWO_RANKS, "total_env_steps=150", f"run_dir={folder}"]
    runs.run(arguments, "qmix_lightning")
    return folder


def test_shards_differ_and_counters_are_global(two_rank_run: Path):
    payload = read_checkpoint(two_rank_run / "checkpoints" / "last.ckpt")
    hashes = runs.replay_hashes(two_rank_run / "checkpoints" / "last.ckpt")
    assert len(set(hashes)) == 2
    counters, ranks = payload["ReplayDataModule"]["counters"], payload["ReplayDataModule"]["ranks"]
    assert payload["world_size"] == 2
    assert counters["episodes"] == sum(rank["next_id"] for rank in ranks)
    assert counters["env_steps"] >= 150
    assert counters["updates"] == payload["global_step"] > 0
    summary = json.loads((two_rank_run / "summary.json").read_text())
    assert summary["env_steps"] == counters["env_steps"]
    assert summary["eval"]["episodes"] == 5
    assert summary["ranks"] == 2
    assert [p.name for p in two_rank_run.iterdir() if p.suffix == ".csv"] == ["metrics.csv"]
    assert runs.rows(two_rank_run)


def test_validation_is_split_and_joined_rightly(two_rank_run: Path):
    """One process playing all episodes of the two-rank run's networks gets the same figures."""
    typed = [f"ckpt_path={two_rank_run}/checkpoints/best.ckpt", "episodes=5", "seed=1"]
    inprocess.succeed([*typed, "env.id=support.fakes:VaryingLength"], "evaluate")
    alone = json.loads((two_rank_run / "eval.json").read_text())
    best = read_checkpoint(two_rank_run / "checkpoints" / "best.ckpt")["eval"]
    assert alone["return_mean"] == pytest.approx(best["eval/return_mean"], rel=1e-6)
    assert alone["return_ci95"] == pytest.approx(best["eval/return_ci95"], rel=1e-6)
    assert alone["win_rate"] == pytest.approx(best["eval/win_rate"])


@pytest.mark.slow
def test_a_sweep_makes_one_folder_a_run_with_two_ranks_each(tmp_path: Path):
    folder = tmp_path / "sweep"
    base = [a for a in runs.BASE if a != "optimizer=adam"]
    arguments = [*base, *runs.TWO_RANKS, "total_env_steps=150", f"run_dir={folder}", "-m", "optimizer=adam,rmsprop"]
    output = runs.run([*arguments, "seed=2"])
    assert "2 of 2 runs are there" in output
    jobs = sorted(path.parent for path in folder.glob("*/summary.json"))
    assert len(jobs) == 2
    for job, optimizer in zip(jobs, ("adam", "rmsprop"), strict=True):
        summary = json.loads((job / "summary.json").read_text())
        assert (summary["status"], summary["algorithm"], summary["seed"]) == ("completed", "qmix", 2)
        assert f"_optimizer={optimizer}_" in f"{job.name}_"
        config = yaml.safe_load((job / "config.yaml").read_text())
        assert config["run_dir"].endswith(job.name)
        assert config["optimizer"]["name"] == optimizer
        assert runs.rows(job)
