import numpy as np
import pytest

from qmix_lightning.runtime import prng
from qmix_lightning.runtime.prng import Purpose
from support.cases import every_value

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalise(z):
    """SplitMix64's finaliser in plain integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def plain_mix(*parts):
    key = 0
    for part in parts:
        key = finalise(((key ^ finalise(((part & MASK) + GOLDEN) & MASK)) + GOLDEN) & MASK)
    return key


def ints(array):
    return [int(x) for x in np.ravel(array)]


def test_golden_values():
    """A checkpoint holds keys' parts, not their draws: other values here would change every resumed run."""
    assert ints(prng.derive_key(0)) == [12035550249420947055]
    assert ints(prng.derive_key(-1)) == [6755974106381971767]
    assert ints(prng.derive_key(1, 2, 3)) == [9812528628958509896]
    slots = np.arange(3)
    assert ints(prng.derive_key(7, 0, Purpose.TRAIN_RESET, slots)) == [
        10840956416138139798,
        13056882089637027170,
        14972198279391653668,
    ]
    assert prng.to_seed(prng.derive_key(7, 0, Purpose.TRAIN_RESET, slots)).tolist() == [
        1867543531,
        1403691252,
        1406342174,
    ]
    draws = prng.uniform(prng.derive_key(7, 0, Purpose.EXPLORE, np.arange(2)), 3)
    assert (draws * 2**24).astype(int).tolist() == [[7156948, 4846756, 15769850], [1000649, 6310910, 13678627]]


def test_purposes_keep_their_numbers():
    named = {k: v for k, v in vars(Purpose).items() if not k.startswith("_")}
    first = {"TRAIN_RESET": 1, "EVAL_RESET": 2, "EXPLORE": 3, "SAMPLE": 4, "INIT": 5}
    assert named == first | {"ROUND": 6, "LAST_ACTION": 7, "OPPONENTS": 8}


@pytest.mark.parametrize("parts", [(0,), (0, 0), (5, 1, 3), (2**63, 2**64 - 1), (-1, -2), (123456789, 0, 4, 17)])
def test_equals_plain_integers(parts):
    assert ints(prng.derive_key(*parts)) == [plain_mix(*parts)]


def test_uniform_and_bounded_equal_plain_integers():
    key = plain_mix(3, 1)
    expected = [(finalise((key + i * GOLDEN) & MASK) >> 40) * 2.0**-24 for i in range(1, 6)]
    assert prng.uniform(prng.derive_key(3, 1), 5).tolist() == [expected]
    assert ints(prng.to_seed(prng.derive_key(3, 1))) == [finalise((key + GOLDEN) & MASK) >> 33]


def test_keys_differ_in_every_part():
    """Seed, rank, purpose, slot and episode each make another key, in their own place."""
    seeds, ranks, purposes, slots, episodes = np.ix_(
        np.arange(4), np.arange(4), np.arange(1, 6), np.arange(8), np.arange(50)
    )
    found = prng.derive_key(seeds, ranks, purposes, slots, episodes)
    assert found.shape == (4, 4, 5, 8, 50)
    assert len(np.unique(found)) == found.size
    assert (
        len(np.unique(prng.uniform(found, 2)[..., 0] + 2.0**24 * prng.uniform(found, 2)[..., 1])) > 0.999 * found.size
    )


def test_fold_is_one_more_part_of_mix():
    slots, episodes = np.arange(6), np.array([0, 5, 2, 9, 9, 1])
    np.testing.assert_array_equal(
        prng.fold(prng.derive_key(1, 0, 3, slots), episodes.astype(np.uint64)),
        prng.derive_key(1, 0, 3, slots, episodes),
    )


def test_vectorised_equals_one_by_one():
    slots, episodes = np.arange(4), np.arange(4) * 1000
    together = prng.derive_key(9, slots, episodes)
    alone = [prng.derive_key(9, int(s), int(e)) for s, e in zip(slots, episodes, strict=True)]
    assert ints(together) == [ints(k)[0] for k in alone]
    np.testing.assert_array_equal(prng.uniform(together, 3), np.concatenate([prng.uniform(k, 3) for k in alone]))
    np.testing.assert_array_equal(prng.to_seed(together), np.concatenate([prng.to_seed(k) for k in alone]))


