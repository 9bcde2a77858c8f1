"""The page on new algorithms is true: its package is written, installed, trained, resumed and tested as it says."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qmix_lightning.checkpoint.files import read_checkpoint
from support import inprocess
from support.batches import double_batch, value_settings
from support.small_policies import build_policy

PAGE = Path(__file__).parents[2] / "docs" / "new_algorithm.md"
FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
TINY = [a for a in inprocess.TINY if not a.startswith("agent.")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's package is installed."""
    folder = tmp_path_factory.mktemp("new") / "a folder's name"
    files = dict(FILE.findall(PAGE.read_text()))
    (agent,) = re.findall(r"`(my_team/my_agent.py)`:\n\n```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    (small,) = re.findall(r"`(my_team/conf/agent/small.yaml)`.*?```yaml\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    (entry,) = re.findall(r'^and an entry point `(small = "[\w.:]+")` in the group `([\w.]+)`', PAGE.read_text(), re.M)
    assert sorted(files) == ["my_team/__init__.py", "my_team/conf/algorithm/hysteretic.yaml", "pyproject.toml"]
    files |= dict([agent, small])
    files["pyproject.toml"] += f'\n[project.entry-points."{entry[1]}"]\n{entry[0]}\n'
    files["my_team/conf/mixer/mean.yaml"] = "name: mean\n"
    for name, text in files.items():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_text(text)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    command += ["--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_team"]:
        del sys.modules[name]


def test_it_trains_and_resumes_from_the_command_line(installed: Path, tmp_path: Path):
    """A run in two parts ends as the run in one part. That a fresh process finds a package is in test_plugin."""
    arguments = ["algorithm=hysteretic", "env=climbing", "algorithm.disappointment=0.1", *TINY]
    whole, first = tmp_path / "whole", tmp_path / "first"
    inprocess.succeed([*arguments, f"run_dir={whole}"])
    inprocess.succeed([*arguments, f"run_dir={first}", "total_env_steps=30"])
    inprocess.succeed(["ckpt_path=last", f"run_dir={first}", "total_env_steps=60"])
    a, b = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (whole, first))
    assert (a["config"]["algorithm"]["name"], a["config"]["mixer"]) == ("hysteretic", {"name": "mean"})
    assert a["global_step"] == b["global_step"] > 20
    tensors = [name for name, value in a["state_dict"].items() if isinstance(value, Tensor)]
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in tensors)
    assert json.loads((first / "summary.json").read_text())["algorithm"] == "hysteretic"


def test_the_mixer_goes_with_other_algorithms(installed: Path, tmp_path: Path):
    inprocess.succeed(["algorithm=vdn", "mixer.name=mean", "env=climbing", *TINY, f"run_dir={tmp_path}/run"])
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert (saved["config"]["algorithm"]["name"], saved["config"]["mixer"]["name"]) == ("vdn", "mean")


def test_the_agent_trains_and_resumes(installed: Path, tmp_path: Path):
    arguments = ["algorithm=coma", "agent=small", "agent.width=8", *TINY, "replay.capacity=8"]
    whole, first = tmp_path / "whole", tmp_path / "first"
    inprocess.succeed([*arguments, f"run_dir={whole}"])
    inprocess.succeed([*arguments, f"run_dir={first}", "total_env_steps=30"])
    inprocess.succeed(["ckpt_path=last", f"run_dir={first}", "total_env_steps=60"])
    a, b = (read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (whole, first))
    assert all(torch.equal(value, b[name]) for name, value in a.items() if isinstance(value, Tensor))


def test_the_agent_goes_with_an_algorithm_that_reads_its_hidden_state(installed: Path, tmp_path: Path):
    inprocess.succeed(["algorithm=qtran_alt", "agent=small", "agent.width=8", *TINY, f"run_dir={tmp_path}/run"])
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    config = read_checkpoint(path)["config"]
    assert (config["algorithm"]["name"], config["agent"]["name"]) == ("qtran_alt", "small")
    inprocess.succeed([f"ckpt_path={path}", "episodes=2"], "evaluate")


def test_a_mixer_without_settings_takes_none(installed: Path, tmp_path: Path):
    """A module without a constructor has torch's, which takes anything and then fails."""
    line = inprocess.refused(["algorithm=vdn", "mixer=mean", "+mixer.embed_dim=3", f"run_dir={tmp_path}/run"])
    assert line == "error: unknown key 'mixer.embed_dim'"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("algorithm.disapointment=0.5", "unknown key 'algorithm.disapointment'"),
        ("algorithm.disappointment=2", "algorithm 'hysteretic': disappointment must be in [0, 1], not 2.0"),
        ("algorithm.disappointment=much", "algorithm.disappointment must be a number, not 'much'"),
    ],
)
def test_a_mistake_in_its_settings_is_one_line(installed: Path, tmp_path: Path, typed: str, message: str):
    inprocess.refused(["algorithm=hysteretic", typed, f"run_dir={tmp_path}/run"], message)


def test_its_name_is_shown_without_importing_it(installed: Path):
    (line,) = [line for line in inprocess.succeed(["--help"]).out.splitlines() if line.startswith("algorithm: ")]
    assert "hysteretic" in line
    assert "my_team" not in sys.modules


def test_its_loss_is_what_its_docstring_says(installed: Path):
    """Recomputed by loops over rows and steps."""
    my_team = importlib.import_module("my_team")
    torch.manual_seed(0)
    learner = my_team.Hysteretic(
        policy=build_policy(), mixer=my_team.MeanMixer(), settings=value_settings(), disappointment=0.25
    ).double()
    batch = double_batch(3, [4, 9, 6])
    terms = learner.loss(batch)
    terms.total.backward()
    clean = batch.mask_invalid()
    with torch.no_grad():
        q = learner.policy.unroll(clean)
        y = learner.targets(clean, q)
    total, count = 0.0, 0
    for b in range(3):
        for t in range(int(batch.filled[b].sum())):
            alive_agents = [n for n in range(3) if batch.agent_mask[b, t, n]]
            values = [q[b, t, n, batch.actions[b, t, n]].item() for n in alive_agents]
            error = sum(values) / max(1, len(values)) - y[b, t].item()
            total += (0.25 if error > 0 else 1.0) * error**2
            count += 1
    assert terms.total.item() == pytest.approx(total)
    assert terms.count.item() == count
    for name, parameter in learner.policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_folder_of_ones_own_by_config_dir(tmp_path: Path):
    recipe = tmp_path / "my_conf" / "experiment" / "mine.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# @package _global_\ndefaults:\n  - two_step_vdn\n  - _self_\nseed: 77\n")
    inprocess.succeed(["experiment=mine", "--config-dir", str(tmp_path / "my_conf"), *TINY, f"run_dir={tmp_path}/run"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["seed"], summary["algorithm"], summary["env"]) == (77, "vdn", "two_step")


def test_an_entry_point_without_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[qmix_lightning.conf]\nbroken = nowhere_at_all.conf\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = "the entry point broken = 'nowhere_at_all.conf' of qmix_lightning.conf leads to no folder"
    inprocess.refused([*TINY, f"run_dir={tmp_path}/run"], told)
