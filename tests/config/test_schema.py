"""The configuration files are the schemas: nothing missing, nothing unknown, no default that is not written down."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic_core import SchemaError
from pytorch_lightning import Trainer

from qmix_lightning import environment
from qmix_lightning.agents import AGENTS
from qmix_lightning.agents.inputs import InputBuilder
from qmix_lightning.algorithms import ALGORITHMS
from qmix_lightning.config.policy_config import EvalConfig, ExportConfig, WatchConfig
from qmix_lightning.config.run_config import (
    ExplorationConfig,
    ReplayConfig,
    RolloutConfig,
    RunConfig,
    evaluation_plan,
    validate,
)
from qmix_lightning.config.schema import check_settings, settings_of
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.mixers import MIXERS
from qmix_lightning.optimizers import OPTIMIZERS
from qmix_lightning.registry import Registry
from qmix_lightning.vector.env_section import adapter_settings
from support.cases import every_value
from support.compositions import composed, run_config

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def typed(*groups: str) -> list[list[str]]:
    """Overrides by which every choice of every one of these groups is made once at least."""
    return [[f"{g}={c}" for g, c in zip(groups, row, strict=True)] for row in every_value(*map(choices, groups))]


TOGETHER = ("env", "agent", "mixer", "exploration", "optimizer", "trainer", "logger", "callbacks")
"""Groups any of whose choices go with any of the others'."""


def composed_with(group: str, choice: str, resolve: bool = True) -> dict[str, Any]:
    """The composition in which a choice is made, together with those of other groups where they may be."""
    made = f"{group}={choice}"
    return composed(*next((row for row in typed(*TOGETHER) if made in row), [made]), resolve=resolve)


def section_of(group: str, choice: str) -> dict[str, Any]:
    return composed_with(group, choice)[group]


def every(*groups: str) -> list[Any]:
    return [pytest.param(g, choice, id=f"{g}={choice}") for g in groups for choice in choices(g)]


# -- every YAML is its schema -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "choice"), every("replay", "rollout", "exploration"))
def test_a_group_with_a_dataclass(group: str, choice: str):
    schema = {"replay": ReplayConfig, "rollout": RolloutConfig, "exploration": ExplorationConfig}[group]
    section = section_of(group, choice)
    assert sorted(section) == sorted(field.name for field in fields(schema))


def settings(factory: Callable[..., Any], provided: tuple[str, ...]) -> set[str]:
    return set(settings_of(factory, provided))


@pytest.mark.parametrize(("group", "choice"), every("agent", "mixer", "algorithm", "optimizer"))
def test_a_group_with_a_component(group: str, choice: str):
    """The section's keys are the component's own keyword arguments, every one of them."""
    registry, provided = {
        "agent": (AGENTS, ("input_dim", "n_actions", "group_of_agent", "obs_entities", "inputs", "pictures")),
        "mixer": (MIXERS, ("n_agents", "state_dim", "obs_dim", "n_actions")),
        "algorithm": (ALGORITHMS, ("policy", "make_policy", "mixer", "spec")),
        "optimizer": (OPTIMIZERS, ()),
    }[group]
    section = section_of(group, choice)
    expected = settings(registry.load(section["name"]), provided)
    if group == "agent":
        expected |= settings(InputBuilder, ("n_agents", "n_actions", "obs_dim"))
    assert set(section) - {"name"} == expected


@pytest.mark.parametrize(("group", "choice"), every("env"))
def test_an_environment(group: str, choice: str):
    """A preset of an environment may leave out what it fixes; the choice of its own name has everything."""
    section = section_of(group, choice)
    factory = environment.load(section["name"])
    own = settings(factory, ("num_envs", "evaluation"))  # which are given by the caller
    adapter = set(adapter_settings(factory)) - {"team"}  # which is typed, and in no YAML
    given = set(section) - {"name"}
    assert given <= own | adapter
    if choice == section["name"]:
        # Environments that pay the team have no rewards to put together.
        assert own | adapter - {"reward_aggregation"} <= given


