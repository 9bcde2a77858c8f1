"""Every mistake gives one line with the closest valid choice, its exit status, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qmix_lightning import environment
from qmix_lightning.commands import envs
from qmix_lightning.config.resume import imported
from support import inprocess
from support.cases import every_value

_BEGINNING = ("collecting: ", "threads: ", "replay: ", "run: ", "watch: ")
"""How the lines begin that say how a run begins."""


def check_refused(outcome: inprocess.Outcome, status: int, *texts: str) -> str:
    assert outcome.status == status, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in outcome.err + outcome.out
    said = [line for line in outcome.out.splitlines() if not line.startswith(_BEGINNING)]
    assert said == []
    assert status == 1 or outcome.out == ""  # only a run that begins says how
    for text in texts:
        assert text in lines[0], lines[0]
    return lines[0]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that has to stay as it is."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    monkeypatch.chdir(folder)
    return folder


# -- what is typed ------------------------------------------------------------------------------------------------

FAKE = "env=pettingzoo env.id=support.unsuitable_envs:"
TYPED = [
    # values that a component refuses
    ("optimizer=rmsprop optimizer.alpha=1.5", "alpha must be at least 0 and below 1"),
    ("agent.hidden_dim=0", "hidden_dim"),
    # groups and choices
    ("envv=two_step", "unknown key 'envv'. Did you mean 'env'?"),
    ("+algoritm=qmix", "unknown key 'algoritm'. Did you mean 'algorithm'?"),
    ("env=two_stepp", "unknown env 'two_stepp'. Did you mean 'env=two_step'?"),
    ("algorithm=qmx", "unknown algorithm 'qmx'. Did you mean 'algorithm=qmix'?"),
    ("algorithm=QMIX", "Did you mean 'algorithm=qmix'?"),
    ("mixer=sum", "unknown mixer 'sum'; known: none, qatten, qmix, "),
    ("+algorithm=vdn", "write algorithm=vdn without +"),
    ("env=null", "env must be one of its choices, not null"),
    ("env=", "env must be one of its choices, not empty"),
    ("logger=[]", "logger must be one of its choices, not []: type logger=none"),
    ("env.name=two_stepp", "unknown environment 'two_stepp'. Did you mean 'two_step'?"),
    ("-m algorithm=qmix,vdnn", "unknown algorithm 'vdnn'. Did you mean 'algorithm=vdn'?"),
    ("algorithm=qmix,vdn", "algorithm has several values: add -m to sweep"),
    # keys
    ("sed=2", "unknown key 'sed'. Did you mean 'seed'?"),
    ("optimizer.lrr=1", "unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
    ("+optimizer.lrr=1", "unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
    ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'. Did you mean 'optimizer.lr'?"),
    ("n_envs=4", "unknown key 'n_envs'. Did you mean 'rollout.num_envs'?"),
    ("env_args.map_name=3m", "unknown key 'env_args.map_name'. Did you mean 'env.map_name'?"),
    ("env=smax env.map_name=3m", "unknown key 'env.map_name'. Did you mean 'env.scenario'?"),
    ("experiment=two_step", "unknown experiment 'two_step'; there are two_step_coma, two_step_qmix, "),
    ("trainer.compile=true", "unknown key 'trainer.compile'; trainer.* takes the arguments of Lightning's Trainer"),
    ("trainer.max_epoch=1", "Did you mean 'trainer.max_epochs'?"),
    ("trainer.strategy=ddp_spawn", "copies this process, whose environments and files cannot be copied: use ddp"),
    ("--seed 3", "settings are typed without dashes: seed=3"),
    ("--seed=3", "settings are typed without dashes: seed=3"),
    ("--config=qmix --env-config=sc2 with seed=3", "settings are typed without dashes: algorithm=qmix"),
    ("--env-config=sc2", "settings are typed without dashes: env=sc2"),
    ("env=sc2", "unknown env 'sc2': it is typed env=smac"),
    ("runner=parallel", "unknown key 'runner'. Did you mean 'rollout'?"),
    ("-mixer=vdn", "settings are typed without dashes: mixer=vdn"),
    ("--batch-size 8", "settings are typed without dashes: replay.batch_size=8"),
    ("env = lbf", "there must be no blanks around '=': env=lbf"),
    ("env =lbf", "there must be no blanks around '=': env=lbf"),
    ("seed 3", "there must be a '=' between a setting and its value: seed=3"),
    ("--experimental-rerun mine.txt", "--experimental-rerun unpickles the file it names"),
    ("--experimental mine.txt", "--experimental-rerun unpickles the file it names"),
    ("optimizer=adam optimizer.alpha=1", "known in optimizer: beta1, beta2, eps, lr"),
    ("gamma=0.9", "Did you mean 'algorithm.gamma'?"),
    ("replay.dtype=half", "replay.dtype must be one of float32, float16, bfloat16, not 'half'"),
    ("replay.capacity=1e12", "the replay may need 185 TB (1,000,000,000,000 episodes of up to 2 steps, in float32"),
    ("+env.sice=3", "unknown key 'env.sice' for environment 'two_step'"),
    (f"{FAKE}with_size env.kwargs.sise=3", "has no setting 'sise'. Did you mean 'size'?"),
    (f"{FAKE}with_size", "needs size"),
    (f"{FAKE}with_size env.sise=3", "; the environment's own arguments are typed env.kwargs.sise"),
    (f"{FAKE}with_size +env.sise=3", "; the environment's own arguments are typed env.kwargs.sise"),
    ("trainer.callbacks=1", "use callbacks.<name>._target_="),
    ("trainer.default_root_dir=x", "use run_dir="),
    ("~optimizer.lr", "missing value: optimizer.lr"),
    ("--sedd", "unrecognized arguments: --sedd"),
    ("seed", "cannot read 'seed', which should be key=value"),
    ("help", "Did you mean '--help'?"),
    ("lbf", "which should be key=value. Did you mean 'env=lbf'?"),
    ("smac_3m", "Did you mean 'experiment=smac_3m'?"),
    ("simple_tag", "Did you mean 'env=mpe env.scenario=simple_tag'?"),
    ("seed=range(1,3)", "seed has several values: add -m to sweep over them"),
    ("total_env_steps=2M", "total_env_steps must be an integer, not '2M': M is written 2e6"),
    ("total_env_steps=1.5k", "k is written 1.5e3"),
    ("env.kwargs={", "cannot read 'env.kwargs={'"),
    # values and types
    ("seed=one", "seed must be an integer, not 'one'"),
    ("total_env_steps=0", "total_env_steps must be at least 1, not 0"),
    ("total_env_steps=inf", "total_env_steps must be an integer, not inf"),
    ("rollout.update_unit=episode", "Did you mean 'episodes'?"),
    ("rollout.step_timeout_s=0", "rollout.step_timeout_s must be more than 0, not 0.0"),
    ("algorithm=coma mixer=qmix", "algorithm 'coma' mixes no values: mixer must be none, not qmix"),
    ("replay.batch_size=100 replay.capacity=50", "replay.batch_size (100) is larger than replay.capacity (50)"),
    ("exploration.epsilon_start=2", "exploration.epsilon_start must be between 0 and 1, not 2.0"),
    ("agent.share_parameters=some", "agent.share_parameters must be one of true, false, group, not 'some'"),
    ("agent.use_obs=maybe", "agent.use_obs must be true or false, not 'maybe'"),
    ("agent.use_obs=false agent.use_last_action=false agent.use_agent_id=false", "the agent's input is empty"),
    ("mixer.positivity=ab", "Did you mean 'abs'?"),
    ("td_lambda=0.8", "unknown key 'td_lambda'. Did you mean 'algorithm.td_lambda'?"),
    ("algorithm.gamma=nan", "gamma must be in [0, 1], not nan"),
    ("optimizer.lr=fast", "optimizer.lr must be a number, not 'fast'"),
    ("env.kwargs=3", "unknown key 'env.kwargs'"),
    ("env=mpe env.kwargs=3", "env.kwargs must be a mapping {key: value}, not 3"),
    ("trainer.precision=half", "trainer.precision must be one of"),
    ("trainer.accelerator=abacus", "You selected an invalid accelerator name"),
    ("trainer.devices=0", "devices=0"),
    ("trainer.strategy=ddpp", "invalid strategy name"),
    ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches must be 1"),
    ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must not be negative"),
    ("trainer.enable_checkpointing=false", "a run always writes its checkpoints"),
    ("run_dir=", "run_dir must name a folder"),
    ("run_dir=mine.txt", "run_dir cannot be made"),
    ("run_dir=a/b/c seed=one", "seed must be an integer"),
    ("logger.mine=1", "logger.mine needs a _target_"),
    ("callbacks.mine._target_=nowhere.Mine", "No module named 'nowhere'"),
    (
        "callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStoping",
        "callbacks.stop: 'pytorch_lightning.callbacks' has no 'EarlyStoping'. Did you mean 'EarlyStopping'?",
    ),
    ("trainer.accelerator=gpu", "No supported gpu backend found: use trainer.accelerator=auto or cpu"),
    # what runs are compared by
    ("objective=retrun_mean", "evaluations have no such metric. Did you mean 'objective=return_mean'?"),
    # environments
    ("env=pettingzoo", "env.id needs a value"),
    ("env=pettingzoo env.id=nowhere:make", "there is no module 'nowhere' here"),
    ("env=pettingzoo env.id=support.unsuitable_envs:Continous", "has no 'Continous'. Did you mean 'Continuous'?"),
    (f"{FAKE}Continuous", "the action space of agent 'unit_0' is Box"),
    (f"{FAKE}refuses", "could not be made: ValueError: the first line and the second"),
    ("env=matrix", "needs either preset or payoff"),
    # checkpoints
    ("ckpt_path=nowhere.ckpt", "there is no checkpoint at nowhere.ckpt"),
    ("ckpt_path=.", "is a folder; name a .ckpt file in it"),
    ("ckpt_path=best run_dir=run", "holds networks only, for qmix-eval; it goes on from ckpt_path=last"),
    ("ckpt_path=mine.txt", "mine.txt is not a whole checkpoint"),
    ("ckpt_path=last run_dir=nowhere", "no checkpoint in"),
]


@pytest.mark.parametrize(("typed", "message"), TYPED, ids=[typed for typed, _ in TYPED])
def test_a_mistake_on_the_command_line(work: Path, typed: str, message: str):
    check_refused(inprocess.command(typed.split()), 2, message)
    assert sorted(os.listdir(work)) == ["mine.txt"]
    assert (work / "mine.txt").read_text() == "mine"


SWEEPS = [
    ("algorithm=glob(qm*) optimizer.lrr=1", "Did you mean 'optimizer.lr'?"),
    ("algorithm=glob(zz*)", "algorithm=glob(zz*) fits no choice of algorithm"),
    ("seed=1,2 run_dir=${env.name}", "run_dir of a sweep is one folder"),
    ("seed=1,2 hydra.sweep.subdir=x", "hydra.sweep.subdir is set for a sweep"),
    ("seed=1,2 ckpt_path=last", "repeat its command without ckpt_path"),
    ("seed=1,2 hydra/launcher=joblibb", "Did you mean"),
    ("seed=1,b total_env_steps=none", "total_env_steps must be an integer, not 'none'"),
]


@pytest.mark.parametrize(("typed", "message"), SWEEPS, ids=[typed for typed, _ in SWEEPS])
def test_a_sweep_that_cannot_begin(work: Path, typed: str, message: str):
    """What no job takes is in tests/study/test_sweep.py."""
    inprocess.refused(["-m", *inprocess.TINY, *typed.split()], message)
    assert not list(work.rglob("config.yaml"))


def test_a_file_of_the_working_folder_can_be_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As installed commands find it, which do not have that folder on their path."""
    (work / "in_this_folder.py").write_text("from support.fakes import Echo\n")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    with inprocess.own_globals(["qmix-envs", "show", "in_this_folder:Echo"]), pytest.raises(SystemExit) as ended:
        envs.main()
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown
    assert re.search("can run here +yes", shown.out)


