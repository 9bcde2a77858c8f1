"""The data module without a Trainer: what is collected, when updates are due, and what a checkpoint holds."""

import contextlib
import math
import signal
from dataclasses import asdict, replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from qmix_lightning.checkpoint.segments import SegmentStore
from qmix_lightning.errors import EnvironmentFault, RunError, RunInterrupted
from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from qmix_lightning.training import datamodule
from qmix_lightning.training.counters import FIRST_EPISODES, Counters, budget_too_small
from qmix_lightning.training.loaders import PLACEHOLDER
from qmix_lightning.vector.factory import make_vector_env
from support.collecting import two_step, varying
from support.data_modules import be_one_of, fingerprint, make, next_batch, resumed, stopped_in_step
from support.fakes import Endless
from support.replays import content_hash


def test_placeholders_are_endless_and_hold_nothing():
    data = make()
    tickets = iter(data.train_dataloader())
    assert [next(tickets) for _ in range(3)] == [PLACEHOLDER] * 3
    assert data.counters.env_steps == 0  # nothing happens before one is redeemed
    stats = object()
    assert data.on_before_batch_transfer(stats, 0) is stats


# When updates are due -------------------------------------------------------------------------------------------------


def pace(data, env_steps):
    """(env_steps, episodes, updates) whenever all updates that were due are done."""
    found = []
    while data.counters.env_steps < env_steps or data.counters.updates_due:
        next_batch(data)
        c = data.counters
        if c.updates_due == 0:
            found.append((c.env_steps, c.episodes, c.updates))
    return found


