"""``qmix-watch``: files, pages and windows of what a policy plays, and one line for what cannot be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import inprocess
from support.pictures import frames_of


@pytest.fixture(scope="module")
def runs(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the two-step game, ``first`` and ``second``."""
    folder = tmp_path_factory.mktemp("watch")
    for name in ("first", "second"):
        shutil.copytree(finished_run, folder / name)
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def watched(*arguments: object) -> str:
    return inprocess.succeed([str(a) for a in arguments], "watch").out


def refused(*arguments: object) -> str:
    line = inprocess.refused([str(a) for a in arguments], name="watch")
    assert not list(Path.cwd().iterdir()), "nothing was written"
    return line


def test_a_run_folder_becomes_a_video(runs: Path):
    out = watched(runs / "first")
    assert "written to watch_first.mp4" in out
    assert "2 steps, return" in out
    assert len(frames_of(Path("watch_first.mp4"))) == 3 + 2, "the end is held for a while"


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("{}/first/checkpoints/last.ckpt", "first_last"),
        ("last", "first_last"),
        ("best", "first_best"),
    ],
)
def test_every_reference_has_a_name_of_its_own(runs: Path, reference: str, name: str):
    watched(reference.format(runs), f"run_dir={runs / 'first'}", "render=none", "page=true")
    assert [path.name for path in Path.cwd().iterdir()] == [f"watch_{name}.html"]


def test_episodes_follow_one_another_and_each_has_its_page(runs: Path):
    out = watched(runs / "first", "episodes=2", "page=true", "output=new/team.gif")
    assert out.count("2 steps, return") == 2
    assert sorted(path.name for path in Path("new").iterdir()) == ["team.gif", "team.html", "team_2.html"]


def test_the_page_shows_what_evaluation_plays(runs: Path):
    played = re.search(r"return ([-\d.]+),", watched(runs / "first", "render=none", "seed=9"))
    evaluated = inprocess.succeed([str(runs / "first"), "episodes=1", "seed=9", "output=-"], "evaluate")
    assert played is not None
    assert float(played[1]) == pytest.approx(json.loads(evaluated.out)["return_mean"])


def test_two_teams_stand_beside_each_other(runs: Path):
    out = watched(runs / "first", f"beside={runs / 'second'}", "page=true", "render=none")
    assert out.count("2 steps, return") == 2
    text = Path("watch_first.html").read_text()
    assert text.count('"sensitivities":[[') == 2


def test_mistakes_get_one_line(runs: Path):
    first = runs / "first"
    assert "policy needs a value" in refused("episodes=2")
    assert "there is no policy 'simple_spred'" in refused("simple_spred")
    assert "episodes must be at least 1, not 0" in refused(first, "episodes=0")
    assert "epsilon must be between 0 and 1, not 2.0" in refused(first, "epsilon=2.0")
    assert "add page=true" in refused(first, f"beside={runs / 'second'}")
    assert "a video ends in .mp4 or .gif" in refused(first, "output=team.avi")
    assert "output must be a file" in refused(first, f"output={runs}")
    assert "cannot be written: Not a directory; name another" in refused(first, "output=/dev/null/x/team.mp4")
    assert "are two policies: name one, or" in refused(first, runs / "second")
    assert "unknown key 'episods'. Did you mean 'episodes'?" in refused(first, "episods=2")
    assert "render" in refused(first, "render=humans")
    assert "unknown key 'env.scenarios'" in refused(first, "env.scenarios=3m")
    assert "this environment has" in refused(first, "env.name=matrix", "env.preset=climbing")


def test_without_a_screen_there_is_no_window(runs: Path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    assert "render=human needs a screen" in refused(runs / "first", "render=human")


def test_a_policy_acts_is_watched_and_evaluated_without_lightning_and_what_only_training_needs(runs: Path):
    """From Python without Hydra, too, which is the command's own."""
    run = str(runs / "first")
    code = (
        "import sys, qmix_lightning as ql\n"
        f"team = ql.load({run!r})\n"
        "team.act({name: [0.0] * team.spec.obs_dim for name in team.spec.agent_names})\n"
        "assert 'hydra' not in sys.modules\n"
        f"sys.argv = ['qmix-watch', {run!r}]\n"
        "from qmix_lightning.commands.watch import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        f"sys.argv = ['qmix-eval', {run!r}, 'episodes=2']\n"
        "from qmix_lightning.commands.evaluate import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = ['torch._dynamo', 'sympy', 'scipy', 'pytorch_lightning', 'lightning_fabric', 'torchmetrics']\n"
        "heavy += ['tensorboard', 'plotly', 'matplotlib']\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
    assert ended.stderr == ""


@pytest.mark.screen
def test_a_window_shows_it(runs: Path, tmp_path: Path):
    """Under a virtual screen: the command plays to its end, and what stands on the screen is the picture."""
    played = under_xvfb("-m", "qmix_lightning", "watch", str(runs / "first"), "render=human", "fps=5")
    assert "2 steps, return" in played
    under_xvfb(
        "-c",
        "import os, numpy as np\n"
        "from PIL import ImageGrab\n"
        "from qmix_lightning.rendering.recorder import Moment\n"
        "from qmix_lightning.rendering.window import Window\n"
        "window = Window('a team', fps=10)\n"
        "window(np.full((200, 320, 3), (250, 20, 30), np.uint8), Moment(1, 0.0, 0.0, 2, 2, False))\n"
        "screen = np.asarray(ImageGrab.grab(xdisplay=os.environ['DISPLAY']).convert('RGB'))\n"
        "assert (screen == (250, 20, 30)).all(-1).sum() == 200 * 320\n"
        "window.close()\n",
    )


def under_xvfb(*arguments: str) -> str:
    command = ["xvfb-run", "-a", "--server-args=-screen 0 1024x768x24", sys.executable, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