def test_the_trainer_section_names_arguments_of_lightning():
    known = inspect.signature(Trainer).parameters
    for choice in choices("trainer"):
        assert set(section_of("trainer", choice)) <= set(known)


def test_the_top_level():
    assert sorted(composed()) == sorted(field.name for field in fields(RunConfig))
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("_"))
    named = {f.name for f in fields(RunConfig)} | {"experiment", "suite"}
    assert set(groups) <= named
    for command, schema in {"evaluate": EvalConfig, "export": ExportConfig, "watch": WatchConfig}.items():
        keys = set(OmegaConf.load(CONF / f"{command}.yaml")) - {"defaults", "hydra"}
        assert sorted(keys) == sorted(field.name for field in fields(schema)), command


def test_no_schema_has_a_default():
    for schema in (RunConfig, EvalConfig, ExportConfig, WatchConfig, ReplayConfig, RolloutConfig, ExplorationConfig):
        parameters = inspect.signature(schema).parameters.values()
        assert [p.name for p in parameters if p.default is not p.empty] == [], schema


@pytest.mark.parametrize("registry", [AGENTS, MIXERS, ALGORITHMS, OPTIMIZERS, environment.ENVIRONMENTS])
def test_names_and_files_belong_together(registry: Registry):
    """Each name of the registry is a choice, and each choice leads to a name of the registry."""
    folder = registry.group.removeprefix("qmix_lightning.").removesuffix("s")
    assert set(registry.names()) <= set(choices(folder))
    assert {section_of(folder, choice)["name"] for choice in choices(folder)} == set(registry.names())


def test_names_of_this_package_need_no_installation():
    """A new component is its file, its YAML and its line in a table; entry points are for other distributions."""
    assert "entry-points" not in PROJECT


# -- what composes ------------------------------------------------------------------------------------------------

NEEDED = {
    "env=pettingzoo": ["env.id=a:b"],
    "env=gymnasium": ["env.id=a"],
    "replay=on_policy": ["rollout.update_every=${replay.capacity}", "rollout.update_unit=episodes"],
}


@pytest.mark.parametrize(
    "overrides",
    [row for groups in (TOGETHER, ["algorithm"], ["replay"], ["rollout"], ["experiment"]) for row in typed(*groups)],
    ids=lambda row: row[0],
)
def test_every_choice_passes_validation(overrides: list[str]):
    config = run_config(*overrides, *(more for choice in overrides for more in NEEDED.get(choice, [])))
    assert validate(config.to_dict()) == config


@pytest.mark.parametrize(("preset", "layers", "double_q"), [("pymarl", 2, True), ("paper", 1, False)])
def test_qmix_of_pymarl_and_of_the_paper(preset: str, layers: int, double_q: bool):
    """By value, from the last paragraph of section 3 of the reference; the paper takes the plain maximum (eq. 6)."""
    config = run_config(f"preset={preset}", "algorithm=qmix")
    assert config.preset == preset
    assert config.agent == {
        "name": "recurrent",
        "hidden_dim": 64,
        "share_parameters": True,
        "use_obs": True,
        "use_last_action": True,
        "use_agent_id": True,
        "normalize_obs": False,
        "layer_norm": False,
        "dueling": False,
        "orthogonal_init": False,
    }
    mixer = {"name": "qmix", "embed_dim": 32, "hypernet_layers": layers, "hypernet_dim": 64, "positivity": "abs"}
    mixer |= {"init_scale": 1.0}
    assert config.mixer == mixer
    assert run_config("mixer=qmix_pymarl").mixer == mixer | {"hypernet_layers": 2}
    assert run_config("mixer=qmix_paper").mixer == mixer | {"hypernet_layers": 1}
    optimizer = {"lr": 5e-4, "alpha": 0.99, "eps": 1e-5, "weight_decay": 0.0, "max_grad_norm": 10.0}
    schedule = {"lr_schedule": "constant", "lr_anneal_steps": 1000000, "lr_final": 0.0}
    assert config.optimizer == {"name": "rmsprop", **optimizer, **schedule}
    rule = {key: config.algorithm[key] for key in ("name", "gamma", "double_q", "target_update_mode", "returns")}
    assert rule == {
        "name": "qmix",
        "gamma": 0.99,
        "double_q": double_q,
        "target_update_mode": "hard",
        "returns": "one_step",
    }
    assert (config.algorithm["normalize_rewards"], config.algorithm["normalize_values"]) == ("none", False)
    assert (config.algorithm["target_update_every"], config.algorithm["target_update_unit"]) == (200, "episodes")
    assert (config.replay.batch_size, config.replay.capacity) == (32, 5000)
    epsilon = config.exploration
    assert (epsilon.epsilon_start, epsilon.epsilon_finish, epsilon.epsilon_anneal_steps) == (1.0, 0.05, 50000)
    rollout = config.rollout
    assert (rollout.update_every, rollout.update_unit, rollout.updates) == (1, "episodes", 1)


