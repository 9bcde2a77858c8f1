"""``qmix-envs``: the table, one environment, the check, and a new plugin that installs, passes and trains."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from pettingzoo import ParallelEnv

from qmix_lightning import environment
from qmix_lightning.cli import env_catalogue, env_settings
from qmix_lightning.cli.env_catalogue import SIZES, catalogue
from qmix_lightning.commands.envs import _created, compose_env, main
from qmix_lightning.env_checker.report import CHECKS
from support import inprocess, runs
from support.fakes import VaryingLength
from support.inprocess import own_globals

ROOT = Path(__file__).parents[2]


@pytest.fixture
def envs(capsys):
    """Run the command in this process: status, what it said, and its error line."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with own_globals(["qmix-envs", *arguments]), pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run


# list ------------------------------------------------------------------------------------------------------------


def test_the_table_has_every_environment(envs):
    status, out, err = envs()
    assert (status, err) == (0, "")
    assert envs("list") == (status, out, err)
    head, *rows = out.splitlines()
    assert head.split() == ["env", "family", "origin", *SIZES, "can", "run", "here"]
    table = {row.split()[0]: row.split()[1:] for row in rows if row and not row.startswith("Sizes")}
    conf = {file.stem for file in (ROOT / "conf" / "env").glob("*.yaml")}
    assert set(table) == conf | set(environment.names())
    assert table["two_step"] == ["two_step", "built-in", "2", "2", "3", "3", "2", "yes"]
    assert table["climbing"][:2] == ["matrix", "built-in"]
    assert table["pettingzoo"][2:7] == ["-"] * 5  # it depends


@pytest.mark.parametrize("name", [n for n, e in catalogue().items() if e.install is None])
def test_declared_sizes_are_the_true_ones(name: str):
    """The table does not open anything, so what YAML files say of sizes is compared here."""
    if name in ("gymnasium", "matrix", "pettingzoo", "smacv2"):
        assert catalogue()[name].sizes is None
        return
    spec, _ = _created(compose_env(name, []))
    true = (spec.n_agents, spec.n_actions, spec.obs_dim, spec.state_dim, spec.episode_limit)
    line = "# Sizes: {} agents, {} actions, observation {}, state {}, limit {}".format(*true).replace("None", "none")
    assert catalogue()[name].sizes == true, f"conf/env/{name}.yaml should say: {line}"


def test_sizes_are_looked_up_when_asked(envs, monkeypatch):
    entries = {n: replace(e, sizes=None) for n, e in catalogue().items() if n in ("two_step", "matrix", "pettingzoo")}
    monkeypatch.setattr("qmix_lightning.cli.env_catalogue.catalogue", lambda: entries)
    out = envs("list", "--sizes")[1]
    assert re.search(r"^two_step .* 2 +2 +3 +3 +2  yes$", out, re.MULTILINE)
    assert re.search(r"^matrix .* - +- +- +- +-  yes$", out, re.MULTILINE)
    assert re.search(r"^pettingzoo .* - +- +- +- +-  yes$", out, re.MULTILINE)


def test_what_is_not_installed_is_told_with_the_command(envs, monkeypatch):
    def absent(name: str):
        if name == "mpe2":
            raise PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(env_catalogue, "distribution", absent)
    assert catalogue()["mpe"].install == "pip install 'qmix-lightning[mpe]'"
    assert catalogue()["two_step"].install is None
    assert re.search(r"^mpe .* 25  pip install 'qmix-lightning\[mpe\]'$", envs()[1], re.MULTILINE)


def test_an_old_version_is_not_enough(monkeypatch):
    class Old:
        version = "0.1"

    monkeypatch.setattr(env_catalogue, "distribution", lambda name: Old if name == "mpe2" else distribution(name))
    assert catalogue()["mpe"].install == "pip install 'qmix-lightning[mpe]'"


def test_registered_from_python(envs):
    environment.register("mine", "support.fakes:VaryingLength")
    try:
        assert re.search(r"^mine +mine +registered ", envs()[1], re.MULTILINE)
        assert "support.fakes:VaryingLength" in envs("show", "mine")[1]
    finally:
        environment.ENVIRONMENTS._targets.pop("mine")


