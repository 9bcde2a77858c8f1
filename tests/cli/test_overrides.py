"""How recipes compose with what is typed beside them."""

import pytest

from qmix_lightning.cli.compose import composer
from qmix_lightning.cli.overrides import prepare_overrides, sweep_parts
from qmix_lightning.config.shipped import shipped_files
from support import inprocess

RECIPE = """# @package _global_
defaults:
  - override /algorithm: qmix
  - override /mixer: qmix_pymarl
algorithm:
  gamma: 0.5
"""


@pytest.mark.parametrize(
    ("typed", "mixer"),
    [
        ([], ("qmix", 2)),
        (["algorithm=vdn"], ("vdn", None)),
        (["algorithm=qmix"], ("qmix", 2)),
        (["algorithm=qmix_ns"], ("qmix_ns", None)),
        (["algorithm=vdn", "mixer=none"], ("none", None)),
        (["algorithm=qmix", "mixer.embed_dim=8"], ("qmix", 2)),
    ],
)
def test_a_typed_algorithm_brings_its_own_mixer_into_a_recipe(tmp_path, typed, mixer):
    """The recipe's mixer belongs to the recipe's algorithm; Hydra alone would train "vdn" with QMIX's mixer."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(RECIPE)
    config, _ = inprocess.configured(
        ["--config-dir", str(tmp_path), "experiment=mine", f"run_dir={tmp_path}/x", *typed]
    )
    assert (config.mixer["name"], config.mixer.get("hypernet_layers")) == mixer
    assert config.algorithm["gamma"] == 0.5


def test_a_preset_of_ones_own_need_not_say_how_many_episodes_are_evaluated_at_a_time(tmp_path):
    (tmp_path / "preset").mkdir()
    lines = shipped_files("preset")["pymarl"].read_text().splitlines()
    (tmp_path / "preset" / "mine.yaml").write_text("\n".join(li for li in lines if "num_eval_envs" not in li))
    config, _ = inprocess.configured(["--config-dir", str(tmp_path), "preset=mine", f"run_dir={tmp_path}/x"])
    assert config.rollout.num_eval_envs == 8


@pytest.mark.parametrize("typed", ["run_dir=here", "++run_dir=here"])
def test_a_typed_run_folder_is_the_only_one(typed, monkeypatch):
    """None is chosen beside it, which would win: by an address's name, for a sweep or a job of SLURM."""
    assert "run_dir=here" in prepare_overrides(["env=support.sides:Duel", typed], "train")
    swept = prepare_overrides(["-m", "seed=1,2", typed], "train")
    assert str(sweep_parts(swept)[0]) == "here"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for prepared in (
        prepare_overrides([typed], "train"),
        prepare_overrides(["env=support.sides:Duel", typed], "train"),
    ):
        assert [a for a in prepared if "run_dir" in a] == ["run_dir=here"]


def test_composing_leaves_what_hydra_has_composed_as_it_was():
    """A program of the user's that runs under Hydra may train from Python, too."""
    with composer() as outer:
        with composer() as inner:
            assert inner(["env=two_step", "seed=4"], None)[0].seed == 4
        assert outer(["env=two_step"], [5])[0].seed == 5