def test_a_preset_sets_all_groups_together_and_loses_to_what_is_typed():
    tuned = run_config("env=lbf")
    assert (tuned.preset, tuned.optimizer["name"], tuned.mixer["init_scale"]) == ("tuned", "adam", 0.1)
    assert (tuned.algorithm["returns"], tuned.algorithm["normalize_values"]) == ("peng_lambda", True)
    typed = run_config("env=lbf", "optimizer=rmsprop", "algorithm.returns=one_step", "rollout.num_envs=3", "mixer=vdn")
    assert (typed.optimizer["name"], typed.algorithm["returns"]) == ("rmsprop", "one_step")
    assert (typed.rollout.num_envs, typed.mixer) == (3, {"name": "vdn"})
    assert typed.algorithm["target_update_mode"] == tuned.algorithm["target_update_mode"] == "soft"


def test_a_family_of_environments_has_values_of_its_own_in_the_tuned_preset_alone():
    budgets = {env: run_config(f"env={env}").total_env_steps for env in ("lbf", "mpe", "two_step")}
    assert len(set(budgets.values())) == 3
    assert run_config("env=lbf", "preset=pymarl") == dataclasses.replace(
        run_config("env=mpe", "preset=pymarl"), env=run_config("env=lbf").env
    )


@pytest.mark.parametrize("overrides", [["env=smax"], ["env=jaxmarl"], ["experiment=smax_pqn_vdn"]])
def test_what_is_compiled_for_training_also_evaluates(overrides):
    rollout = run_config(*overrides).rollout
    assert rollout.num_eval_envs == rollout.num_envs > 8
    assert run_config(*overrides, "rollout.num_envs=32").rollout.num_eval_envs == 32
    assert run_config(*overrides, "rollout.num_eval_envs=4").rollout.num_eval_envs == 4


def test_families_that_need_more_than_their_budget_say_so_and_no_other():
    notes = {env: composed_with("env", env, resolve=False)["preset"]["note"] for env in choices("env")}
    assert {env for env, note in notes.items() if note} == {"rware", "smac", "smacv2"}
    assert all("raise total_env_steps" in note for note in notes.values() if note)


@pytest.mark.parametrize("choice", choices("experiment"))
def test_every_recipe_names_its_preset(choice: str):
    own = (CONF / "experiment" / f"{choice}.yaml").read_text()
    base = re.search(r"^  - (\w+)$", own, re.M)
    named = own if base is None or base[1] == "_self_" else (CONF / "experiment" / f"{base[1]}.yaml").read_text()
    assert "override /preset: " in named or "  - smac_3m\n" in named


@pytest.mark.parametrize("choice", ["two_step_qmix", "lbf_8x8_2p_3f", "smax_3m", "smac_3m"])
def test_a_preset_that_is_typed_wins_over_a_recipes(choice: str):
    assert run_config(f"experiment={choice}", "preset=paper") != run_config(f"experiment={choice}")


