"""SLURM itself, on two nodes: the script of the documentation, a requeue, a lost node, a sweep by submitit."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import runs
from support.nodes import NotPermitted, TwoNodes
from support.processes import wait_until
from support.slurm import NAMES, Slurm

pytestmark = pytest.mark.slurm

COMMANDS = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    try:
        with (
            TwoNodes(tmp_path_factory.mktemp("nodes")) as nodes,
            Slurm(nodes, tmp_path_factory.mktemp("slurm")) as started,
        ):
            yield started
    except NotPermitted as error:
        pytest.fail(str(error), pytrace=False)


def documented(script: Path, run_dir: Path) -> Path:
    """The job of docs/cluster.md, with a small task in place of its own."""
    page = Path(__file__).parents[2].joinpath("docs", "cluster.md").read_text()
    text = next(block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "#SBATCH" in block)
    small = f"{' '.join(runs.BASE)} total_env_steps=900 run_dir={run_dir}"
    for before, after in (("experiment=lbf_8x8_2p_3f run_dir=/shared/runs/lbf", small), ("task=4", "task=1")):
        assert before in text
        text = text.replace(before, after)
    script.write_text(text)
    return script


@pytest.fixture(scope="module")
def reference(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference")
    script = documented(folder / "job", folder / "run")
    assert slurm.wait([submit(slurm, script)]) == ["COMPLETED"], script.with_name("job.log").read_text()
    return folder / "run"


def submit(slurm: Slurm, script: Path) -> str:
    return slurm.submit(script, f"--export=ALL,PATH={COMMANDS['PATH']}")


@pytest.mark.parametrize("how", ["signal", "node"])
def test_a_requeued_job_goes_on_by_itself_bit_for_bit(slurm: Slurm, reference: Path, tmp_path: Path, how: str):
    script = documented(tmp_path / "job", tmp_path / "run")
    job = submit(slurm, script)
    wait_until((tmp_path / "run" / "checkpoints" / "previous.ckpt").exists, "no checkpoint was written", 400)
    if how == "signal":  # as --signal=SIGUSR1@90 sends before the time is over
        slurm.call("scancel", "--signal=USR1", job)
    else:
        slurm.call("scontrol", "update", f"NodeName={NAMES[1]}", "State=DOWN", "Reason=test")
        slurm.call("scontrol", "update", f"NodeName={NAMES[1]}", "State=RESUME")
    assert slurm.wait([job]) == ["COMPLETED"], script.with_name("job.log").read_text()
    assert "goes on from environment step" in script.with_name("job.log").read_text()
    runs.assert_same_run(reference, tmp_path / "run")


def test_a_sweep_by_submitit_is_made_to_its_end(slurm: Slurm, tmp_path: Path):
    command = ["qmix-train", "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=cpu"]
    command += ["hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=20", "algorithm=vdn,qmix", "seed=1,2"]
    command += ["env=two_step", "total_env_steps=600", "logger=none"]
    assert "4 of 4 runs are there" in slurm.call(*command, cwd=tmp_path, variables=COMMANDS)
    log = (tmp_path / "outputs" / "study" / "logs" / "two_step_qmix_seed2.log").read_text()
    assert "threads: 1 (1 core)" in log, "a job has two cores, of which SLURM gave it one"
    assert slurm.call(*command, cwd=tmp_path, variables=COMMANDS).count("done before") == 4