@pytest.mark.parametrize("arguments", [[], ["new", "--help"]])
def test_nothing_heavy_is_imported(arguments: list[str]):
    code = (
        f"import sys; sys.argv[1:] = {arguments!r}\n"
        "from qmix_lightning.commands.envs import main\n"
        "heavy = ('torch', 'jax', 'numpy', 'gymnasium', 'hydra', 'pettingzoo', 'jaxmarl', 'vmas', 'lbforaging')\n"
        "try: main()\n"
        "finally: print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_seen_enough():
    typed = f"{sys.executable} -m qmix_lightning.commands.envs | true"
    done = subprocess.run(typed, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


# show and check --------------------------------------------------------------------------------------------------


def test_show(envs):
    status, out, _ = envs("show", "two_step")
    assert status == 0
    lines = ["agents +2 in 1 group: agent_1, agent_2", "actions +2", "observation +3", "state +3", "limit +2 steps"]
    for line in lines:
        assert re.search(rf"^  {line}$", out, re.MULTILINE), out
    assert "built-in (qmix_lightning.envs.two_step:TwoStep)" in out
    assert "two agents, two actions, two steps." in out


def test_show_with_settings_and_an_address_of_ones_own(envs):
    status, out, err = envs("show", "support.fakes:VaryingLength", "kwargs.n_agents=2", "env.reward_aggregation=mean")
    assert (status, err) == (0, "")
    assert re.search(r"agents +2 in 1 group: unit_0, unit_1", out)
    assert re.search(r"env\.kwargs\.n_agents +2 +int +agents at the start, 2 or 3\.", out)
    assert re.search(r"env\.reward_aggregation +mean ", out)
    assert re.search(r"episode metrics +won", out)


@pytest.mark.parametrize(
    ("name", "said"),
    [("pettingzoo", "yes, once env.id has a value"), ("matrix", "not with these settings: a matrix game needs either")],
)
def test_show_what_needs_settings(envs, name: str, said: str):
    status, out, _ = envs("show", name)
    assert status == 0
    assert re.search(rf"can run here +{said}", out)
    assert "  setting" in out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FailsToClose", "yes"),
        (
            "ExitsInState",
            r"not with these settings: .* could not be made: SystemExit: 0 \(tests/support",
        ),
    ],
)
def test_show_tells_all_it_can_of_what_fails(envs, name: str, said: str):
    status, out, err = envs("show", f"support.broken_envs:{name}")
    assert (status, err) == (0, "")
    assert re.search(rf"can run here +{said}", out)
    assert "  setting" in out


def test_show_says_what_is_missing_to_play(envs, monkeypatch):
    monkeypatch.setitem(VaryingLength.metadata, "missing", "its game is not there")
    assert re.search(r"can run here +no: its game is not there", envs("show", "support.fakes:VaryingLength")[1])


def test_show_says_of_a_class_without_a_docstring_what_its_base_does():
    """But not what PettingZoo's says of every environment."""

    class Undescribed(ParallelEnv):
        pass

    class Longer(VaryingLength):
        pass

    assert env_settings._docstring(Undescribed) == ""
    assert env_settings._docstring(Longer).startswith("Episodes of 3 to 12 steps")


def test_show_what_is_not_installed(envs):
    if catalogue()["smac"].install is None:
        pytest.skip("SMAC is installed")
    status, out, _ = envs("show", "smac")
    assert status == 0
    assert re.search(r"can run here +no: .*pip install", out)


@pytest.mark.parametrize("name", ["smac", "smacv2", "overcooked", "lbf", "rware", "mpe", "smax", "vmas", "jaxmarl"])
def test_show_says_what_every_setting_means(name: str, capsys: pytest.CaptureFixture[str]):
    """And not where it could be read."""
    env_settings.show_settings(compose_env(name, [], complete=False))
    said = capsys.readouterr().out
    heading, *rows = said[said.index("  setting ") :].splitlines()
    assert len(rows) > 2
    for row in rows:
        meaning = row[heading.index("meaning") :]
        assert meaning.strip(), row
        assert not meaning.startswith("see "), row


def test_check(envs):
    status, out, err = envs("check", "support.fakes:VaryingLength", "kwargs.n_agents=2")
    assert (status, err) == (0, "")
    assert all(re.search(rf"^  ok +{check} ", out, re.MULTILINE) for check in CHECKS)
    assert out.endswith(f"{len(CHECKS)} checks passed, 0 failed, 0 not tried\n")


def test_check_fails_with_status_1(envs):
    status, out, err = envs("check", "support.broken_envs:PaysInfinity")
    assert (status, err) == (1, "")
    assert re.search(r"^  FAILED +finite +step 2 .*reward of agent 'w_0' is inf", out, re.MULTILINE)
    assert re.search(r"checks passed, [1-9] failed", out)


def test_check_of_what_exits_is_no_success(envs):
    status, out, _ = envs("check", "support.broken_envs:Exits")
    assert status == 1
    assert re.search(r"^  FAILED +runs +step 1 .*SystemExit: 0", out, re.MULTILINE)


def test_check_with_more_steps_sees_more(envs):
    few = envs("check", "support.fakes:VaryingLength", "kwargs.extra_length=50", "--steps", "5")[1]
    assert re.search(r"^  - +ends +no episode ended in 15 steps; --steps plays on$", few, re.MULTILINE)
    more = envs("check", "support.fakes:VaryingLength", "kwargs.extra_length=50", "--steps", "100")[1]
    assert re.search(r"^  ok +ends ", more, re.MULTILINE)