def test_a_file_of_the_working_folder_is_no_environment_by_itself(work: Path):
    (work / "my_game.py").touch()
    check_refused(inprocess.command(["env=my_game"]), 2, "unknown env 'my_game': it is typed env=my_game:FACTORY")


EXPERIMENTS = {
    "key": ("optimizer:\n  lrr: 1\n", "unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
    "top_key": ("total_env_step: 5\n", "unknown key 'total_env_step'. Did you mean 'total_env_steps'?"),
    "value": ("seed: one\n", "seed must be an integer, not 'one'"),
    "choice": ("defaults:\n  - override /algorithm: qmixx\n", "Did you mean 'algorithm=qmix'?"),
    "group": ("defaults:\n  - override /algorithmm: qmix\n", "unknown group 'algorithmm'. Did you mean 'algorithm'?"),
    "kwargs": ("defaults:\n  - override /env: mpe\nenv:\n  kwargs:\n    NN: 3\n", "Did you mean 'N'?"),
    "yaml": ("seed: [1, 2\n", "yaml.yaml"),
}


def own_choice(recipes: Path, group: str, name: str, text: str) -> inprocess.Outcome:
    """Run a command that chooses a file of one's own, which is written here."""
    (recipes / group).mkdir(parents=True)
    (recipes / group / f"{name}.yaml").write_text(text)
    return inprocess.command([f"{group}={name}", "--config-dir", str(recipes)])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_mistake_in_an_experiment(work: Path, tmp_path: Path, name: str):
    text, message = EXPERIMENTS[name]
    outcome = own_choice(tmp_path / "recipes", "experiment", name, f"# @package _global_\n{text}")
    check_refused(outcome, 2, message)
    assert sorted(os.listdir(work)) == ["mine.txt"]


@pytest.mark.parametrize("text", ["seed: 3\n", "defaults:\n  - override /algorithm: vdn\n"])
def test_an_experiment_without_its_first_line(text: str, work: Path, tmp_path: Path):
    outcome = own_choice(tmp_path / "recipes", "experiment", "mine", text)
    check_refused(outcome, 2, "must begin with the line '# @package _global_'")


def test_an_experiment_by_a_name_of_this_packages(work: Path, tmp_path: Path):
    outcome = own_choice(tmp_path / "recipes", "experiment", "two_step_vdn", "# @package _global_\nseed: 3\n")
    check_refused(
        outcome,
        2,
        "two_step_vdn.yaml is not read, since experiment 'two_step_vdn' is this package's own: give the file",
    )


def test_a_preset_that_lacks_a_value(work: Path, tmp_path: Path):
    text = "# @package _global_\npreset:\n  agent: recurrent\n"
    outcome = own_choice(tmp_path / "recipes", "preset", "mine", text)
    check_refused(
        outcome,
        2,
        "', which ",
        " takes from it: add it, or let the preset's file begin with the defaults of another, '- tuned' and '- _self_'",
    )


# -- packages and environments ------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment.ENVIRONMENTS, "_targets", dict(environment.ENVIRONMENTS._targets))
    return environment.register


def test_an_environment_whose_package_is_missing(work: Path, tmp_path: Path, registered, monkeypatch):
    (tmp_path / "half_there.py").write_text("import a_package_that_is_not_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    registered("half_there", "half_there:make")
    outcome = inprocess.command(["env=half_there"])
    check_refused(outcome, 2, "environment 'half_there' needs the package", "pip install a_package_that_is_not_here")
    assert sorted(os.listdir(work)) == ["mine.txt"]


def test_mpe_without_its_package(work: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mpe2", None)
    check_refused(inprocess.command(["env=mpe"]), 2, "pip install 'qmix-lightning[mpe]'")
    assert sorted(os.listdir(work)) == ["mine.txt"]


def test_agents_with_different_action_counts_train(work: Path):
    outcome = inprocess.succeed([*f"{FAKE}MixedActions".split(), "run_dir=run", *inprocess.TINY])
    assert "eval return" in outcome.out
    saved = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    assert saved["spec"]["action_counts"] == [2, 3, 4]


# -- checkpoints --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(finished_run: Path, work: Path) -> Path:
    """A finished run in the working folder."""
    shutil.copytree(finished_run, work / "run")
    return work / "run"


def test_a_folder_that_holds_a_run(run: Path, work: Path):
    before = inprocess.snapshot(work)
    check_refused(inprocess.command(["run_dir=run", *inprocess.TINY]), 2, "run holds a run already", "ckpt_path=last")
    assert inprocess.snapshot(work) == before


def test_the_folder_of_a_run_is_typed_as_what_goes_on(run: Path, work: Path):
    before = inprocess.snapshot(work)
    check_refused(inprocess.command(["ckpt_path=run"]), 2, "a run: run_dir=run ckpt_path=last goes on with it")
    check_refused(inprocess.command(["run"]), 2, "Did you mean 'run_dir=run ckpt_path=last', which goes on with the")
    assert inprocess.snapshot(work) == before


def test_an_empty_folder_of_the_users_stays(work: Path):
    (work / "empty").mkdir()
    check_refused(inprocess.command(["run_dir=empty", "ckpt_path=last"]), 2, "no checkpoint in empty")
    assert sorted(os.listdir(work)) == ["empty", "mine.txt"]


@pytest.mark.parametrize("left", [[], ["config.yaml.writing", "simulator.log"]])
def test_a_run_that_was_killed_before_its_configuration_was_written(work: Path, left: list[str]):
    (work / "run").mkdir()
    for name in (".lock", *left):
        (work / "run" / name).touch()
    message = "the run in run was killed before it had written its config.yaml: repeat its command without ckpt_path"
    check_refused(inprocess.command(["run_dir=run", "ckpt_path=last"]), 2, message)


@pytest.mark.parametrize(
    ("typed", "refused"),
    [
        (["env=two_step", "replay=uniform", "replay.batch_size=4", "replay.capacity=64"], ""),
        (["replay=uniform"], "run: replay.batch_size=32 (the checkpoint has 4); replay.capacity=5000 (the check"),
        (["env=penalty"], "run: env.name='matrix' (the checkpoint has 'two_step'). Resume"),
        (["algorithm=qmix"], "algorithm=qmix sets more than its own section: leave it out, or type the whole command"),
    ],
)
def test_a_choice_typed_on_resume_brings_its_own_section(run: Path, typed: list[str], refused: str):
    outcome = inprocess.command(["run_dir=run", "ckpt_path=last", "total_env_steps=70", *typed])
    if refused:
        check_refused(outcome, 2, refused)
    else:
        assert outcome.status == 0, outcome


@pytest.mark.parametrize(
    ("where", "typed", "message"),
    [
        ("ckpt_path=last run_dir=run", "optimizer.lr=0.1", "optimizer.lr=0.1 (the checkpoint has 0.0005)"),
        (
            "ckpt_path=run/checkpoints/last.ckpt",
            "trainer.devices=2 trainer.strategy=ddp",
            "resume with trainer.devices=1",
        ),
    ],
)
def test_a_checkpoint_of_another(run: Path, work: Path, where: str, typed: str, message: str):
    """Every setting that may not differ is in tests/config/test_resume.py."""
    before = inprocess.snapshot(work)
    check_refused(inprocess.command([*inprocess.TINY, *where.split(), *typed.split()]), 2, message)
    assert inprocess.snapshot(work) == before


def test_best_holds_too_little_to_resume(run: Path, work: Path):
    before = inprocess.snapshot(work)
    outcome = inprocess.command(["ckpt_path=run/checkpoints/best.ckpt"])
    check_refused(outcome, 2, "holds networks only, for qmix-eval; resume from a last.ckpt")
    assert inprocess.snapshot(work) == before


class Bomb:
    """Would write a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def _rewrite(path: Path, **changes: Any) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def _truncated(path: Path, marker: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path: Path, marker: Path) -> None:
    content = bytearray(path.read_bytes())
    position = content.find(b"/data/0") + 200
    content[position] ^= 255
    path.write_bytes(bytes(content))


def _bomb(path: Path, marker: Path) -> None:
    torch.save(Bomb(marker), path)


DAMAGE = {
    _truncated: "is not a whole checkpoint",
    _flipped: "is damaged",
    _bomb: "was refused: it holds more than tensors and plain values",
}


@pytest.mark.parametrize(("damage", "command"), [*every_value(DAMAGE, ["train", "evaluate"]), (_bomb, "evaluate")])
def test_a_bad_checkpoint(run: Path, work: Path, tmp_path: Path, damage: Any, command: str):
    """Whatever else may be wrong with one is in tests/checkpoint/test_files.py."""
    path, marker = run / "checkpoints" / "last.ckpt", tmp_path / "it ran"
    damage(path, marker)
    before = inprocess.snapshot(work)
    check_refused(inprocess.command(["ckpt_path=run/checkpoints/last.ckpt"], command), 2, DAMAGE[damage])
    assert not marker.exists()
    assert inprocess.snapshot(work) == before


def test_a_checkpoint_does_not_decide_what_is_imported(run: Path, tmp_path: Path):
    """Its configuration may name callbacks and loggers: only what is typed, or shipped, is made."""
    path, marker = run / "checkpoints" / "last.ckpt", tmp_path / "it ran"
    config = torch.load(path, weights_only=True)["config"]
    config["logger"] = config["callbacks"] = {"mine": {"_target_": "os.mkdir", "_args_": [str(marker)]}}
    _rewrite(path, config=config)
    outcome = inprocess.succeed(["ckpt_path=run/checkpoints/last.ckpt", "total_env_steps=62"])
    assert "the run goes on without its logger.mine, callbacks.mine; type them again" in outcome.err
    assert not marker.exists()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_checkpoint_does_not_decide_which_environment_is_imported(run: Path, command: str):
    """That it is, once it is typed, is in test_evaluate.py and test_working_folder.py."""
    path = run / "checkpoints" / "last.ckpt"
    config = torch.load(path, weights_only=True)["config"]
    config["env"] = {"name": "pettingzoo", "id": "nowhere:Mine", "kwargs": {}}
    _rewrite(path, config=config)
    outcome = inprocess.command(["ckpt_path=run/checkpoints/last.ckpt"], command)
    check_refused(outcome, 2, "names the environment 'nowhere:Mine'", "say env.id=nowhere:Mine")


def test_what_a_checkpoint_decides_to_import():
    """Whatever names a module; JaxMARL's and Gymnasium's own names import nothing and need not be typed again."""
    assert imported({"name": "pettingzoo", "id": "a.b:make"}) == {"id": "a.b:make"}
    assert imported({"name": "a_plugin", "id": "a.b:make"}) == {"id": "a.b:make"}
    assert imported({"name": "gymnasium", "id": "Foraging-8x8-2p-3f-v3", "module": None}) == {}
    assert imported({"name": "gymnasium", "id": "Mine-v0", "module": "mine"}) == {"module": "mine"}
    assert imported({"name": "jaxmarl", "id": "MPE_simple_spread_v3"}) == {}


# -- qmix-eval ----------------------------------------------------------------------------------------------------

BEST = "ckpt_path=run/checkpoints/best.ckpt"
EVAL = [
    ("episodes=3", "policy needs a value"),
    ("ckpt_path=null", "policy needs a value"),
    (f"{BEST} policy=two_step", "are two: name one"),
    ("policy=simple_sprad", "there is no policy 'simple_sprad'"),
    ("policy=last", "'last' of which run? name its folder with run_dir="),
    ("ckpt_path=nowhere.ckpt", "there is no checkpoint at nowhere.ckpt"),
    ("run run_dir=elsewhere", "run_dir=elsewhere is of policy=last or policy=best, and the policy is run"),
    ("run_dir=run", "add one of them, or type the folder alone, policy=run"),
    ("run two_step", "run and two_step are two policies: name one, or one after the other: -m policy=run,two_step"),
    (f"{BEST} output=/dev/null/x/y.json", "cannot be written: Not a directory; name another place, output=FILE"),
    (f"{BEST} episodes=0", "episodes must be at least 1, not 0"),
    (f"{BEST} episodes=many", "episodes must be an integer or null, not 'many'"),
    (f"{BEST} episode=3", "unknown key 'episode'. Did you mean 'episodes'?"),
    (f"{BEST} env.nam=matrix", "unknown key 'env.nam'. Did you mean 'env.name'?"),
    (f"{BEST} env=climbing", "'env' comes from the checkpoint"),
    (f"{BEST} +env.name={{a:1}}", "env.name must be the name of an environment"),
    (f"{BEST} --seed 3", "settings are typed without dashes: seed=3"),
    (f"{BEST} output=run", "output must be a file, and run is a folder"),
    ("run/checkpoints/nothing.ckpt", "there is no checkpoint at run/checkpoints/nothing.ckpt"),
]


@pytest.mark.parametrize(("typed", "message"), EVAL, ids=[typed for typed, _ in EVAL])
def test_a_mistake_in_an_evaluation(run: Path, work: Path, typed: str, message: str):
    before = inprocess.snapshot(work)
    check_refused(inprocess.command(typed.split(), "evaluate"), 2, message)
    assert inprocess.snapshot(work) == before


def test_an_evaluation_on_an_environment_that_does_not_fit(run: Path, work: Path):
    before = inprocess.snapshot(work)
    path = run / "checkpoints" / "best.ckpt"
    config = torch.load(path, weights_only=True)["config"]
    config["env"] = {"name": "matrix", "preset": "climbing"}
    _rewrite(path, config=config)
    before = inprocess.snapshot(work)
    check_refused(inprocess.command([BEST], "evaluate"), 2, "was trained with n_actions=2, this environment has 3")
    assert inprocess.snapshot(work) == before


# -- failures while running, and the real command ------------------------------------------------------------------


def test_a_budget_too_small_for_one_batch_fails_and_says_so(work: Path):
    outcome = inprocess.command(["run_dir=run", "total_env_steps=10", "logger=none"])
    check_refused(outcome, 1, "before a batch of 32 could be drawn: raise total_env_steps or lower replay.batch_size")
    assert '"status": "failed"' in (work / "run" / "summary.json").read_text()
    assert not (work / "run" / "checkpoints").exists()


def test_the_installed_command_says_one_line(tmp_path: Path):
    script = Path(sys.executable).with_name("qmix-train")
    short = subprocess.run([script, "algoritm=vdn"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (short.returncode, short.stdout) == (2, "")
    assert short.stderr == "error: unknown key 'algoritm'. Did you mean 'algorithm'?\n"
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_is_printed_on_demand(work: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    full = inprocess.command(["total_env_steps=0"])
    assert full.status == 2
    assert "Traceback" in full.err
    assert full.err.endswith("\nerror: total_env_steps must be at least 1, not 0\n")
