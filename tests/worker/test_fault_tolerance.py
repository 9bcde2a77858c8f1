"""What is tolerated, what is counted, and what ends a run at once."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest

from qmix_lightning.errors import ConfigurationError, EnvironmentFault, InvalidEpisodeError, StartupError
from qmix_lightning.worker.buffers import Buffers
from qmix_lightning.worker.fault_tolerance import EnvBlock, FaultLimit, Faults, FaultTolerantEnv
from qmix_lightning.worker.parallel_adapter import ParallelAdapter
from support.fakes import Scripted


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each pause would have been."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


class Acts(Scripted):
    """Does ``in_step`` in each step, and ``in_reset`` in each reset."""

    state = None  # or the adapter would reset it, to see how large the state is

    def __init__(self, in_step: Any = None, in_reset: Any = None) -> None:
        super().__init__([{}, {}, {}, {}])
        self.in_step, self.in_reset = in_step, in_reset

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if self.in_reset:
            self.in_reset()
        return super().reset(seed, options)

    def step(self, actions: dict[Any, Any]) -> Any:
        result = super().step(actions)
        other = self.in_step() if self.in_step else None
        return result if other is None else other


def raises(error: BaseException) -> Any:
    def action() -> None:
        raise error

    return action


def tolerant(*envs: Any, limit: FaultLimit | None = None) -> tuple[FaultTolerantEnv, Any, Faults]:
    """A fault-tolerant environment made of these, one after the other (the last for ever), and the row it writes."""
    left = list(envs)
    faults = Faults("fake", limit or FaultLimit())
    env = FaultTolerantEnv(lambda: ParallelAdapter(left.pop(0) if len(left) > 1 else left[0], name="fake"), 0, faults)
    return env, Buffers.zeros(env.spec, 1).row(env.spec, 0), faults


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("broke"), "raised"),
        (SystemExit(0), "raised"),  # sys.exit in a simulator must not end the run, with status 0 even
        (Odd("odd"), "raised"),
        (MemoryError(), "raised"),
        (InvalidEpisodeError("restarted"), "invalid"),
        (TimeoutError("no answer"), "hung"),
    ],
)
def test_what_may_pass_is_counted_by_kind_and_tried_again(error, kind, waits, caplog):
    env, row, faults = tolerant(Acts(raises(error)), Acts())
    env.reset(0, row)
    assert env.step([0, 0], row) is None
    assert faults.counts == dict.fromkeys(("raised", "invalid", "killed", "hung"), 0) | {kind: 1}
    assert "tests/worker/test_fault_tolerance.py:" in caplog.text
    env.reset(1, row)
    assert env.step([0, 0], row) is not None


def test_a_simulator_that_has_removed_the_working_folder_costs_its_episode(waits, tmp_path, monkeypatch, caplog):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")

    def breaks() -> None:
        os.rmdir(tmp_path / "gone")
        raise RuntimeError("broke")

    env, row, _ = tolerant(Acts(breaks))
    env.reset(0, row)
    assert env.step([0, 0], row) is None
    assert f"RuntimeError: broke ({__file__}:" in caplog.text


def test_what_a_signal_raises_ends_the_process(waits):
    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # the handler runs here, inside the simulator

    # As the commands and the workers do it.
    from qmix_lightning.worker.loop import _on_terminate

    before = signal.signal(signal.SIGTERM, _on_terminate)
    try:
        env, row, faults = tolerant(Acts(terminate))
        env.reset(0, row)
        with pytest.raises(SystemExit) as end:
            env.step([0, 0], row)
        assert end.value.code == 128 + signal.SIGTERM
        assert sum(faults.counts.values()) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_is_no_fault(waits):
    env, row, _ = tolerant(Acts(raises(KeyboardInterrupt())))
    env.reset(0, row)
    with pytest.raises(KeyboardInterrupt):
        env.step([0, 0], row)


BROKEN = {
    "not a tuple": lambda: 3,
    "nothing": lambda: (),
    "infos": lambda: ({a: np.zeros(2, np.float32) for a in ("a_0", "a_1")}, *(_flags(0.0, False, False)), None),
    "rewards": lambda: ({}, None, {}, {}, {}),
}


def _flags(*values: Any) -> list[dict[str, Any]]:
    return [dict.fromkeys(("a_0", "a_1"), value) for value in values]


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_contract_ends_the_run_at_once_and_says_where(case, waits):
    env, row, faults = tolerant(Acts(BROKEN[case]))
    env.reset(0, row)
    with pytest.raises(EnvironmentFault) as end:
        env.step([0, 0], row)
    message = str(end.value)
    assert "\n" not in message
    assert "environment 'fake'" in message
    assert "tests/worker/test_fault_tolerance.py:" in message
    assert "qmix-envs check" in message
    assert "HYDRA_FULL_ERROR=1 shows the traceback" in message
    assert end.value.__cause__ is not None
    assert sum(faults.counts.values()) == 0
    assert waits == []


def test_an_error_inside_the_simulator_is_no_broken_contract(waits):
    env, row, faults = tolerant(Acts(lambda: {}["missing"]))
    env.reset(0, row)
    assert env.step([0, 0], row) is None
    assert faults.counts["raised"] == 1


def test_pauses_grow_and_are_bounded_whatever_the_number(waits):
    faults = Faults("fake", FaultLimit(10**6))
    faults.started = True
    for _ in range(3000):
        faults.record("raised", "environment 0", "broke")
    for number in (0, 1, 2, 3, 2000):
        faults._times.clear()
        faults._times.extend([time.monotonic()] * number)
        faults.back_off()
    assert waits == pytest.approx([0.1, 0.1, 0.2, 0.4, 3.0])


def test_faults_that_are_too_far_apart_for_a_window_are_too_many_in_a_row(waits, monkeypatch):
    """A hang of two minutes never fills a window of ten with more than ten faults."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    env, row, faults = tolerant(Acts(raises(TimeoutError("no answer"))), limit=FaultLimit(10, 600.0))

    def play() -> None:
        for seed in range(100):
            env.reset(seed, row)
            now[0] += 120.0
            env.step([0, 0], row)

    with pytest.raises(EnvironmentFault, match=r"failed 11 times in a row, .*rollout.max_faults=10.*no answer"):
        play()
    assert faults.counts["hung"] == 11