BAD = {
    "lst": "no command 'lst'. Did you mean 'list'?",
    "mpe": "no command 'mpe'. Did you mean 'qmix-envs show mpe'?",
    "--all": "unrecognized arguments: --all",
    "list --size": "Did you mean '--sizes'?",
    "list lbf": "qmix-envs show lbf is about one",
    "show": "qmix-envs show needs a name",
    "show two_stp": "unknown environment 'two_stp'. Did you mean 'two_step'?",
    "show two_step kwargs=3": "env.kwargs must be a mapping {key: value}, not 3",
    "show pogema size=5": "env.size must be a list, not 5",
    "show matrix presett=climbing": "unknown key 'env.presett' for environment 'matrix'. Did you mean 'preset'?",
    "check two_step nonsense": "cannot read 'nonsense', which should be setting=value",
    "check matrix payoff=[1": "cannot read 'payoff=[1', which should be setting=value",
    "check matrix": "a matrix game needs either preset or payoff",
    "check pettingzoo": "env.id needs a value",
    "check two_step env=matrix": "'env=matrix' would name another environment than 'two_step'",
    "check no.such.module:make": "there is no module 'no' here",
    "check support.fakes:VaryingLength kwargs.n_agent=2": "has no setting 'n_agent'. Did you mean 'n_agents'?",
    "check two_step --steps 0": "--steps must be at least 1",
    "check two_step --step 5": "Did you mean '--steps'?",
    "check two_step --steps x": "invalid int value: 'x'",
    "new": "qmix-envs new needs a name",
    "new two_step": "there is an environment 'two_step' already",
    "new My-Team": "'My-Team' cannot be the name of a package: use lower-case letters, digits and underscores, e.g",
    "new class": "'class' cannot be the name of a package",
    "new json": "there is a module 'json' already",
    "new numpy": "there is a module 'numpy' already",
    "new ../up": "'../up' cannot be the name of a package",
    "new fine --path /dev/null/x": "cannot be written",
}


@pytest.mark.parametrize("typed", BAD)
def test_bad_input_gets_one_line_and_status_2(envs, typed: str):
    status, out, err = envs(*typed.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert BAD[typed] in err
    assert err.count("\n") == 1


# new -------------------------------------------------------------------------------------------------------------


def test_a_new_plugin_is_refused_where_something_is(envs, tmp_path):
    (tmp_path / "my_team").mkdir()
    status, _, err = envs("new", "my_team", "--path", str(tmp_path))
    assert status == 2
    assert "exists already; nothing was written" in err
    assert not list((tmp_path / "my_team").iterdir())


def test_a_new_plugin_installs_passes_and_trains(envs, tmp_path, monkeypatch):
    status, out, _ = envs("new", "my_team", "--path", str(tmp_path))
    assert status == 0
    assert f"pip install -e {tmp_path / 'my_team'}" in out
    project = tmp_path / "my_team"
    written = {str(f.relative_to(project)) for f in project.rglob("*") if f.is_file()}
    assert written == {
        "pyproject.toml",
        "README.md",
        "my_team/__init__.py",
        "my_team/environment.py",
        "conf/experiment/my_team_qmix.yaml",
        "tests/test_my_team.py",
    }
    points = tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points == {"qmix_lightning.envs": {"my_team": "my_team.environment:MyTeam"}}
    assert not any("endezvous" in file.read_text() for file in project.rglob("*.*") if file.is_file())
    assert "pypi.org" not in (project / "README.md").read_text(), "qmix-lightning is on no index"

    site = tmp_path / "site"
    install = ["install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target"]
    runs.run([*install, str(site), str(project)], "pip")
    monkeypatch.syspath_prepend(site)
    assert re.search(r"^my_team +my_team +my-team 0\.1\.0 .*yes$", envs("list")[1], re.MULTILINE)
    assert "0 failed" in envs("check", "my_team", "size=5")[1]
    monkeypatch.setenv("PYTHONPATH", str(site))
    runs.run(["-q", "-p", "no:cacheprovider", str(project / "tests")], "pytest")

    run_dir = tmp_path / "run"
    small = ["total_env_steps=200", "eval_interval=100", "eval_episodes=4", "checkpoint_interval=100"]
    small += ["replay.batch_size=8", "trainer.accelerator=cpu", "logger=none", f"run_dir={run_dir}"]
    recipe = ["--config-dir", str(project / "conf"), "experiment=my_team_qmix"]
    inprocess.succeed([*recipe, *small])
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["env"]) == ("completed", "my_team")
    assert summary["env_steps"] >= 200
    assert 0.0 <= summary["eval"]["win_rate"] <= 1.0
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_team"]:
        del sys.modules[name]


@pytest.mark.slow
def test_the_new_environment_can_be_learned(tmp_path, envs, monkeypatch):
    envs("new", "my_team", "--path", str(tmp_path))
    project = tmp_path / "my_team"
    run_dir = tmp_path / "run"
    arguments = ["--config-dir", str(project / "conf"), "experiment=my_team_qmix", "env=pettingzoo"]
    arguments += ["env.id=my_team.environment:MyTeam", "logger=none", "trainer.accelerator=cpu", f"run_dir={run_dir}"]
    monkeypatch.setenv("PYTHONPATH", str(project))
    runs.run(arguments)
    assert json.loads((run_dir / "summary.json").read_text())["eval"]["win_rate"] >= 0.95
