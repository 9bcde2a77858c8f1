"""Workers under another Python: the same episodes, nothing of the trainer's, and one line where it does not work."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qmix_lightning.envs import pettingzoo
from qmix_lightning.errors import ConfigurationError, RunError
from qmix_lightning.vector.answers import read_introduction
from qmix_lightning.vector.factory import Backend, interpreter_of, make_vector_env
from qmix_lightning.worker.fault_tolerance import FaultLimit
from qmix_lightning.worker.protocol import VERSION
from support import plain_envs, vector_play
from support.processes import wait_until

TESTS = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TESTS)  # the working folder is looked through last, by both Pythons


def make(address: str = "make_walk", python: str | None = sys.executable, variables=(), output=None, **settings):
    backend = Backend(
        num_workers=2,
        timeout_s=60.0,
        limit=FaultLimit(0, 600.0),
        interpreter=interpreter_of(python, variables),
        output=output,
    )
    settings = {"id": f"support.plain_envs:{address}", "kwargs": settings}
    return make_vector_env(pettingzoo.make, settings, num_envs=3, name="walk", backend=backend)


def test_it_plays_the_episodes_of_this_process_with_nothing_of_the_trainers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("NAMED", "x")
    here, there = make(python=None), make("Surroundings", variables=["NAMED"])
    try:
        assert there.versions["isolated"] == "1"
        assert there.versions["foreign"] == ""
        variables = set(there.versions["variables"].split())
        assert variables - {"LANG", "LC_CTYPE"} == {"HOME", "NAMED", "PATH", "QMIX_LIGHTNING_FAMILY"}
        assert there.versions["environments' numpy"] == np.__version__
        assert vector_play.checksum(here, 60) == vector_play.checksum(there, 60)
        frame = there.render(2)
        assert (frame.shape, frame.dtype) == ((20, 30, 3), np.uint8)
        assert np.array_equal(frame, here.render(2))
    finally:
        here.close()
        there.close()


@pytest.mark.interpreters
@pytest.mark.parametrize("version", ["3.8", "3.9", "3.13"])
def test_other_versions_play_the_same_episodes(version: str, other_python):
    here, there = make(python=None), make(python=other_python(version))
    try:
        assert there.versions["environments' python"].startswith(version)
        assert vector_play.checksum(here, 200) == vector_play.checksum(there, 200)
    finally:
        here.close()
        there.close()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo no such option; exit 2", "ended by itself with status 2; the last that it wrote: no such option"),
        ("exit 0", "ended by itself with status 0"),
        ("kill -9 $$", "killed by signal 9"),
    ],
)
def test_what_runs_no_worker_is_said_in_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigurationError, match=message):
        make(python=script(tmp_path / "python", text))


def test_a_python_without_numpy_and_one_that_is_too_old_are_named(tmp_path: Path):
    fakes = {
        "numpy": "import sys; sys.modules['numpy'] = None",
        "3.8 or newer": "import sys; sys.version_info = (3, 6, 0)",
    }
    for message, change in fakes.items():
        # A Python that is told so before it runs the worker.
        code = f"{change}; import runpy; sys.argv[:2] = []; runpy.run_path(sys.argv[0], run_name='__main__')"
        python = script(tmp_path / "python", f'exec {sys.executable} -c "{code}" "$@"')
        with pytest.raises(ConfigurationError, match=message):
            make(python=python)


def test_there_is_no_program_at_the_path(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"rollout\.python=.*none cannot be started: No such file"):
        make(python=str(tmp_path / "none"))


def test_an_environment_that_cannot_be_made_there_says_why():
    with pytest.raises(ConfigurationError, match=r"there is no module 'support\.nothing' here"):
        make_vector_env(
            pettingzoo.make,
            {"id": "support.nothing:make"},
            num_envs=1,
            name="walk",
            backend=Backend(interpreter=interpreter_of(sys.executable, [])),
        )


def test_floods_of_output_go_to_a_file_of_limited_size(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qmix_lightning.vector.simulator_output.LARGEST_FILE", 200_000)
    env = make(output=tmp_path / "simulator.log", noise=30_000)
    try:
        for _ in range(4):
            env.reset(torch.ones(3, dtype=torch.bool), torch.arange(3))
    finally:
        env.close()
    wait_until((tmp_path / "simulator.log.1").exists, "no file is full", 20)
    assert all(path.stat().st_size <= 200_000 for path in tmp_path.iterdir())
    assert {b"x", b"y", b"\n"} >= {bytes([c]) for c in set((tmp_path / "simulator.log.1").read_bytes())}
    assert capfd.readouterr() == ("", "")


def introduction(**changed):
    env = make(python=None)
    said = {
        "protocol": VERSION,
        "spec": env.spec.to_dict(),
        "versions": {},
        "seeded": True,
        "python": "3.8",
        "numpy": "1",
    }
    env.close()
    return said | changed


BAD = {
    "nothing": None,
    "a text": "hello",
    "another version": {"protocol": 99},
    "no spec": {"spec": None},
    "a field that is none": {"spec": {"evil": 1}},
    "texts for numbers": {"spec": {"n_agents": "3"}},
    "too many agents": {"spec": {"n_agents": 2**40}},
    "too large": {"spec": {"obs_dim": 2**30, "obs_dims": [2**30] * 3, "state_dim": 2**30}},
    "negative": {"spec": {"obs_dim": -1, "obs_dims": [-1] * 3}},
    "versions of no texts": {"versions": 3},
}


@pytest.mark.parametrize("case", BAD)
def test_an_introduction_is_looked_at(case: str):
    changed = BAD[case]
    answer = changed
    if isinstance(changed, dict):
        answer = introduction()
        for key, value in changed.items():
            answer[key] = answer[key] | value if isinstance(value, dict) else value
    with pytest.raises(RunError):
        read_introduction(answer)


def test_an_introduction_that_is_right_is_read():
    said = read_introduction(introduction(versions={"game": "1\x1b[31m"}))
    assert said.spec == make(python=None).spec
    assert said.versions == {"game": "1?[31m"}


def test_a_simulator_of_many_environments_is_refused():
    from qmix_lightning.envs.two_step import TwoStep

    with pytest.raises(ConfigurationError, match=r"steps in this process: leave out rollout\.python"):
        make_vector_env(
            TwoStep, {}, num_envs=1, name="two_step", backend=Backend(interpreter=interpreter_of(sys.executable, []))
        )


def test_a_factory_without_an_address_is_refused():
    with pytest.raises(ConfigurationError, match=r"cannot be sent .* register its factory by 'package\.module:name'"):
        make_vector_env(
            lambda: plain_envs.PlainWalk(), {}, num_envs=1, name="walk",
            backend=Backend(interpreter=interpreter_of(sys.executable, [])),
        )  # fmt: skip