def test_fewer_numbers_are_the_first_of_more():
    key = prng.derive_key(np.arange(3))
    np.testing.assert_array_equal(prng.uniform(key, 7)[:, :2], prng.uniform(key, 2))


def test_bounded_fits_every_environments_seed():
    seeds = prng.to_seed(prng.derive_key(0, np.arange(100_000)))
    assert seeds.dtype == np.int64
    assert seeds.min() >= 0
    assert seeds.max() < 2**31
    assert seeds.max() > 0.999 * 2**31
    assert seeds.mean() == pytest.approx(2**30, rel=0.01)
    assert len(np.unique(seeds)) > 99_990  # about 2.3 coincidences are expected


@pytest.mark.parametrize(
    "key",
    [
        prng.derive_key(0, 0, Purpose.EXPLORE, 0, np.arange(50_000)),  # consecutive episodes
        prng.derive_key(np.arange(50_000)),  # consecutive seeds
    ],
    ids=["episodes", "seeds"],
)
def test_uniform_is_uniform(key):
    draws = prng.uniform(key, 2)
    assert draws.shape == (50_000, 2)
    assert draws.dtype == np.float32
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    n = draws.size
    assert draws.mean(dtype=np.float64) == pytest.approx(0.5, abs=5 * np.sqrt(1 / 12 / n))
    assert draws.var(dtype=np.float64) == pytest.approx(1 / 12, abs=5 * np.sqrt(1 / 180 / n))
    counts = np.bincount((draws * 100).astype(int).ravel(), minlength=100)
    chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert 51 < chi_square < 165  # 1e-5 in each tail with 99 degrees of freedom
    pairs = np.bincount((draws[:, 0] * 10).astype(int) * 10 + (draws[:, 1] * 10).astype(int), minlength=100)
    assert 51 < ((pairs - 500) ** 2 / 500).sum() < 165  # the two draws of a key are independent
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.02  # and so are those of neighbours


@pytest.mark.parametrize("block", [1, 2, 16])
def test_keys_mixed_ahead_are_those_of_each_episode(block):
    """Also of the one before the first, which slots have that wait for their share of a round, and after a jump."""
    rng = np.random.default_rng(block)
    slots = np.stack([prng.derive_key(3, np.arange(5)), prng.derive_key(4, np.arange(5))])
    keys_of = prng.EpisodeKeys(slots, block=block)
    episode = np.full(5, -1)
    for _ in range(100):
        episode += rng.random(5) < 0.5
        episode[rng.random(5) < 0.02] = rng.integers(0, 100)
        both = np.stack([episode, episode + 1]) if block > 1 else episode[None]
        np.testing.assert_array_equal(keys_of(both), prng.fold(slots[:, None], both.astype(np.uint64)))


@pytest.mark.parametrize(("hint", "block"), every_value(["none", "right", "wrong"], [1, 4, 16]))
def test_draws_made_ahead_are_those_of_each_step(block, hint):
    """Episodes begin, wait, jump back and go on from anywhere: what was computed ahead never shows."""
    rng = np.random.default_rng(block)
    slots, draws = prng.derive_key(5, np.arange(6)), prng.StepDraws(6, 2, 3, block=block)
    episode, t = np.zeros(6, np.int64), np.zeros(6, np.int64)
    for step in range(200):
        t += rng.random(6) < 0.9
        begins, jumps = rng.random(6) < 0.05, rng.random(6) < 0.02
        episode[begins] += 1
        t[begins] = 0
        t[jumps] = rng.integers(0, 50, 6)[jumps]
        if step == 0 or begins.any():  # the same keys are the same array, as they are in the collector
            key = prng.fold(slots, episode.astype(np.uint64))
        following = prng.fold(slots, (episode + 1 + 3 * (hint == "wrong")).astype(np.uint64))
        expected = prng.uniform(prng.fold(key, t.astype(np.uint64)), 6).reshape(6, 2, 3)
        np.testing.assert_array_equal(draws(key, t, None if hint == "none" else following), expected)