def test_an_episode_that_ends_begins_the_row_anew(waits):
    ends = Scripted([{"terminations": {"a_0": True, "a_1": True}}])
    env, row, faults = tolerant(
        Acts(raises(RuntimeError())), Acts(raises(RuntimeError())), ends, Acts(raises(RuntimeError())), ends,
        limit=FaultLimit(2, 0.0),
    )  # fmt: skip
    for seed in range(5):
        env.reset(seed, row)
        env.step([0, 0], row)
        if seed == 2:
            env.close()  # the next one is another
    assert faults.counts["raised"] == 3


def test_what_has_never_started_gets_three_attempts(waits):
    env, row, faults = tolerant(Acts(in_reset=raises(OSError("no display"))))
    with pytest.raises(EnvironmentFault, match=r"has never started, in 3 attempts; environment 0: OSError: no display"):
        env.reset(0, row)
    assert faults.counts["raised"] == 3


def test_what_hangs_before_it_has_ever_started_gets_one(waits):
    env, row, _ = tolerant(Acts(in_reset=raises(TimeoutError("no answer"))))
    with pytest.raises(EnvironmentFault, match="has never started, and was not tried again"):
        env.reset(0, row)
    assert waits == []


def test_a_simulator_that_did_not_start_after_its_own_attempts_ends_the_run_unless_one_has(waits):
    env, row, _ = tolerant(Acts(in_reset=raises(StartupError("3 launches failed"))))
    with pytest.raises(EnvironmentFault, match=r"^3 launches failed"):
        env.reset(0, row)
    env, row, faults = tolerant(Acts(in_reset=raises(StartupError("3 launches failed"))), Acts())
    faults.started = True
    env.reset(0, row)
    assert faults.counts["raised"] == 1


def test_settings_that_cannot_work_keep_their_own_error_until_something_ran(waits):
    """The command removes a run folder after a configuration error: never one that has trained."""
    refused = ConfigurationError("there is no map 3n")
    env, row, faults = tolerant(Acts(in_reset=raises(refused)))
    with pytest.raises(ConfigurationError, match="no map"):
        env.reset(0, row)
    env, row, faults = tolerant(Acts(in_reset=raises(refused)))
    faults.started = True
    with pytest.raises(EnvironmentFault, match="no map"):
        env.reset(0, row)


def test_numbers_whose_sum_no_float32_holds_are_numbers(waits):
    large = np.full(2, 3e38, np.float32)

    class Large(Scripted):
        def _observations(self, agents: list[Any], given: dict[Any, Any]) -> dict[Any, Any]:
            return dict.fromkeys(agents, large)

    faults = Faults("fake", FaultLimit())
    env = FaultTolerantEnv(lambda: ParallelAdapter(Large([{}, {}])), 0, faults)
    buffers = Buffers.zeros(env.spec, 1)
    block = EnvBlock({0: env}, buffers)
    block.reset([0], [True])
    assert block.step([[0, 0]], [True]) == []
    assert (buffers.obs == np.float32(3e38)).all()
    assert sum(faults.counts.values()) == 0


@pytest.mark.filterwarnings("ignore:.*fork.*")  # that other threads run: a test before may have started JAX's
def test_a_copy_of_the_process_ends_itself(capfd):
    """A simulator that forks and returns twice: one of the two goes on."""
    env, row, faults = tolerant(Acts(lambda: children.append(os.fork()) and None))
    children: list[int] = []
    env.reset(0, row)
    assert env.step([0, 0], row) is not None
    _, status = os.waitpid(children[0], 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert capfd.readouterr().err == "environment 'fake' forked and returned in the copy too, which is ended\n"
    assert sum(faults.counts.values()) == 0
