"""Two nodes of two ranks, as torchrun and SLURM start them: one run, or one line that says why not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qmix_lightning.checkpoint.files import read_checkpoint
from support import runs
from support.nodes import NODES, NotPermitted, TwoNodes, finish, torchrun, torchrun_that_restarts
from support.processes import wait_until

pytestmark = pytest.mark.nodes

TRAIN = ["qmix_lightning", "train", *runs.BASE, *NODES, "total_env_steps=900"]
ALGORITHMS = ("iql", "qmix", "qplex", "qtran_base", "cw_qmix", "coma", "mappo", "pqn_qmix")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    try:
        with TwoNodes(tmp_path_factory.mktemp("nodes")) as two:
            yield two
    except NotPermitted as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="module")
def reference(nodes: TwoNodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two nodes that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    started = nodes.torchrun([*TRAIN, f"run_dir={folder}"])
    assert finish(started) == [0, 0], "".join(node.printed() for node in started)
    return folder


def until_saved(folder: Path) -> None:
    """Wait until a run has written its second checkpoint, and a little longer."""
    wait_until((folder / "checkpoints" / "previous.ckpt").exists, "no checkpoint was written", 240)
    time.sleep(0.3)


def test_four_ranks_have_the_gradient_of_the_joined_batch(nodes: TwoNodes, tmp_path: Path):
    one, four = tmp_path / "one", tmp_path / "four"
    one.mkdir()
    four.mkdir()
    runs.run(["1", str(one), *ALGORITHMS], "support.gradient_script")
    started = nodes.torchrun(["support.gradient_script", "2x2", str(four), *ALGORITHMS])
    assert finish(started) == [0, 0], "".join(node.printed() for node in started)
    for algorithm in ALGORITHMS:
        alone, joined = (torch.load(folder / f"{algorithm}.pt", weights_only=True) for folder in (one, four))
        assert alone.keys() == joined.keys()
        for name, grad in alone.items():
            message = f"{algorithm} {name}"
            torch.testing.assert_close(joined[name], grad, rtol=1e-6, atol=1e-6 * float(grad.abs().max()), msg=message)


def test_counters_are_global_and_every_rank_has_its_shard(reference: Path):
    payload = read_checkpoint(reference / "checkpoints" / "last.ckpt")
    counters, ranks = payload["ReplayDataModule"]["counters"], payload["ReplayDataModule"]["ranks"]
    assert payload["world_size"] == len(ranks) == 4
    assert len(set(runs.replay_hashes(reference / "checkpoints" / "last.ckpt"))) == 4
    assert counters["episodes"] == sum(rank["next_id"] for rank in ranks)
    assert counters["updates"] == payload["global_step"]
    summary = json.loads((reference / "summary.json").read_text())
    assert summary["env_steps"] == counters["env_steps"] >= 900
    assert summary["status"] == "completed"
    assert runs.rows(reference)


def test_an_evaluation_is_that_of_one_process(reference: Path):
    best = reference / "checkpoints" / "best.ckpt"
    arguments = [f"ckpt_path={best}", "episodes=5", "seed=1", "env.id=support.fakes:VaryingLength"]
    runs.run(arguments, command="qmix_lightning.commands.evaluate")
    alone, together = json.loads((reference / "eval.json").read_text()), read_checkpoint(best)["eval"]
    assert alone["return_mean"] == pytest.approx(together["eval/return_mean"], rel=1e-6)
    assert alone["win_rate"] == pytest.approx(together["eval/win_rate"])


@pytest.mark.parametrize("node", [0, 1])
def test_a_killed_node_ends_the_run_which_goes_on_bit_for_bit(
    nodes: TwoNodes, reference: Path, tmp_path: Path, node: int
):
    command = [*TRAIN, f"run_dir={tmp_path}/run"]
    started = nodes.torchrun(command)
    until_saved(tmp_path / "run")
    nodes.kill(node)
    killed = time.monotonic()
    other = started[1 - node]
    assert other.wait(60) == 1
    assert time.monotonic() - killed < 60
    (error,) = other.errors()
    assert "another rank was lost" in error
    assert "ckpt_path=last goes on" in error
    started[node].wait(60)
    resumed = nodes.torchrun([*command, "ckpt_path=last"])
    assert finish(resumed) == [0, 0], "".join(node.printed() for node in resumed)
    runs.assert_same_run(reference, tmp_path / "run")


def test_torchrun_starts_all_ranks_again_and_they_go_on_bit_for_bit(nodes: TwoNodes, reference: Path, tmp_path: Path):
    command = [*TRAIN, f"run_dir={tmp_path}/run"]
    started = [
        nodes.start(node, torchrun_that_restarts(node, command), {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
        for node in range(2)
    ]
    until_saved(tmp_path / "run")
    nodes.kill_ranks(1)
    assert finish(started) == [0, 0], "".join(node.printed() for node in started)
    assert "goes on from environment step" in started[0].printed()
    runs.assert_same_run(reference, tmp_path / "run")


def test_ranks_that_slurm_starts_are_one_run(nodes: TwoNodes, reference: Path, tmp_path: Path):
    command = ["-m", *TRAIN, f"run_dir={tmp_path}/run"]
    started = []
    for rank in range(4):
        slurm = {"NTASKS": "4", "PROCID": f"{rank}", "LOCALID": f"{rank % 2}", "NODEID": f"{rank // 2}"}
        slurm |= {"JOB_ID": "77", "JOB_NAME": "train", "NODELIST": "10.77.0.1", "NTASKS_PER_NODE": "2"}
        variables = {f"SLURM_{name}": value for name, value in slurm.items()}
        started.append(nodes.start(rank // 2, command, variables))
    assert finish(started) == [0, 0, 0, 0], "".join(node.printed() for node in started)
    runs.assert_same_run(reference, tmp_path / "run")


def test_a_folder_that_only_one_node_has_is_refused(nodes: TwoNodes, tmp_path: Path):
    command = [*TRAIN, f"run_dir={tmp_path}/shared/run"]
    (tmp_path / "shared").mkdir()
    started = [
        nodes.start(0, torchrun(0, command)),
        nodes.start(1, torchrun(1, command), mount=f"{tmp_path}/shared"),
    ]
    assert finish(started, 120) == [1, 1]  # torchrun's own status
    for node in started:
        (error,) = node.errors()
        assert "does not see" in error
        assert "file system that all machines share" in error
    assert not (tmp_path / "shared" / "run").exists()


def test_nodes_with_different_settings_are_refused(nodes: TwoNodes, tmp_path: Path):
    command = [*TRAIN, f"run_dir={tmp_path}/run"]
    started = [nodes.start(node, torchrun(node, [*command, f"seed={node}"])) for node in range(2)]
    assert finish(started, 120) == [1, 1]
    for node in started:
        (error,) = node.errors()
        assert "has seed=1, rank 0 has 0" in error
    assert not (tmp_path / "run").exists()


def test_a_node_that_cannot_begin_says_so_on_the_other_too(nodes: TwoNodes, tmp_path: Path):
    """The second node's Python finds no environment; the first would wait for it for half an hour."""
    command = [*TRAIN, f"run_dir={tmp_path}/run"]
    started = [
        nodes.start(0, torchrun(0, command)),
        nodes.start(1, torchrun(1, [*command, "env.id=support.fakes:Missing"])),
    ]
    assert finish(started, 120) == [1, 1]
    for node in started:
        (error,) = node.errors()
        assert "Missing" in error
    assert "rank 2" in started[0].errors()[0]
