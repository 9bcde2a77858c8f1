"""The recipes of the environment families compose, build, and train a few updates; StarCraft against its stand-in."""

from collections import Counter
from pathlib import Path

import pytest

from qmix_lightning.build import build_run
from qmix_lightning.envs import starcraft
from qmix_lightning.training.lightning_parts import quieten_lightning
from qmix_lightning.types import Episode
from support import fake_smac
from support.cases import mostly_slow
from support.compositions import composed, run_config
from support.fake_smac import SERVER

SMALL = ["replay.batch_size=2", "replay.capacity=8", "agent.hidden_dim=8", "eval_episodes=2"]
SMALL += ["rollout.num_eval_envs=1", "trainer.accelerator=cpu", "logger=none", "checkpoint_interval=100000"]
SMALL += ["algorithm.target_update_every=2"]

EXPERIMENTS = Path(__file__).parents[2] / "conf" / "experiment"

RECIPES = {
    "lbf_8x8_2p_3f": ["total_env_steps=400", "+env.kwargs.max_episode_steps=10", "rollout.update_every=32"],
    "rware_tiny_2ag": ["total_env_steps=160", "+env.kwargs.max_steps=20"],
    "overcooked_cramped_room": ["total_env_steps=160", "env.horizon=20"],
    "kaz": ["total_env_steps=160", "env.kwargs.max_cycles=20"],
}


def train(tmp_path: Path, recipe: str, overrides: list[str]):
    """The run of a recipe, trained to its end."""
    budget = overrides[0].partition("=")[2]
    quieten_lightning()
    run = build_run(run_config(f"experiment={recipe}", *SMALL, f"eval_interval={budget}", *overrides), tmp_path)
    try:
        run.trainer.fit(run.module, datamodule=run.data)
    finally:
        run.data.teardown("fit")
    return run


def stored(run) -> list[Episode]:
    """Every episode in the replay."""
    replay = run.data.replay
    return [replay.get(id) for id in range(replay.first_id, replay.first_id + len(replay))]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains(recipe, tmp_path):
    run = train(tmp_path, recipe, RECIPES[recipe])
    assert run.data.counters.env_steps >= 160
    assert run.data.counters.updates > 2
    assert run.log.last_eval["eval/episodes"] == 2


@pytest.mark.parametrize(("name", "mixer"), [("vdn", "vdn"), ("iql", "none")])
def test_the_foraging_recipes_differ_in_algorithm_and_mixer_alone(name, mixer):
    """Otherwise their results side by side would compare something else too."""
    qmix, other = (composed(f"experiment=lbf_8x8_2p_3f{suffix}", resolve=True) for suffix in ("", f"_{name}"))
    assert other.pop("mixer") == {"name": mixer}
    assert qmix.pop("mixer")["name"] == "qmix"
    assert (other["algorithm"].pop("name"), qmix["algorithm"].pop("name")) == (name, "qmix")
    assert other == qmix


@pytest.mark.parametrize(("recipe", "package"), [("smac_3m", "smac"), ("smacv2_protoss_5v5", "smacv2")])
def test_a_starcraft_recipe_trains_through_a_relaunch(recipe, package, tmp_path, monkeypatch):
    monkeypatch.setattr(starcraft, "_BACK_OFF_S", 0.0)
    fake_smac.install(monkeypatch, package)
    SERVER.step_errors.extend([7, 100])
    run = train(tmp_path, recipe, ["total_env_steps=300", "rollout.num_envs=2"])
    assert run.data.counters.updates > 2
    assert sum(run.data.counters.faults.values()) == 2
    result = run.log.last_eval
    assert 0.0 <= result["eval/win_rate"] <= 1.0
    assert {"eval/dead_allies_mean", "eval/dead_enemies_mean"} <= set(result)
    assert SERVER.running == 0
    # Nothing of the episodes that a relaunch broke off is in the replay, and nothing but whole episodes.
    episodes = stored(run)
    assert len(episodes) > 3
    assert not Counter(e.length for e in episodes) - Counter(SERVER.ended)
    assert all(e.terminated and not e.truncated for e in episodes)  # timeout_is_terminal


TUNED = {name.stem.removeprefix("smac_").removesuffix("_tuned") for name in EXPERIMENTS.glob("smac_*_tuned.yaml")}
IN_CI = ("6h_vs_8z", "3s5z_vs_3s6z")


def test_the_tuned_recipes_are_those_of_the_published_table():
    table = "2s3z 3s5z 1c3s5z 8m_vs_9m 3s_vs_5z 2c_vs_64zg corridor MMM2 27m_vs_30m 5m_vs_6m 3s5z_vs_3s6z 6h_vs_8z"
    assert {*table.split(), "3m", "MMM"} == TUNED


@pytest.mark.parametrize("name", mostly_slow(sorted(TUNED), IN_CI[:1]))
def test_the_tuned_recipe_of_a_map_trains(name, tmp_path, monkeypatch):
    fake_smac.install(monkeypatch, "smac")
    small = ["total_env_steps=300", "rollout.num_envs=2", "rollout.backend=sync", "rollout.update_every=2"]
    run = train(tmp_path, f"smac_{name}_tuned", small)
    assert run.data.counters.updates > 1


@pytest.mark.parametrize("name", mostly_slow(sorted(TUNED), IN_CI))
def test_the_tuned_recipe_of_a_map_is_the_published_one(name):
    """What the sizes of a test's run hide."""
    published = composed(f"experiment=smac_{name}_tuned", resolve=True)
    assert published["env"]["map_name"] == name
    assert (published["optimizer"]["name"], published["optimizer"]["lr"]) == ("adam", 0.001)
    assert (published["replay"]["batch_size"], published["rollout"]["num_envs"]) == (128, 8)
    assert published["algorithm"]["returns"] == "peng_lambda"
    hard = name == "6h_vs_8z"
    assert published["algorithm"]["td_lambda"] == (0.3 if hard else 0.6)
    assert published["exploration"]["epsilon_anneal_steps"] == (500_000 if hard else 100_000)
    assert published["agent"]["hidden_dim"] == (256 if name == "3s5z_vs_3s6z" else 64)


PUBLISHED = ("MMM", "3s5z", "MMM2", "5m_vs_6m", "2c_vs_64zg", "3s5z_vs_3s6z")


@pytest.mark.parametrize("name", mostly_slow(PUBLISHED, ("5m_vs_6m",)))
def test_the_recipe_of_a_published_map_trains(name, tmp_path, monkeypatch):
    fake_smac.install(monkeypatch, "smac")
    run = train(tmp_path, f"smac_{name}", ["total_env_steps=200", "rollout.num_envs=2"])
    assert run.data.counters.updates > 2
    config = run.metadata.config
    assert config["env"]["map_name"] == name
    assert config["mixer"]["hypernet_layers"] == 2
    assert config["env"]["timeout_is_terminal"] is True
