import itertools
import random

import pytest

from qmix_lightning.training.schedules import EpsilonSchedule, UpdateSchedule


@pytest.mark.parametrize(
    ("every", "updates", "before", "now", "updates_due"),
    [
        (1, 1, 0, 1, 1),
        (1, 1, 5, 9, 4),
        (1, 2, 5, 9, 8),
        (10, 1, 0, 9, 0),
        (10, 1, 0, 10, 1),
        (10, 1, 9, 10, 1),
        (10, 1, 10, 19, 0),
        (10, 3, 9, 31, 9),
        (4, 1, 7, 7, 0),
    ],
)
def test_updates_due(every, updates, before, now, updates_due):
    assert UpdateSchedule(every=every, unit="episodes", updates=updates).updates_due(before, now) == updates_due


def test_updates_due_does_not_depend_on_how_the_way_is_cut():
    rng = random.Random(1)
    for _ in range(100):
        schedule = UpdateSchedule(every=rng.randint(1, 30), unit="env_steps", updates=rng.randint(1, 4))
        stops = [0]
        while stops[-1] < 1000:
            stops.append(stops[-1] + rng.randint(1, 40))
        total = sum(schedule.updates_due(a, b) for a, b in itertools.pairwise(stops))
        assert total == schedule.updates_due(0, stops[-1]) == stops[-1] // schedule.every * schedule.updates


def test_steps_to_next():
    schedule = UpdateSchedule(every=10, unit="env_steps", updates=1)
    assert [schedule.steps_to_next(n) for n in (0, 1, 9, 10, 25)] == [10, 9, 1, 10, 5]
    assert all(schedule.updates_due(n, n + schedule.steps_to_next(n)) == 1 for n in range(50))
    assert UpdateSchedule(every=10, unit="episodes", updates=1).steps_to_next(3) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every and updates must be at least 1, got 0 and 1"),
        ({"updates": -1}, "every and updates must be at least 1, got 1 and -1"),
        ({"unit": "steps"}, "unit must be 'episodes' or 'env_steps', not 'steps'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        UpdateSchedule(**{"every": 1, "unit": "episodes", "updates": 1, **settings})


@pytest.mark.parametrize(
    ("env_steps", "expected"), [(0, 1.0), (12_500, 0.7625), (25_000, 0.525), (50_000, 0.05), (10**9, 0.05)]
)
def test_schedule_is_linear_then_constant(env_steps, expected):
    assert EpsilonSchedule(1.0, 0.05, 50_000)(env_steps) == pytest.approx(expected, abs=1e-12)


def test_schedule_of_no_length_is_its_end():
    assert EpsilonSchedule(1.0, 0.1, 0)(0) == 0.1


def test_schedule_may_be_constant_or_rise():
    assert EpsilonSchedule(1.0, 1.0, 10)(3) == 1.0
    assert EpsilonSchedule(0.0, 0.5, 10)(4) == pytest.approx(0.2)
