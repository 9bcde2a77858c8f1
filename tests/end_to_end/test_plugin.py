"""A package with nothing but an entry point adds an environment, and is not imported when another one is used."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from qmix_lightning import environment
from support import inprocess, runs

NAME = "counting_game"
MODULE = "a_game_of_somebody_else"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the third-party package is, as pip leaves it; importing it writes ``imported`` beside it."""
    folder = tmp_path_factory.mktemp("plugin")
    about = folder / "somebody_elses_game-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody-elses-game\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[qmix_lightning.envs]\n{NAME} = {MODULE}:make\n")
    (folder / f"{MODULE}.py").write_text(
        textwrap.dedent("""
            from pathlib import Path

            import numpy as np
            from gymnasium import spaces
            from pettingzoo import ParallelEnv

            Path(__file__).with_name("imported").touch()


            class CountingGame(ParallelEnv):
                metadata = {"name": "counting_game"}

                def __init__(self, size, bonus):
                    self.possible_agents = ["left", "right"]
                    self.size, self.bonus = size, bonus

                def observation_space(self, agent):
                    return spaces.Box(0, 1, (self.size,), np.float32)

                def action_space(self, agent):
                    return spaces.Discrete(2)

                def _see(self):
                    return {a: np.eye(self.size, dtype=np.float32)[self.t] for a in self.agents}

                def reset(self, seed=None, options=None):
                    self.agents, self.t = list(self.possible_agents), 0
                    return self._see(), {a: {} for a in self.agents}

                def step(self, actions):
                    acted, same = list(self.agents), len(set(actions.values())) == 1
                    self.t += 1
                    over = self.t == self.size - 1
                    seen = self._see()
                    if over:
                        self.agents = []
                    rewards = dict.fromkeys(acted, self.bonus * same)
                    ended, cut = dict.fromkeys(acted, over), dict.fromkeys(acted, False)
                    return seen, rewards, ended, cut, {a: {} for a in acted}

                def close(self):
                    pass


            def make(size: int = 3, bonus: float = 1.0):
                return CountingGame(size, bonus)
        """)
    )
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package is there, and has not been imported yet."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    (site / "imported").unlink(missing_ok=True)
    return site


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the package's environment, made by a process of its own."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        runs.run([f"env={NAME}", "env.kwargs.size=5", *inprocess.TINY, f"run_dir={folder}"])
    return folder


def test_it_trains_from_the_command_line(trained: Path):
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["status"], summary["env"]) == ("completed", NAME)
    saved = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["spec"]["obs_dim"] == 5
    assert saved["eval"]["eval/length_mean"] == 4
    assert saved["eval"]["eval/return_mean"] in [2.0 * count for count in range(5)], "the bonus is 1 for each agent"


def test_its_settings_are_changed_for_an_evaluation(trained: Path, installed: Path):
    typed = [f"ckpt_path={trained}/checkpoints/best.ckpt", "env.kwargs.bonus=0", "episodes=2", "output=-"]
    result = json.loads(inprocess.succeed(typed, "evaluate").out)
    assert (result["return_mean"], result["length_mean"]) == (0, 4)


def test_it_is_known_by_name_and_not_imported_for_that(installed: Path, tmp_path: Path):
    assert NAME in environment.names()
    (line,) = [line for line in inprocess.succeed(["--help"]).out.splitlines() if line.startswith("env: ")]
    assert NAME in line.removeprefix("env: ").split(", ")
    assert f"name: {NAME}" in inprocess.succeed([f"env={NAME}", "--cfg", "job", "--package", "env"]).out
    inprocess.succeed([*inprocess.TINY, "env=two_step", "total_env_steps=10", f"run_dir={tmp_path}/run"])
    inprocess.refused([f"env={NAME[:-1]}"], f"Did you mean 'env={NAME}'?")
    assert not (installed / "imported").exists()
    assert MODULE not in sys.modules


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("env.kwargs.sise=5", f"unknown key 'env.kwargs.sise' for environment '{NAME}'. Did you mean "),
        ("env.kwargs.size=five", "must be an integer, not 'five'"),
        ("env.sizes=5", "unknown key 'env.sizes'"),
    ],
)
def test_its_settings_are_checked_against_its_signature(installed: Path, tmp_path: Path, typed: str, message: str):
    inprocess.refused([f"env={NAME}", typed, f"run_dir={tmp_path}/run"], message)
    assert not (tmp_path / "run").exists()


def test_without_the_package_the_name_is_unknown():
    inprocess.refused([f"env={NAME}x"], "unknown env")
    assert NAME not in environment.names()
