"""Environments by address: how they are typed and called, and which of them a file may name."""

import pytest

from qmix_lightning.cli.known_tasks import typed_as
from qmix_lightning.cli.overrides import prepare_overrides
from qmix_lightning.config.env_address import env_label, is_address, is_trusted, trust, trusted_modules
from qmix_lightning.config.resume import imported
from qmix_lightning.envs import pettingzoo
from qmix_lightning.errors import ConfigurationError, MissingDependencyError
from qmix_lightning.runtime.near_modules import import_extra, moved_module


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


@pytest.mark.parametrize("text", ["package.module:factory", "module:make", "pettingzoo.sisl.pursuit_v5", "a:b.c"])
def test_addresses(text):
    assert is_address(text)


@pytest.mark.parametrize("text", ["mpe", "two_step", "", "a b:c", "a/b:c", "1.5", "hf://x/y", "a:b:c"])
def test_no_addresses(text):
    assert not is_address(text)


@pytest.mark.parametrize(
    ("section", "label"),
    [
        ({"name": "mpe"}, "mpe"),
        ({"name": "pettingzoo", "id": "pettingzoo.sisl.pursuit_v5"}, "pursuit_v5"),
        ({"name": "pettingzoo", "id": "my_package.games:Catch"}, "Catch"),
        ({"name": "pettingzoo", "id": "my_package.catch:make"}, "catch"),
        ({"name": "pettingzoo", "id": "../../etc"}, "pettingzoo"),
        ({"name": "gymnasium", "id": "Foraging-8x8-2p-3f-v3"}, "gymnasium"),
    ],
)
def test_an_environment_is_called_by_its_own_name(section, label):
    assert env_label(section) == label


def test_an_address_stands_where_a_name_does():
    prepared = prepare_overrides(["env=support.pixels:Catch", "seed=3"], "train")
    assert {"env=pettingzoo", "++env.id=support.pixels:Catch", "seed=3"} <= set(prepared)
    assert any("_Catch_${algorithm.name}" in override for override in prepared if override.startswith("run_dir="))
    assert prepare_overrides(["env=support.pixels:Catch"], "evaluate") == ["++env.id=support.pixels:Catch"]
    named = prepare_overrides(["env=support.pixels:Catch", "run_dir=x"], "train")
    assert [override for override in named if override.startswith("run_dir=")] == ["run_dir=x"]


@pytest.mark.parametrize(
    ("task", "typed"),
    [
        ("simple_spread", "env=mpe env.scenario=simple_spread"),
        ("simple_tag_v3", "env=mpe env.scenario=simple_tag"),
        ("3m", "env=smac env.map_name=3m or env=smax env.scenario=3m"),
        ("battle", "env=magent2 env.game=battle"),
        ("pursuit_v4", "env=pettingzoo.sisl.pursuit_v5"),
        ("Foraging-8x8-2p-3f-v3", "env=gymnasium env.id=Foraging-8x8-2p-3f-v3"),
        ("nothing", None),
    ],
)
def test_a_common_task_is_found(task, typed):
    assert typed_as(task) == typed


def test_a_module_that_has_moved_on_is_found():
    assert moved_module("mpe2.simple_spread_v2") == ". Did you mean 'mpe2.simple_spread_v3'?"
    assert moved_module("mpe2.simple_sprad_v3") == ". Did you mean 'mpe2.simple_spread_v3'?"
    assert moved_module("nowhere_at_all.x") == moved_module("os") == moved_module("mpe2.qqqqqqqq") == ""
    with pytest.raises(MissingDependencyError, match=r"Did you mean 'mpe2.simple_spread_v3'\?"):
        pettingzoo.make("mpe2.simple_spread_v2")


def test_a_package_that_is_not_installed_is_told_with_the_extra_that_has_it():
    with pytest.raises(MissingDependencyError, match=r"^x needs y: pip install 'qmix-lightning\[z\]', or x=false$"):
        import_extra("nowhere_at_all", "x needs y", "z", ", or x=false")


@pytest.mark.parametrize("module", ["butterfly.pistonball_v6", "butterfly.knights_archers_zombies_v11"])
def test_a_mistake_behind_pettingzoos_wrappers_gets_the_nearest_name(module):
    with pytest.raises(ConfigurationError, match=r"has no setting 'max_cycle'. Did you mean 'max_cycles'\?"):
        pettingzoo.make(f"pettingzoo.{module}", {"max_cycle": 3})


def test_a_trusted_module_need_not_be_typed_again():
    section = {"name": "pettingzoo", "id": "my_games.arena:make", "opponents": {"policy": "my_games.prey:flee"}}
    assert set(imported(section)) == {"id", "opponents.policy"}
    trust("my_games.arena")
    assert set(imported(section)) == {"opponents.policy"}
    trust("my_games")
    assert imported(section) == {}
    assert trusted_modules() == ["my_games.arena", "my_games"]
    trust("my_games", remove=True)
    assert is_trusted("my_games.arena.deep:make")
    assert not is_trusted("my_games.arenas:make")
    assert not is_trusted("my_games.prey:flee")
    for refused in ("../x", "a b", ""):
        with pytest.raises(ConfigurationError, match="not the name of a module"):
            trust(refused)
    with pytest.raises(ConfigurationError, match="not among"):
        trust("nowhere", remove=True)


@pytest.mark.parametrize(
    "opponents", ["x:y", "outputs", "best", "hf://a/b", "../run", {"policy": "x:y"}, ["x:y"], "lbf_qmix"]
)
def test_opponents_that_a_file_names_must_be_typed(opponents):
    assert imported({"name": "mpe", "team": ["red_*"], "opponents": opponents})


@pytest.mark.parametrize("opponents", [None, "random", "no_op", "self", {"policy": "self", "versions": 3}])
def test_opponents_that_a_file_may_name(opponents):
    assert imported({"name": "mpe", "team": ["red_*", "blue_[0-3]"], "opponents": opponents}) == {}
