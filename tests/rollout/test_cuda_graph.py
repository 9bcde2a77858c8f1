"""The captured step, with a stand-in that repeats operations on the memory they were captured with, as a GPU does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from qmix_lightning.agents.feedforward import FeedForwardAgent
from qmix_lightning.agents.stochastic_policy import StochasticPolicy
from qmix_lightning.rollout import rollout_policy as rollout_policy_module
from qmix_lightning.rollout.cuda_graph import CudaGraphError, CudaGraphStep, tensors_of
from qmix_lightning.rollout.rollout_policy import RolloutPolicy
from support import inprocess
from support.acting import CPU, E, N, changed, make_policy, shown


class Tape(TorchDispatchMode):
    """Runs a function's operations again, with the tensors and the numbers they had: Python is not asked again."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def capture(self, run: Callable[[], None]) -> None:
        for _ in range(3):
            run()
        with self:
            run()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.steps:
            again = func(*args, **kwargs)
            for mine, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                if isinstance(mine, Tensor) and mine.data_ptr() != new.data_ptr():
                    mine.copy_(new)


@pytest.fixture(autouse=True)
def _in_torch(monkeypatch: pytest.MonkeyPatch):
    """As on a GPU: small networks are not taken to numpy."""
    monkeypatch.setattr(rollout_policy_module, "to_numpy_inference", lambda forward, rows: forward)


def actors(policy) -> tuple[RolloutPolicy, RolloutPolicy, list[Tape]]:
    """One that takes steps, one that replays them, and the tapes of the latter."""
    plain, replaying = RolloutPolicy(policy, E, CPU), RolloutPolicy(policy, E, CPU)
    tapes: list[Tape] = []

    def tape(device: torch.device) -> Tape:
        tapes.append(Tape(device))
        return tapes[-1]

    replaying._captured = CudaGraphStep(replaying.policy, replaying._forward, E, CPU, tape)
    return plain, replaying, tapes


KINDS: dict[str, Callable[[], Any]] = {
    "recurrent": make_policy,
    "feedforward": lambda: make_policy(FeedForwardAgent),
    "layer norm": lambda: make_policy(layer_norm=True),
    "dueling": lambda: make_policy(dueling=True),
    "normalized": lambda: make_policy(normalize=True),
    "no last action": lambda: make_policy(switches=(True, False, True)),
    "an agent each": lambda: make_policy(share=False),
    "feedforward, dueling": lambda: make_policy(FeedForwardAgent, dueling=True, layer_norm=True),
}


@pytest.mark.parametrize("name", KINDS)
def test_replaying_is_acting(name: str):
    """Also after publications, new episodes, other epsilons, greedy steps, and with environments that wait."""
    policy, g = KINDS[name](), torch.Generator().manual_seed(3)
    plain, replaying, tapes = actors(policy)
    addresses = [t.data_ptr() for t in tensors_of(replaying._captured._forward)]
    for t in range(24):
        seen = shown(g)
        draws = None if t % 5 == 4 else torch.rand(E, N, 2, generator=g, dtype=torch.float64)
        waiting = torch.rand(E, generator=g) > 0.7 if t % 3 == 1 else None
        found = [a.act(seen, t / 24, draws, waiting).clone() for a in (plain, replaying)]
        assert torch.equal(*found), t
        for mine, other in zip(plain.state, replaying.state, strict=True):
            assert torch.equal(mine, other)
        if t % 7 == 6:
            policy = changed(policy, g)
            for rollout_policy in (plain, replaying):
                rollout_policy.publish(policy)
        if t % 4 == 3:
            begin = torch.rand(E, generator=g) > 0.5
            for rollout_policy in (plain, replaying):
                rollout_policy.begin(begin)
    assert len(tapes) == 2  # exploring and greedy, each captured once
    assert sum(tape.replays for tape in tapes) == 24
    assert [t.data_ptr() for t in tensors_of(replaying._captured._forward)] == addresses


