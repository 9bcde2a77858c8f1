import pytest

from qmix_lightning.runtime.resources import available_cores, choose_asynchronous, choose_threads


@pytest.mark.parametrize(
    ("cores", "ranks", "workers", "asynchronous", "threads"),
    [
        (1, 1, 0, False, 1),
        (2, 1, 0, False, 1),  # never all cores: others use the machine too
        (2, 1, 2, True, 1),
        (8, 1, 0, False, 4),
        (8, 1, 2, True, 2),
        (8, 2, 0, False, 2),
        (64, 1, 8, True, 4),
        (4, 8, 2, True, 1),
    ],
)
def test_what_is_left_is_halved(cores, ranks, workers, asynchronous, threads):
    assert choose_threads(cores, ranks=ranks, workers=workers, asynchronous=asynchronous) == threads


def test_a_quota_counts(tmp_path):
    unlimited = available_cores(tmp_path / "missing")
    assert unlimited >= 1
    for text, cores in {"max 100000": unlimited, "50000 100000": 1, "100000 100000": 1, "junk": unlimited}.items():
        (tmp_path / "cpu.max").write_text(text)
        assert available_cores(tmp_path / "cpu.max") == cores


def choice(**changed):
    case = {"cores": 2, "ranks": 1, "on_policy": False, "own_process": False, "num_envs": 8, "workers": 2}
    case |= changed
    return choose_asynchronous(case.pop("cores"), **case)


def test_rounds_are_collected_ahead_where_something_else_steps_the_environments():
    assert choice() == (True, "2 worker processes")
    assert choice(cores=4, ranks=2)[0]
    assert choice(workers=0, num_envs=1, own_process=True) == (True, "the collector has a process of its own")
    assert not choice(own_process=True, on_policy=True)[0]
    assert not choice(own_process=True, cores=1)[0]
    for changed in ({"on_policy": True}, {"num_envs": 1}, {"cores": 1}, {"cores": 3, "ranks": 2}, {"workers": 0}):
        assert not choice(**changed)[0], changed