def test_shares_of_the_budget_become_environment_steps():
    config = run_config(
        *("total_env_steps=20000", "exploration.epsilon_anneal_steps=12.5%", "checkpoint_interval=50 %"),
        *("eval_interval=1%", "optimizer=adam", "optimizer.lr_anneal_steps=100%", "replay.batch_size=1"),
    )
    assert config.exploration.epsilon_anneal_steps == 2500
    assert (config.checkpoint_interval, config.eval_interval) == (10000, 200)
    assert config.optimizer["lr_anneal_steps"] == 20000
    for key in ("eval_interval", "optimizer.lr_anneal_steps"):
        message = f"{key} must be an integer or a share of total_env_steps such as 20%, not 'half'"
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            run_config("optimizer=adam", f"{key}=half")


def test_no_share_of_the_budget_is_no_step():
    config = run_config("total_env_steps=20000", "exploration.epsilon_anneal_steps=0%", "checkpoint_interval=0.001%")
    assert (config.exploration.epsilon_anneal_steps, config.checkpoint_interval) == (0, 1)
    with pytest.raises(ConfigurationError, match="eval_interval must be at least 1, not 0"):
        run_config("eval_interval=0.0%")


@pytest.mark.parametrize(
    ("budget", "limit", "plan"),
    [
        (200_000, 25, (20_000, 32)),  # a tenth; 32 episodes are 800 steps
        (1_000_000, 500, (100_000, 32)),  # 16,000 of 100,000
        (200_000, 500, (80_000, 32)),  # longer, so that 16,000 are a fifth
        (20_000, 500, (20_000, 8)),  # one evaluation, of as many as a fifth buys
        (1000, 500, (1000, 1)),
        (1000, None, (160, 32)),
    ],
)
def test_evaluating_takes_a_fifth_of_the_steps_at_most(budget: int, limit: int | None, plan: tuple[int, int]):
    assert evaluation_plan(run_config(f"total_env_steps={budget}"), limit) == plan


def test_a_plan_that_is_typed_stays():
    config = run_config("total_env_steps=1000", "eval_interval=7", "eval_episodes=9")
    assert evaluation_plan(config, 500) == (7, 9)


@pytest.mark.parametrize(
    ("algorithm", "mixer", "dead_agents"), [("iql", "none", "no_op"), ("vdn", "vdn", "zero"), ("qmix", "qmix", "zero")]
)
def test_an_algorithm_brings_its_mixer_and_the_same_training(algorithm: str, mixer: str, dead_agents: str):
    config, qmix = run_config(f"algorithm={algorithm}"), run_config("algorithm=qmix")
    assert config.mixer["name"] == mixer
    assert config.algorithm == qmix.algorithm | {"name": algorithm, "dead_agents": dead_agents}
    assert (config.optimizer, config.replay, config.rollout) == (qmix.optimizer, qmix.replay, qmix.rollout)


@pytest.mark.parametrize(("preset", "value"), [("tuned", "zero"), ("pymarl", "no_op"), ("paper", "zero")])
def test_dead_agents_are_worth_what_the_preset_says(preset: str, value: str):
    assert run_config(f"preset={preset}", "algorithm=vdn").algorithm["dead_agents"] == value


@pytest.mark.parametrize(
    "typed",
    [("algorithm=vdn", "mixer=qmix"), ("mixer=qmix", "algorithm=vdn"), ("experiment=two_step_vdn", "mixer=qmix")],
)
def test_what_is_typed_overrides_what_the_algorithm_brings(typed: tuple[str, ...]):
    config = run_config(*typed, "agent=feedforward", "agent.hidden_dim=7")
    assert config.algorithm["name"] == "vdn"
    assert (config.mixer["name"], config.mixer["embed_dim"]) == ("qmix", 32)
    assert (config.agent["name"], config.agent["hidden_dim"]) == ("feedforward", 7)


