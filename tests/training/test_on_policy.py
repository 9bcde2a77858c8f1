"""Rounds in the data module: played by one policy, learned from in epochs, and resumed from any step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qmix_lightning.errors import RunError, RunInterrupted
from qmix_lightning.replay.on_policy import RoundStore
from support import data_modules
from support.collecting import two_step, varying
from support.data_modules import fingerprint, next_batch, stopped_in_step
from support.replays import content_hash


def make(env=varying, num_envs=2, *, capacity=6, batch_size=3, updates=4, ranks=1, **settings):
    one = env(1)
    store = RoundStore(one.spec, capacity // ranks)
    one.close()
    return data_modules.make(
        env, num_envs, every=capacity, updates=updates, batch_size=batch_size, replay=store, **settings
    )


def test_a_round_buys_its_updates_and_comes_from_one_policy_and_one_epsilon():
    data = make()
    collector = data._collector()
    collect, used = collector.collect, []

    def watched(epsilon, **settings):
        used.append((data.counters.updates, epsilon, float(collector.rollout_policy.policy.agent.head.bias[0, 0])))
        return collect(epsilon, **settings)

    collector.collect = watched
    ended = 0
    for number in range(5):
        start = data.counters.env_steps
        bias = float(data.policy.agent.head.bias[0, 0].detach())
        epsilon = max(0.0, 1 - start / 200)
        for _ in range(4):
            batch = next_batch(data)
            assert data.counters.episodes == 6 * (number + 1)
            assert len(data.replay) == 6
            assert batch.trajectories.batch_size == 3
            assert batch.trajectories.extras["epsilon"].tolist() == pytest.approx([epsilon] * 3)
            with torch.no_grad():
                data.policy.agent.head.bias += 1.0
        assert data.counters.updates_due == 0
        assert {u[1:] for u in used[ended:]} == {(epsilon, bias)}
        assert {u[0] for u in used[ended:]} == {4 * number}
        ended = len(used)


def test_a_first_round_longer_than_the_budget_is_finished():
    data = make(total_env_steps=3)
    next_batch(data)
    assert data.counters.episodes == 6


def test_a_round_that_outlasts_the_budget_is_not_the_end():
    """Interrupted behind the budget but within its round, a resumed run plays on to the round's updates."""
    data = make(total_env_steps=10)
    step = data._env.step

    def stepping(actions, active):
        if data.counters.env_steps >= 10:
            data.stop.signal_number = 15
        return step(actions, active)

    data._env.step = stepping
    with pytest.raises(RunInterrupted):
        next_batch(data)
    assert data.counters.env_steps >= 10
    assert not data.finished
    data.stop.signal_number = 0
    data._env.step = step
    for left in (3, 2, 1, 0):
        next_batch(data)
        assert data.finished == (left == 0)


def test_ranks_play_and_learn_from_their_shares(monkeypatch: pytest.MonkeyPatch):
    data_modules.be_one_of(monkeypatch, ranks=2)
    data = make(capacity=12, batch_size=4, updates=3, ranks=2)
    for update in range(6):
        batch = next_batch(data)
        assert batch.trajectories.batch_size == 2
        assert (data.counters.episodes, len(data.replay)) == (12 * (update // 3 + 1), 6)
    assert data.counters.updates_due == 0


SETTINGS = {
    "rounds": {"capacity": 6, "batch_size": 3, "updates": 4},
    "slots left over": {"num_envs": 3, "capacity": 4, "batch_size": 4, "updates": 1},
    "native": {"env": two_step, "num_envs": 2, "capacity": 6, "batch_size": 2, "updates": 3},
}


def resumed(data, folder: Path, settings):
    return data_modules.resumed(data, folder, settings, make)


def seen(batch):
    return (*fingerprint(batch), *(batch.trajectories.extras[k].tolist() for k in ("epsilon", "draws")))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_resumes_bit_for_bit_from_any_update(tmp_path: Path, settings):
    reference = make(**settings)
    expected = [seen(next_batch(reference)) for _ in range(7)]
    for at in (0, 2, 5):
        data = make(**settings)
        assert [seen(next_batch(data)) for _ in range(at)] == expected[:at]
        folder = tmp_path / str(at)
        folder.mkdir()
        data = resumed(data, folder, settings)
        assert [seen(next_batch(data)) for _ in range(at, 7)] == expected[at:]
        assert data.counters == reference.counters
        assert content_hash(data.replay) == content_hash(reference.replay)
        assert data.collector.state_dict()["quota"].tolist() == reference.collector.state_dict()["quota"].tolist()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_signal_at_any_step_of_a_round_changes_nothing(tmp_path: Path, settings):
    reference = make(**settings)
    expected = [seen(next_batch(reference)) for _ in range(5)]
    for at in (1, 6, 11):
        (folder := tmp_path / str(at)).mkdir()
        data = make(**settings)
        found, data = stopped_in_step(data, at, 5, seen, lambda data, to=folder: resumed(data, to, settings))
        assert found == expected, f"signal in step {at}"
        assert data.counters == reference.counters
        assert content_hash(data.replay) == content_hash(reference.replay)
        mine, whole = data.collector.state_dict(), reference.collector.state_dict()
        assert mine.keys() == whole.keys()
        for left, right in zip(mine["memory"], whole["memory"], strict=True):
            assert torch.equal(left, right)


def numbered(batch):
    """What a round is prepared with: a number for each of its steps, of which round it was and what was earned."""
    numbered.rounds += 1
    return {"seen": torch.where(batch.filled, batch.reward + 100.0 * numbered.rounds, 0.0)}


@pytest.mark.parametrize("at", [0, 3, 6, 8])
def test_what_a_round_is_prepared_with_goes_with_its_episodes_and_into_a_checkpoint(tmp_path: Path, at: int):
    settings = {"capacity": 6, "batch_size": 2, "updates": 6, "prepare_round": numbered, "round_extras": ("seen",)}
    numbered.rounds = 0
    data = make(**settings)
    for update in range(9):
        if update == at:
            data = resumed(data, tmp_path, settings)
        rows = next_batch(data).trajectories
        assert numbered.rounds == update // 6 + 1  # once a round, and never again for having been resumed
        expected = torch.where(rows.filled, rows.reward + 100.0 * numbered.rounds, 0.0)
        assert torch.equal(rows.extras["seen"], expected)
    assert data.rounds.extras.keys() == {"seen"}


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"other": torch.zeros(6, 12)}, "the checkpoint's round has other, not seen"),
        ({"seen": torch.zeros(5, 12)}, r"the checkpoint's seen are \(5, 12\)"),
        ({"seen": torch.zeros(6, 99)}, r"the checkpoint's seen are \(6, 99\)"),
        ({"seen": torch.zeros(())}, r"the checkpoint's seen are \(\)"),
    ],
)
def test_what_does_not_belong_to_the_round_is_refused(extras, message: str):
    numbered.rounds = 0
    data = make(prepare_round=numbered, round_extras=("seen",))
    next_batch(data)
    with pytest.raises(RunError, match=message):
        data.rounds.restore_beside({"round": extras}, ("seen",))