def test_a_publication_that_forgets_what_was_computed_beforehand_would_be_noticed():
    policy, g = make_policy(), torch.Generator().manual_seed(3)
    plain, replaying, _ = actors(policy)
    seen, draws = shown(g), torch.zeros(E, N, 2)
    for rollout_policy in (plain, replaying):
        rollout_policy.act(seen, 0.0, draws)
    replaying._captured.refresh = lambda forward: None
    other = changed(policy, g)
    for rollout_policy in (plain, replaying):
        rollout_policy.publish(other)
        rollout_policy.act(seen, 0.0, draws)
    assert not torch.equal(plain.state[0], replaying.state[0])


def test_a_stochastic_policy_is_captured_too():
    base = make_policy()
    policy, g = StochasticPolicy(inputs=base.inputs, agent=base.agent), torch.Generator().manual_seed(3)
    plain, replaying, tapes = actors(policy)
    for t in range(8):
        seen, draws = shown(g), torch.rand(E, N, 2, generator=g)
        assert torch.equal(*(a.act(seen, 0.3 - t / 40, draws).clone() for a in (plain, replaying)))
    assert len(tapes) == 1


def test_a_state_that_was_restored_is_taken_in():
    policy, g = make_policy(), torch.Generator().manual_seed(3)
    plain, replaying, _ = actors(policy)
    seen = shown(g)
    for rollout_policy in (plain, replaying):
        rollout_policy.act(seen, 0.0, None)
        rollout_policy.state = (torch.ones_like(rollout_policy.state[0]),)
        rollout_policy.last_action = torch.ones_like(rollout_policy.last_action)
        rollout_policy.act(seen, 0.0, None)
    assert torch.equal(plain.state[0], replaying.state[0])


def test_what_cannot_be_captured_is_taken_as_ever(capsys: pytest.CaptureFixture[str]):
    class Refuses(Tape):
        def capture(self, run: Callable[[], None]) -> None:
            run()
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    policy, g = make_policy(), torch.Generator().manual_seed(3)
    plain, failing, _ = actors(policy)
    failing._captured._make_graph = Refuses
    policy = changed(policy, g)
    for rollout_policy in (plain, failing):
        rollout_policy.publish(policy)
    for t in range(4):
        seen, draws = shown(g), torch.rand(E, N, 2, generator=g)
        assert torch.equal(plain.act(seen, 0.2, draws), failing.act(seen, 0.2, draws)), t
        assert torch.equal(plain.state[0], failing.state[0])
    assert capsys.readouterr().err.splitlines() == [
        "rollout: the policy's step is not captured, and runs kernel by kernel: operation not permitted when stream is "
        "capturing"
    ]


def test_something_unknown_in_what_acts_is_refused():
    class Holder:
        __module__ = "qmix_lightning.rollout.inference"

        def __init__(self, part: Any) -> None:
            self.part = part

    weight = torch.zeros(2)
    assert [*tensors_of(Holder([3, {"a": weight}, lambda x: x + weight, None]))] == [weight, weight]
    with pytest.raises(CudaGraphError, match="holds a bytearray, which is not followed"):
        list(tensors_of(Holder(bytearray(3))))


def test_a_rollout_policy_on_a_cpu_captures_nothing():
    assert RolloutPolicy(make_policy(), E, CPU, cuda_graph=True)._captured is None


def test_no_number_of_the_host_is_captured():
    """The stand-in is no less strict than a GPU: what Python computed once stays as it was."""
    tape, box, number = Tape(CPU), torch.zeros(()), [1.0]
    tape.capture(lambda: box.fill_(number[0]).is_cuda and None)
    number[0] = 2.0
    tape.replay()
    assert float(box) == 1.0


def test_where_the_policy_acts_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, more in (("plain", []), ("device", ["rollout.policy_device=device", "rollout.cuda_graph=off"])):
        inprocess.succeed([*inprocess.TINY, f"run_dir={name}", *more])
    assert Path("plain", "metrics.csv").read_text() == Path("device", "metrics.csv").read_text()
    refused = inprocess.command([*inprocess.TINY, "rollout.policy_device=device", "rollout.collector=process"])
    assert refused.status == 2
    assert refused.err == (
        "error: rollout.collector=process acts on the CPU, in a process of its own: rollout.policy_device must be env\n"
    )