def test_the_command_line_overrides_a_recipe():
    config = run_config("experiment=two_step_qmix", "optimizer.lr=0.5", "env=climbing", "replay.batch_size=7")
    assert (config.optimizer["name"], config.optimizer["lr"]) == ("adam", 0.5)
    assert config.env == {"name": "matrix", "preset": "climbing"}
    assert (config.replay.batch_size, config.total_env_steps) == (7, 12000)


# -- types --------------------------------------------------------------------------------------------------------


def test_numbers_as_people_write_them():
    config = run_config("total_env_steps=1e6", "optimizer.lr=1", "replay.capacity=2e3", "exploration.epsilon_finish=0")
    assert (config.total_env_steps, type(config.total_env_steps)) == (1_000_000, int)
    assert (config.replay.capacity, type(config.replay.capacity)) == (2000, int)
    assert (config.exploration.epsilon_finish, type(config.exploration.epsilon_finish)) == (0.0, float)
    checked = check_settings(
        "optimizer", {k: v for k, v in config.optimizer.items() if k != "name"}, OPTIMIZERS.load("adam")
    )
    assert (checked["rate"].lr, type(checked["rate"].lr)) == (1.0, float)


def component(
    *, count: int, rate: float = 0.5, mode: str | None = None, table: list[Any] | None = None, on: bool = True
) -> None:
    """Something to configure."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 1.5}, "part.count must be an integer, not 1.5"),
        ({"count": True}, "part.count must be an integer, not true"),
        ({"count": "1"}, "part.count must be an integer, not '1'"),
        ({"count": None}, "part.count must be an integer, not null"),
        ({"count": 1, "rate": "fast"}, "part.rate must be a number, not 'fast'"),
        ({"count": 1, "on": 1}, "part.on must be true or false, not 1"),
        ({"count": 1, "mode": {}}, "part.mode must be a text or null, not {}"),
        ({"count": 1, "table": 3}, "part.table must be a list or null, not 3"),
        ({"count": 1, "rat": 3}, "unknown key 'part.rat'. Did you mean 'part.rate'?"),
        ({"rate": 1.0}, "missing value: part.count"),
    ],
)
def test_wrong_types_of_a_component(given: dict[str, Any], message: str):
    with pytest.raises(ConfigurationError) as refused:
        check_settings("part", given, component)
    assert str(refused.value) == message


def test_a_misspelt_argument_that_is_no_setting():
    def mixer(num_agents: int, state_dim: int, width: int) -> None:
        """Something with arguments that the package passes."""

    with pytest.raises(ConfigurationError) as refused:
        check_settings("mixer", {"width": 3}, mixer, ("n_agents", "state_dim"))
    assert str(refused.value) == (
        "missing value: mixer.num_agents; what is passed without a setting is 'n_agents': is that the argument's name?"
    )
    with pytest.raises(ConfigurationError) as refused:
        check_settings("mixer", {"num_agents": 2}, mixer, ("n_agents", "state_dim"))
    assert str(refused.value) == "missing value: mixer.width"


def test_right_types_of_a_component():
    given = {"count": 3.0, "rate": 1, "mode": "x", "table": [[1]], "on": False}
    assert check_settings("part", given, component) == {**given, "count": 3, "rate": 1.0}
    assert check_settings("part", {"count": 1}, component) == {"count": 1}


@pytest.mark.parametrize(
    ("text", "stop"), [("KeyboardInterrupt: ", KeyboardInterrupt), ("SystemExit: 143", SystemExit)]
)
def test_a_signal_while_checks_are_built_is_no_error_of_pydantics(
    text: str, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(checked: Any) -> None:
        raise SchemaError(f'Error building "typed-dict" validator:\n  {text}')

    monkeypatch.setattr("qmix_lightning.config.schema.TypeAdapter", interrupted)
    with pytest.raises(stop) as raised:
        check_settings("part", {"count": 1}, component)
    assert getattr(raised.value, "code", 143) == 143
