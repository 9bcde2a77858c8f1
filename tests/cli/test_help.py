"""What a newcomer types first: --help, --cfg; and the commands that are installed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.hydra import Hydra

from qmix_lightning import environment
from support import inprocess, runs

CONF = Path(__file__).parents[2] / "conf"
COMMAND_NAMES = ["train", "eval", "watch", "export", "import", "envs", "bench", "report"]
HEAVY = ("hydra", "torch", "pytorch_lightning", "gymnasium", "pettingzoo", "numpy", "mpe2", "jax", "tensorboard")


def imported_by(code: str, folder: Path, *names: str) -> tuple[str, list[str]]:
    """What some code prints, and which of the modules are loaded when it has run, in a process of its own."""
    code += f"\nimport sys; print([name for name in {names!r} if name in sys.modules], file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ast.literal_eval(ended.stderr)


def test_the_help_of_every_command_imports_nothing_heavy(tmp_path: Path):
    """One after another in one process, as ``python -m qmix_lightning NAME``."""
    names = ["evaluate", *COMMAND_NAMES]
    code = "\n".join(
        [
            "import contextlib, io, json, runpy, sys",
            "shown = {}",
            f"for name in {names!r}:",
            "    sys.argv = ['qmix_lightning', name, '--help']",
            "    with contextlib.redirect_stdout(io.StringIO()) as said:",
            "        try:",
            "            runpy.run_module('qmix_lightning', run_name='__main__', alter_sys=True)",
            "        except SystemExit as end:",
            "            assert not end.code, (name, end.code)",
            "    shown[name] = said.getvalue()",
            "print(json.dumps(shown))",
        ]
    )
    printed, imported = imported_by(code, tmp_path, *HEAVY)
    assert imported == []
    for name, text in json.loads(printed).items():
        assert text.startswith(f"qmix-{'eval' if name == 'evaluate' else name}"), name
        # train's lists choices, one group to a line
        assert name == "train" or max(map(len, text.splitlines())) <= 125, name
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path):
    """What is typed, what a component takes and what Lightning takes."""
    typed = ["--seed 3", "algorithm.gamma=1.5", "trainer.max_epoch=1"]
    code = "\n".join(
        [
            "import contextlib, io, sys",
            "from qmix_lightning.cli.hydra_app import run_under_hydra, status_of",
            "from qmix_lightning.commands import train",
            f"for typed in {typed!r}:",
            "    sys.argv = ['qmix-train', *typed.split()]",
            "    with contextlib.redirect_stderr(io.StringIO()) as said:",
            "        assert status_of(lambda: run_under_hydra('train', train.train), 'train') == 2",
            "    print(said.getvalue(), end='')",
        ]
    )
    shown, imported = imported_by(code, tmp_path, "torch", "pytorch_lightning")
    assert imported == []
    assert len(shown.splitlines()) == len(typed), shown
    assert list(tmp_path.iterdir()) == []


def test_a_command_composes_its_configuration_once(monkeypatch: pytest.MonkeyPatch):
    composed: list[object] = []
    compose_config = Hydra.compose_config

    def counted(*args: Any, **settings: Any) -> Any:
        composed.append(settings["overrides"])
        return compose_config(*args, **settings)

    monkeypatch.setattr(Hydra, "compose_config", counted)
    inprocess.refused(["seed=one"], "seed must be an integer")
    assert len(composed) == 1


def test_a_policy_that_is_not_there_is_told_before_torch_is_imported(tmp_path: Path):
    code = "\n".join(
        [
            "import contextlib, io, sys",
            "from qmix_lightning.cli.hydra_app import run_under_hydra, status_of",
            "from qmix_lightning.commands import evaluate, export, watch",
            "for name, task in (('evaluate', evaluate._task), ('export', export._task), ('watch', watch._task)):",
            "    sys.argv = ['qmix-x', 'nowhere', *(['output=x'] if name == 'export' else [])]",
            "    with contextlib.redirect_stderr(io.StringIO()) as said:",
            "        assert status_of(lambda: run_under_hydra(name, task), name) == 2",
            "    print(said.getvalue(), end='')",
        ]
    )
    shown, imported = imported_by(code, tmp_path, "torch")
    assert imported == []
    assert shown.count("error: there is no policy 'nowhere'") == 3


def test_a_reader_that_has_seen_enough_ends_help_well(tmp_path: Path):
    script = Path(sys.executable).with_name("qmix-train")
    ended = subprocess.run(
        f"set -o pipefail; {script} --help | true", shell=True, executable="/bin/bash", capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_building_a_run_imports_only_the_environment_that_was_asked_for():
    """What commands are forked from has imported no more than :mod:`qmix_lightning.build` does."""
    names = ["pettingzoo", "mpe2", "lbforaging", "jax", "vmas", "torch.utils.tensorboard", "tensorboard"]
    assert runs.run([*names, "torch"], "support.loaded") == "['torch']\n"


def test_help_lists_every_group_with_its_choices(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").touch()
    shown = inprocess.succeed(["--help", "--config-dir", str(tmp_path)]).out
    lines = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    for folder in CONF.iterdir():
        choices = sorted(path.stem for path in folder.glob("*.yaml"))
        if choices and folder.name != "suite":
            assert set(choices) <= set(lines[folder.name].split(", ")), folder.name
    assert set(environment.names()) <= set(lines["env"].split(", "))
    assert "mine" in lines["experiment"].split(", ")
    for key in ("total_env_steps", "eval_interval", "checkpoint_interval", "run_dir", "ckpt_path"):
        assert key in shown


@pytest.mark.parametrize("command", ["evaluate", "watch", "export"])
def test_help_says_what_each_setting_is(command: str):
    shown = inprocess.succeed(["--help"], command).out
    settings = yaml.safe_load((CONF / f"{command}.yaml").read_text())
    assert "env: {}            # settings that differ from the policy's" in shown
    for key in settings.keys() - {"defaults", "hydra"}:
        assert re.search(rf"^{key}:", shown, re.MULTILINE), key
    assert "$" not in shown
    assert "hydra" not in shown


def test_the_tab_key_completes_choices_and_keys(monkeypatch: pytest.MonkeyPatch):
    """Hydra's own completion, which asks with what stands on the line so far."""
    for line, offered in (("env=l", "env=lbf"), ("algorithm=vdn optimizer.lr_f", "optimizer.lr_final=")):
        monkeypatch.setenv("COMP_LINE", f"qmix-train {line}")
        monkeypatch.setenv("COMP_POINT", str(len(f"qmix-train {line}")))
        assert inprocess.succeed(["-sc", "query=bash"]).out.split() == [offered]


def test_cfg_job_prints_the_composed_configuration():
    shown = yaml.safe_load(inprocess.succeed(["--cfg", "job", "algorithm=vdn", "optimizer.lr=0.25"]).out)
    assert (shown["algorithm"]["name"], shown["mixer"]["name"], shown["optimizer"]["lr"]) == ("vdn", "vdn", 0.25)
    assert shown["env"] == {"name": "two_step"}
    part = inprocess.succeed(["algorithm=vdn", "--cfg", "job", "--package", "mixer"]).out
    assert part == "# @package mixer\nname: vdn\n"
    resolved = yaml.safe_load(inprocess.succeed(["--cfg", "job", "--resolve", "run_dir=here"]).out)
    assert resolved["logger"]["tensorboard"]["save_dir"] == "here"
