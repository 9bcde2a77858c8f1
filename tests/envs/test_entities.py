"""The entities that environments declare are where they say in their observations."""

from collections import Counter

import numpy as np
import pytest

from qmix_lightning.types import EntityBlock, EnvSpec
from qmix_lightning.worker.parallel_adapter import ParallelAdapter


def layout(env) -> tuple[EnvSpec, dict[str, EntityBlock]]:
    made = ParallelAdapter(env).spec
    return made, {block.name: block for block in made.obs_entities}


@pytest.mark.parametrize("task", ["8x8-2p-3f", "2s-6x6-3p-2f-coop"])
def test_lbf_declares_food_and_players(task):
    pytest.importorskip("lbforaging")
    from qmix_lightning.envs.lbf import make as make_lbf

    env = make_lbf(task)
    made, blocks = layout(env)
    game, n = env.game, made.n_agents
    observations, _ = env.reset(seed=3)
    food_on_field = {(y, x): level for (y, x), level in np.ndenumerate(game.field) if level}
    for i, agent in enumerate(env.possible_agents):
        obs = observations[agent]
        seen = obs[blocks["food"].start : blocks["food"].end].reshape(-1, 3)
        seen = [row for row in seen.tolist() if row != list(blocks["food"].absent)]
        if "2s" not in task:
            assert len(seen) == len(food_on_field)
        assert {row[2] for row in seen} <= set(map(float, food_on_field.values()))
        others = obs[blocks["players"].start : blocks["players"].end].reshape(n - 1, 3)
        others = [row[2] for row in others.tolist() if row != list(blocks["players"].absent)]
        levels = [float(p.level) for j, p in enumerate(game.players) if j != i]
        if "2s" not in task:
            assert others == levels
        assert not Counter(others) - Counter(levels)
        own = obs[blocks["food"].end : blocks["players"].start]
        assert own[2] == game.players[i].level


def test_simple_spread_declares_landmarks_and_others():
    pytest.importorskip("mpe2")
    from qmix_lightning.envs.mpe import make as make_mpe

    env = make_mpe("simple_spread", {"N": 4})
    _, blocks = layout(env)
    observations, _ = env.reset(seed=1)
    world = env.unwrapped.world
    for i, agent in enumerate(world.agents):
        obs = observations[env.possible_agents[i]]
        marks = np.concatenate([mark.state.p_pos - agent.state.p_pos for mark in world.landmarks])
        others = np.concatenate([o.state.p_pos - agent.state.p_pos for o in world.agents if o is not agent])
        assert obs[blocks["landmarks"].start : blocks["landmarks"].end] == pytest.approx(marks, abs=1e-6)
        assert obs[blocks["others"].start : blocks["others"].end] == pytest.approx(others, abs=1e-6)
    assert layout(make_mpe("simple_spread", {"num_landmark_neighbors": 1}))[1] == {}
    assert layout(make_mpe("simple_reference"))[1] == {}


def test_smac_declares_units(monkeypatch):
    from qmix_lightning.envs.smac import make as make_smac
    from support import fake_smac

    fake_smac.install(monkeypatch, "smac")
    env = make_smac("3m")
    made, blocks = layout(env)
    core = env.core(env._game)
    move, enemy, ally, own = core._obs_parts()
    assert (blocks["enemy"].start, blocks["enemy"].end) == (move, move + enemy)
    assert (blocks["ally"].start, blocks["ally"].end) == (move + enemy, move + enemy + ally)
    assert made.obs_dim - blocks["ally"].end == own
    assert (blocks["enemy"].first_action, blocks["ally"].first_action) == (6, None)
    # Where there are medivacs, one number means an enemy to some and an ally to others.
    assert layout(make_smac("MMM"))[1]["enemy"].first_action is None


def test_smax_declares_units():
    pytest.importorskip("jaxmarl")
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

    from qmix_lightning.envs.smax import SmaxRules

    simulator = HeuristicEnemySMAX(scenario=map_name_to_scenario("2s3z"))
    allies, enemies = SmaxRules(simulator).obs_entities
    assert (allies.count, enemies.count, enemies.first_action) == (4, 5, 5)
    assert enemies.end + len(simulator.own_features) == simulator.obs_size
    conic = HeuristicEnemySMAX(scenario=map_name_to_scenario("2s3z"), observation_type="conic")
    assert SmaxRules(conic).obs_entities == ()