@pytest.mark.parametrize(("batch_size", "every", "updates"), [(1, 1, 1), (4, 1, 3), (6, 2, 1), (7, 4, 2), (8, 4, 2)])
def test_an_update_for_each_episode_however_many_environments(batch_size, every, updates):
    """The episode that fills the first batch owes the first update, those before it none."""
    one = pace(make(num_envs=1, batch_size=batch_size, every=every, updates=updates), 48)
    four = pace(make(num_envs=4, batch_size=batch_size, every=every, updates=updates), 48)
    for env_steps, episodes, done in [*one, *four]:
        assert env_steps == 2 * episodes
        assert done == (episodes // every - (batch_size - 1) // every) * updates
    assert one[-1] == four[-1] == (48, 24, (24 // every - (batch_size - 1) // every) * updates)


@pytest.mark.parametrize(("num_envs", "every", "updates"), [(1, 1, 1), (1, 20, 3), (4, 8, 1), (4, 20, 3)])
def test_updates_by_environment_steps(num_envs, every, updates):
    """Steps are counted from the last round that left the first batch unfilled."""
    data = make(num_envs=num_envs, batch_size=8, unit="env_steps", every=every, updates=updates)
    for env_steps, _, done in pace(data, 90):
        unfilled = 14 if num_envs == 1 else 8  # 7 episodes of 2 steps, or 4 in a first round of 4
        assert done == (env_steps // every - unfilled // every) * updates


def test_updates_by_steps_fall_due_within_episodes():
    data = make(varying, batch_size=2, unit="env_steps", every=1)
    pace(data, 30)
    before = (data.counters.env_steps, data.counters.episodes, data.counters.updates)
    next_batch(data)
    assert data.counters.env_steps == before[0] + 1
    assert data.counters.updates == before[2] + 1


def test_a_batch_is_the_replays_for_the_updates_key():
    data = make(varying, num_envs=2, batch_size=5, capacity=7)
    for _ in range(12):
        batch = next_batch(data)
        key = int(prng.derive_key(5, 0, Purpose.SAMPLE, data.counters.updates)[0])
        expected = data.replay.sample(5, key)
        assert torch.equal(batch.trajectories.obs, expected.obs)
        assert torch.equal(batch.trajectories.filled, expected.filled)
        c = data.counters
        assert (batch.env_steps, batch.episodes) == (c.env_steps, c.episodes)
        assert batch.epsilon == max(0.0, 1 - c.env_steps / 200)
    assert len(data.replay) == 7


def test_counters_count_what_was_collected():
    data = make(varying, num_envs=3, batch_size=4)
    collector = data._collector()
    collect, rounds = collector.collect, []

    def counted(*args, **settings):
        rounds.append(collect(*args, **settings))
        return rounds[-1]

    collector.collect = counted
    for _ in range(25):
        next_batch(data)
    c = data.counters
    assert c.env_steps == sum(r.env_steps for r in rounds)
    assert c.episodes == sum(len(r.episodes) for r in rounds) == data.replay.next_id
    assert c.updates == 25
    returns = [x for r in rounds for x in r.stats.returns]
    lengths = [x for r in rounds for x in r.stats.lengths]
    won = [x for r in rounds for x in r.stats.metrics.get("won", [])]
    window = data.counters.pop_window()
    assert window == pytest.approx(
        {"return": sum(returns) / len(returns), "length": sum(lengths) / len(lengths), "won": sum(won) / len(won)}
    )
    assert data.counters.pop_window() == {}


def test_what_random_play_earns_is_counted_in_the_first_episodes_alone():
    fresh, older = (make(num_envs=8, batch_size=8, every=8) for _ in range(2))
    older.counters.episodes = FIRST_EPISODES  # a checkpoint of 0.1.0, which counted nothing of them
    for data in (fresh, older):
        for _ in range(FIRST_EPISODES // 8 + 1):
            next_batch(data)
    assert fresh.counters.first_episodes["episodes"] == FIRST_EPISODES
    assert fresh.counters.first_episodes["squares"] > 0
    assert older.counters.first_episodes == {}


def test_epsilon_is_held_over_a_round():
    data = make(varying, num_envs=2, batch_size=2)
    collector = data._collector()
    collect, used = collector.collect, []

    def watched(epsilon, **settings):
        used.append((epsilon, data.counters.env_steps))
        return collect(epsilon, **settings)

    collector.collect = watched
    while data.counters.env_steps < 210:
        next_batch(data)
    assert len(used) > 20
    assert used[0] == (1.0, 0)
    assert all(epsilon == max(0.0, 1 - before / 200) for epsilon, before in used)


def test_the_policy_is_published_before_each_batch():
    data = make()
    next_batch(data)
    with torch.no_grad():
        data.policy.agent.head.bias += 1.0
    assert not torch.equal(data.collector.rollout_policy.policy.agent.head.bias, data.policy.agent.head.bias)
    next_batch(data)
    assert torch.equal(data.collector.rollout_policy.policy.agent.head.bias, data.policy.agent.head.bias)


# The budget and the end of an epoch -----------------------------------------------------------------------------------


def test_a_budget_too_small_for_a_batch():
    data = make(batch_size=32, total_env_steps=20)
    message = (
        "the budget of 20 environment steps ended after 10 episodes, before a batch of 32 could be drawn: "
        "raise total_env_steps or lower replay.batch_size"
    )
    with pytest.raises(RunError, match=f"^{message}$"):
        next_batch(data)
    assert data.counters.env_steps == 20


def test_a_budget_in_which_no_episode_ends():
    data = make(lambda num_envs: make_vector_env(Endless, {}, num_envs=num_envs, name="endless"), 3, total_env_steps=20)
    message = "the budget of 20 environment steps ended before any episode did, and the environment declares no limit: "
    with pytest.raises(RunError, match=message + r"set env\.episode_limit to truncate episodes"):
        next_batch(data)
    assert data.counters.env_steps == 21


@pytest.mark.parametrize(
    ("limit", "batched", "cure"),
    [
        (None, False, "the environment declares no limit: set env.episode_limit"),
        (None, True, "the environment declares no limit: give its episodes one"),
        (25, False, "which may take 25 steps: raise total_env_steps"),
    ],
)
def test_a_budget_in_which_no_episode_ends_has_the_cure_that_fits(limit, batched, cure):
    spec = replace(varying(1).spec, episode_limit=limit, natively_batched=batched)
    assert cure in str(budget_too_small(20, 0, 32, spec))


def test_a_budget_too_small_for_an_update():
    data = make(every=100, total_env_steps=20)
    message = "before an update fell due: raise total_env_steps or lower rollout.update_every$"
    with pytest.raises(RunError, match=message):
        next_batch(data)


@pytest.mark.parametrize(("num_envs", "unit", "every"), [(2, "episodes", 4), (1, "env_steps", 30), (2, "env_steps", 7)])
def test_the_budget_may_end_between_updates(num_envs, unit, every):
    """The last update takes the run a little past its budget; it is no failure."""
    for total in range(60, 74, 3):
        data = make(varying, num_envs, batch_size=3, unit=unit, every=every, total_env_steps=total)
        while data.counters.env_steps < total or data.counters.updates_due:
            next_batch(data)
        assert data.counters.evaluation_pending
        assert data.counters.env_steps < total + (every if unit == "env_steps" else 12 * every) + 12 * num_envs
        assert data.counters.updates_due == 0


@pytest.mark.parametrize(("ranks", "at"), [(1, 66), (1, 80), (2, 71), (2, 109)])
def test_interrupted_behind_the_budget_a_run_goes_on_to_its_last_update(tmp_path, monkeypatch, at, ranks):
    """As one that was not: ``at`` is the environment step from which on a signal is there."""
    if ranks == 2:
        be_one_of(monkeypatch, ranks=2)
    settings = {"env": varying, "num_envs": 2, "batch_size": 4, "every": 8, "total_env_steps": 65}
    whole, data = make(**settings), make(**settings)
    expected = []
    while not whole.finished:
        expected.append(fingerprint(next_batch(whole)))
    step = data._env.step

    def stepping(actions, active):
        if data.counters.env_steps >= at:
            data.stop.signal_number = 15
        return step(actions, active)

    data._env.step, found = stepping, []
    with contextlib.suppress(RunInterrupted):  # on two ranks the last round may be over by then
        while not data.finished:
            found.append(fingerprint(next_batch(data)))
    data = resumed(data, tmp_path, settings)
    while not data.finished:
        found.append(fingerprint(next_batch(data)))
    assert found == expected
    assert data.counters == whole.counters
    assert data.counters.evaluation_pending


def test_interrupted_behind_the_budget_in_its_first_episodes_a_run_plays_them_on(tmp_path):
    settings = {"env": varying, "num_envs": 2, "batch_size": 1, "total_env_steps": 1}
    whole, data = make(**settings), make(**settings)
    expected = fingerprint(next_batch(whole))
    step = data._env.step

    def stepping(actions, active):
        data.stop.signal_number = 15
        return step(actions, active)

    data._env.step = stepping
    with pytest.raises(RunInterrupted):
        next_batch(data)
    assert (data.counters.env_steps, data.counters.episodes) == (2, 0)
    data = resumed(data, tmp_path, settings)
    assert fingerprint(next_batch(data)) == expected
    assert data.counters == whole.counters


def test_a_smaller_budget_than_what_was_done_ends_a_run_at_once(tmp_path):
    settings = {"env": varying, "num_envs": 2, "batch_size": 3}
    data = make(**settings)
    pace(data, 50)
    assert not data.finished
    assert resumed(data, tmp_path, {**settings, "total_env_steps": 40}).finished


def test_of_a_checkpoint_that_counts_no_batches_its_steps_are_taken():
    saved = asdict(Counters(env_steps=70, updates=3))
    del saved["updated_at"]
    assert Counters.from_dict(saved).updated_at == 70


def test_an_epoch_ends_with_the_last_update_due_at_a_boundary():
    data = make(num_envs=4, batch_size=4, eval_interval=20, total_env_steps=44)
    ends = []
    for _ in range(21):
        next_batch(data)
        c = data.counters
        assert c.evaluation_pending == (c.updates_due == 0 and c.env_steps >= min(20 * (len(ends) + 1), 44))
        if c.evaluation_pending:
            ends.append((c.env_steps, c.updates))
            data.evaluated()
            assert (c.evaluation_pending, c.evaluated_at) == (False, c.env_steps)
    # Rounds bring 8 steps and 4 episodes: 8, 16, 24 pass 20; 40 reaches 40; the budget of 44 ends at 48.
    assert ends == [(24, 9), (40, 17), (48, 21)]


def test_a_long_round_may_pass_several_boundaries():
    data = make(num_envs=4, batch_size=4, eval_interval=3)
    next_batch(data)
    assert data.counters.evaluation_pending
    data.evaluated()
    for _ in range(4):
        assert not data.counters.evaluation_pending
        next_batch(data)
    assert data.counters.evaluation_pending
    assert data.counters.env_steps == 16


def test_lightning_is_told_of_the_last_batch():
    data = make(eval_interval=12, batch_size=4)
    progress = SimpleNamespace(is_last_batch=False)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(fit_loop=loop, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    told = []
    for _ in range(3):
        next_batch(data)
        told.append((data.counters.env_steps, progress.is_last_batch))
    assert told == [(8, False), (10, False), (12, True)]


# Several ranks --------------------------------------------------------------------------------------------------------


def test_counters_are_global_and_shares_are_local(monkeypatch):
    be_one_of(monkeypatch, ranks=2)
    data = make(batch_size=8, eval_episodes=5)
    batch = next_batch(data)
    c = data.counters
    assert batch.trajectories.batch_size == 4
    assert (len(data.replay), c.episodes, c.env_steps) == (4, 8, 16)
    # Four episodes on each rank fill the batch; the last of each owes an update.
    assert (c.updates, c.updates_due) == (1, 1)
    assert data.counters.pop_window()["length"] == 2.0
    assert len(data.evaluate()) == 3  # ids 0, 2 and 4
    be_one_of(monkeypatch, ranks=2, number=1)
    other = make(batch_size=8, eval_episodes=5)
    assert len(other.evaluate()) == 2  # ids 1 and 3
    sampled = next_batch(other).trajectories
    assert torch.equal(sampled.obs, other.replay.sample(4, int(prng.derive_key(5, 1, Purpose.SAMPLE, 1)[0])).obs)


def test_a_rank_with_nothing_to_evaluate(monkeypatch):
    be_one_of(monkeypatch, ranks=4, number=3)
    assert len(make(eval_episodes=2).evaluate()) == 0


def test_a_round_on_several_ranks_is_not_cut_short(monkeypatch):
    """A signal reaches ranks at different moments; they stop together, between rounds."""
    be_one_of(monkeypatch, ranks=2)
    data = make(batch_size=8)
    data.stop.signal_number = 15
    with pytest.raises(RunInterrupted):
        next_batch(data)
    assert (data.counters.env_steps, data.counters.episodes) == (4, 2)  # one episode of 2 steps on each


def test_ranks_agree_on_a_signal_that_some_of_them_have_not_seen(monkeypatch):
    """Its number is not summed over ranks: three times 15 is no signal."""
    be_one_of(monkeypatch, ranks=4)

    def summed(numbers, device):
        """Three others, which have received SIGTERM and otherwise did what this one did."""
        summed = [4 * number for number in numbers]
        summed[datamodule.STOP_SIGNALS.index(signal.SIGTERM)] = 3.0
        return summed

    monkeypatch.setattr(datamodule, "sum_numbers", summed)
    with pytest.raises(RunInterrupted, match="stopped by SIGTERM") as caught:
        next_batch(make(batch_size=16))
    assert caught.value.exit_status == 128 + 15


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_evaluation_leaves_training_as_it_is():
    one, other = (make(varying, num_envs=2, batch_size=3) for _ in range(2))
    for _ in range(5):
        a, b = next_batch(one), next_batch(other)
        other.evaluate()
        assert torch.equal(a.trajectories.obs, b.trajectories.obs)
    assert content_hash(one.replay) == content_hash(other.replay)


def test_evaluation_is_repeatable_and_follows_the_policy():
    data = make(varying, eval_episodes=6)
    (loaded,) = list(data.val_dataloader())
    assert len(data.val_dataloader()) == 1
    first = data.evaluate()
    assert first.returns == loaded.returns
    assert len(first) == 6
    with torch.no_grad():
        data.policy.agent.head.weight.neg_()
    assert data.evaluate().returns != first.returns


def test_evaluation_is_interrupted():
    data = make(varying)
    data.stop.signal_number = 2
    with pytest.raises(RunInterrupted) as caught:
        data.evaluate()
    assert caught.value.exit_status == 130


# Resuming -------------------------------------------------------------------------------------------------------------


SETTINGS = {
    "episodes": {"env": varying, "num_envs": 2, "batch_size": 3, "capacity": 6},
    "every 3 episodes": {"env": varying, "num_envs": 1, "batch_size": 2, "every": 3, "updates": 2},
    "env_steps": {"env": varying, "num_envs": 2, "batch_size": 3, "unit": "env_steps", "every": 5},
    "many env_steps": {"env": varying, "num_envs": 3, "batch_size": 4, "unit": "env_steps", "every": 17},
    "native": {"env": two_step, "num_envs": 3, "batch_size": 4},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_resumes_bit_for_bit_between_updates(tmp_path, settings):
    reference = make(**settings)
    expected = [fingerprint(next_batch(reference)) for _ in range(9)]
    for at in (0, 5):
        data = make(**settings)
        assert [fingerprint(next_batch(data)) for _ in range(at)] == expected[:at]
        folder = tmp_path / str(at)
        folder.mkdir()
        data = resumed(data, folder, settings)
        assert [fingerprint(next_batch(data)) for _ in range(at, 9)] == expected[at:]
        assert data.counters == reference.counters
        assert content_hash(data.replay) == content_hash(reference.replay)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_signal_at_any_step_changes_nothing(tmp_path, settings):
    """Stopped by a signal in whatever joint step, saved and resumed, a run goes on as if nothing had been."""
    reference = make(**settings)
    expected = [fingerprint(next_batch(reference)) for _ in range(6)]
    for at in (1, 4, 11):
        (folder := tmp_path / str(at)).mkdir()
        data = make(**settings)
        found, data = stopped_in_step(data, at, 6, fingerprint, lambda data, to=folder: resumed(data, to, settings))
        assert found == expected, f"signal in step {at}"
        assert data.counters == reference.counters, f"signal in step {at}"
        assert content_hash(data.replay) == content_hash(reference.replay)


def test_saving_before_anything_was_collected_keeps_the_episodes_in_flight(tmp_path):
    """A run that is resumed and ends at once, its budget spent or a signal there, saves what it was resumed from."""
    settings = SETTINGS["episodes"]
    reference = make(**settings)
    expected = [fingerprint(next_batch(reference)) for _ in range(8)]
    data = make(**settings)
    for _ in range(4):
        next_batch(data)
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        data.store = SegmentStore(folder, 0)
        data = resumed(data, folder, settings)
    assert [fingerprint(next_batch(data)) for _ in range(4)] == expected[4:]


@pytest.mark.parametrize("fails_at", ["reset", "step"])
def test_environments_that_fail_while_a_run_is_resumed_cost_no_episode_in_flight(tmp_path, monkeypatch, fails_at):
    """What is saved then, and gone on from, is what the run was resumed from."""
    settings = SETTINGS["many env_steps"]
    reference = make(**settings)
    expected = [fingerprint(next_batch(reference)) for _ in range(8)]
    data = make(**settings)
    found = [fingerprint(next_batch(data)) for _ in range(4)]
    assert not all(data.collector.state_dict()["ended"])
    (first := tmp_path / "first").mkdir()
    data = resumed(data, first, settings)
    monkeypatch.setattr(data._env, fails_at, Mock(side_effect=EnvironmentFault("the simulator does not start")))
    with pytest.raises(EnvironmentFault):
        next_batch(data)
    (second := tmp_path / "second").mkdir()
    data.store = SegmentStore(second, 0)
    data = resumed(data, second, settings)
    found += [fingerprint(next_batch(data)) for _ in range(4)]
    assert found == expected


def test_restart_begins_new_episodes(tmp_path):
    settings = SETTINGS["episodes"]
    data = make(**settings)
    for _ in range(4):
        next_batch(data)
    in_flight = data.collector.state_dict()["episode"]
    other = resumed(data, tmp_path, {**settings, "on_resume": "restart"})
    next_batch(other)
    assert (other.collector.state_dict()["episode"] > in_flight).all()
    assert other.counters.updates == 5


def test_a_replay_that_does_not_come_back_is_noticed():
    data = make()
    next_batch(data)
    state = data.state_dict()
    assert state["ranks"][0]["replay"] == []  # no store: nothing was written
    with pytest.raises(RunError, match="the replay came back with 0 episodes, not 4"):
        make().load_state_dict(state)


def test_batches_go_to_the_networks_dtype():
    data = make()
    data.policy.double()
    batch = data.transfer_batch_to_device(next_batch(data), torch.device("cpu"), 0)
    t = batch.trajectories
    assert t.obs.dtype == t.state.dtype == t.reward.dtype == torch.float64
    assert t.actions.dtype == torch.int64
    assert t.filled.dtype == t.avail_actions.dtype == torch.bool
    stats = data.evaluate()
    assert data.transfer_batch_to_device(stats, torch.device("cpu"), 0) is stats
    assert all(math.isfinite(r) for r in stats.returns)


def test_teardown_closes_the_environments():
    data = make(varying)
    next_batch(data)
    data.evaluate()
    closed = []
    for env in (data._env, data._evaluator.env):
        env.close = lambda env=env: closed.append(env)
    data.teardown("fit")
    assert len(closed) == 2
