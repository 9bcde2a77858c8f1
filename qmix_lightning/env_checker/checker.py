"""Check the conformance of an environment: play random legal episodes and report which checks fail, and where.

For a plugin's own tests::

    from qmix_lightning import environment
    from qmix_lightning.env_checker import check_factory, failures, report

    results = check_factory(environment.load("my_env"))
    assert not failures(results), report(results)

``qmix-envs check`` is the same from the command line. The checks are listed in :data:`CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qmix_lightning.env_checker.auto_reset import detect_auto_reset
from qmix_lightning.env_checker.episodes import RandomEpisode, difference
from qmix_lightning.env_checker.instrumented_env import InstrumentedEnv, Unusable, random_episodes
from qmix_lightning.env_checker.parallel_env import check_parallel_env
from qmix_lightning.env_checker.report import CHECKS, CheckReport, CheckResult, failures, report
from qmix_lightning.environment import VectorEnv, is_natively_batched
from qmix_lightning.errors import QMixLightningError
from qmix_lightning.runtime import prng
from qmix_lightning.vector.checked import CheckedVectorEnv
from qmix_lightning.vector.factory import make_vector_env
from qmix_lightning.vector.sync import SyncVectorEnv
from qmix_lightning.worker.create_env import AdapterMaker
from qmix_lightning.worker.parallel_adapter import ParallelAdapter

__all__ = ["CHECKS", "CheckResult", "check_environment", "check_factory", "failures", "report"]

SLOTS = 3
STEPS = 400
_UNKNOWN = "no_such_setting"
_AFTER_FAILURES = "tried only once the failures are gone"
_ROUNDING = 1e-4
"""Batched arithmetic may round differently in another slot; this much at the first difference, relative."""


def check_environment(make: Callable[[int], VectorEnv], *, steps: int = STEPS, seed: int = 0) -> list[CheckResult]:
    """Try the checks that apply to every vector environment.

    Args:
        make: creates so many environments that step together; called several times.
        steps: joint steps of the first random episodes at most; they end sooner once each slot has seen three.
        seed: decides the episodes and the actions.

    Returns:
        One result at least for each check; see :func:`failures` and :func:`report`.
    """
    check_report = CheckReport()
    _check_vector_env(make, check_report, steps, seed)
    return check_report.results()


def check_factory(
    factory: Callable[..., Any],
    settings: Mapping[str, Any] | None = None,
    *,
    name: str = "environment",
    steps: int = STEPS,
    seed: int = 0,
    reward_aggregation: str = "sum",
    timeout_is_terminal: bool = False,
    episode_limit: int | None = None,
) -> list[CheckResult]:
    """Check an environment by its factory.

    Tries all of :func:`check_environment`, what only the bare ``ParallelEnv`` shows, and that unknown settings are
    refused.

    Args:
        factory: from :func:`qmix_lightning.environment.load`, or your own.
        settings: its keyword arguments.
        name: what messages call the environment.
        steps, seed: see :func:`check_environment`.
        reward_aggregation, timeout_is_terminal, episode_limit: as in training; single environments only.

    Raises:
        ConfigurationError: it cannot be created with these settings at all.
    """
    settings = dict(settings or {})
    check_report = CheckReport()

    def adapters(given: Mapping[str, Any]) -> AdapterMaker:
        return AdapterMaker(factory, given, name, reward_aggregation, timeout_is_terminal, episode_limit)

    def make(num_envs: int) -> VectorEnv:
        if is_natively_batched(factory):
            return _unchecked(make_vector_env(factory, settings, num_envs=num_envs, name=name))
        # Without the fault tolerance that training adds, so that the first fault shows.
        created: list[ParallelAdapter] = []
        try:
            created.extend(adapters(settings)() for _ in range(num_envs))
            return SyncVectorEnv(created)
        except BaseException:
            for adapter in created:
                adapter.close()
            raise

    def make_unknown(given: Mapping[str, Any]) -> Any:
        if is_natively_batched(factory):
            return make_vector_env(factory, given, num_envs=1, name=name)
        return adapters(given)()

    if not is_natively_batched(factory):
        adapter = adapters(settings)()
        try:
            limit = adapter.spec.episode_limit if episode_limit is None else None
            check_parallel_env(adapter.env, check_report, steps=steps, seed=seed, limit=limit)
        finally:
            _close(adapter, check_report)
    check_report.unseen("accounts", "only a single environment (ParallelEnv) has dicts by agent")
    _check_vector_env(make, check_report, steps, seed)
    _check_keywords(make_unknown, settings, check_report)
    return check_report.results()


def _unchecked(env: VectorEnv) -> VectorEnv:
    """Return the environment without what looks at it in training, and would end at the first fault."""
    return env.unchecked if isinstance(env, CheckedVectorEnv) else env


# Unknown settings ------------------------------------------------------------------------------------------------


def _check_keywords(
    make: Callable[[Mapping[str, Any]], Any], settings: Mapping[str, Any], check_report: CheckReport
) -> None:
    misspelt = {"": {**settings, _UNKNOWN: 1}}
    if isinstance(settings.get("kwargs"), Mapping):
        misspelt["kwargs."] = {**settings, "kwargs": {**settings["kwargs"], _UNKNOWN: 1}}
    check_report.seen("keywords")
    for prefix, given in misspelt.items():
        try:
            env = make(given)
        except QMixLightningError:
            continue
        _close(env, check_report)
        check_report.fail(
            "keywords",
            prefix,
            f"the setting '{prefix}{_UNKNOWN}' was taken without a word; a misspelt one would be too",
        )


def _close(env: Any, check_report: CheckReport) -> None:
    try:
        env.close()
    except Exception as error:
        check_report.fail("close", "raised", f"close() raised {type(error).__name__}: {error}")


# A vector environment --------------------------------------------------------------------------------------------


def _check_vector_env(make: Callable[[int], VectorEnv], check_report: CheckReport, steps: int, seed: int) -> None:
    first = make(SLOTS)
    try:
        instrumented = InstrumentedEnv(first, SLOTS, check_report, "runs")
        episodes = random_episodes(instrumented, [_seeds(seed, slot) for slot in range(SLOTS)], steps, until_episodes=3)
    except Unusable:
        _close(first, check_report)
        _put_off(check_report, "an episode could not be played")
        return
    check_report.seen("runs", "spec", "finite", "masks", "reset")
    _judge_episodes(first, episodes, check_report)
    if check_report.failed("spec", "reset"):
        _close_twice(first, check_report)
        _put_off(check_report, _AFTER_FAILURES)
        return
    try:
        if getattr(first, "seeded", True):
            _replay(make, first, episodes, check_report, steps, seed)
        else:
            _play_unseeded(make, first, check_report, steps, seed)
    except Unusable:
        _put_off(check_report, _AFTER_FAILURES)
    finally:
        _close_twice(first, check_report)


def _put_off(check_report: CheckReport, why: str) -> None:
    for check in CHECKS:
        check_report.unseen(check, why)


def _seeds(seed: int, slot: int) -> Iterator[int]:
    number = 0
    while True:
        yield int(prng.to_seed(prng.derive_key(seed, slot, number))[0])
        number += 1


def _close_twice(env: VectorEnv, check_report: CheckReport) -> None:
    check_report.seen("close")
    for time in ("", "the second "):
        try:
            env.close()
        except Exception as error:
            check_report.fail("close", "raised", f"{time}close() raised {type(error).__name__}: {error}")


def _judge_episodes(env: VectorEnv, episodes: list[RandomEpisode], check_report: CheckReport) -> None:
    """Record what the random episodes of one call show."""
    spec, ended = env.spec, [e for e in episodes if e.ended]
    taken = sum(len(e.steps) for e in episodes)
    if any(not row.mask.all() for e in episodes for row in e.rows[: -1 if e.terminated else None]):
        check_report.seen("death")
    check_report.unseen("death", f"no agent died in {taken} steps of random episodes")
    if ended:
        check_report.seen("ends", "auto-reset")
    for check in ("ends", "auto-reset"):
        check_report.unseen(check, f"no episode ended in {taken} steps; --steps plays on")
    if spec.episode_limit is None:
        check_report.note("limit", "none is declared; env.episode_limit truncates episodes that never end")
    else:
        check_report.seen("limit")
        for e in episodes:
            if len(e.steps) > spec.episode_limit:
                check_report.fail(
                    "limit",
                    "exceeded",
                    f"step {spec.episode_limit + 1}, slot {e.slot} (seed {e.seed}): the episode goes on, but "
                    f"spec.episode_limit is {spec.episode_limit}",
                )
        at_limit = [e for e in ended if len(e.steps) == spec.episode_limit]
        if at_limit and all(e.terminated for e in at_limit):
            check_report.note(
                "ends",
                f"every episode that reached the limit of {spec.episode_limit} steps ({len(at_limit)} seen) ended as "
                "terminated: right only if the limit is part of the task",
            )
    check_report.unseen("limit", "none is declared")
    for e in episodes:
        for t, row in enumerate(e.rows[:-1]):
            if not row.mask.any():
                check_report.note(
                    "death", f"step {t}, slot {e.slot} (seed {e.seed}): nobody is alive, but the episode goes on"
                )
    if len({e.seed for e in episodes}) > 1 and len({e.rows[0].digest for e in episodes}) == 1:
        check_report.note("seeding", f"all {len(episodes)} seeds tried start alike: right for a task without chance")
    states = {row.digest[1] for e in episodes for row in e.rows}
    if len(states) == 1 and len({row.digest[0] for e in episodes for row in e.rows}) > 1:
        check_report.note("state", "the state never changes, though observations do")
    detect_auto_reset(episodes, check_report)


def _replay(
    make: Callable[[int], VectorEnv],
    first: VectorEnv,
    episodes: list[RandomEpisode],
    check_report: CheckReport,
    steps: int,
    seed: int,
) -> None:
    """Play the same seeds again in other circumstances; the episodes must be the same."""
    known = {e.seed: e for e in episodes}
    by_slot = [[e.seed for e in episodes if e.slot == slot] for slot in range(SLOTS)]
    starts = [seeds[0] for seeds in by_slot]
    other = [int(prng.to_seed(prng.derive_key(seed, slot, 10**6))[0]) for slot in range(SLOTS)]

    # 1. The same slots, in another order. The first instance is closed meanwhile, as one that evaluates would be.
    with _CreatedEnv(make, SLOTS, check_report, "close") as instrumented:
        _close_twice(first, check_report)
        check_report.seen("seeding", "state")
        everyone = [True] * SLOTS
        before = instrumented.reset(everyone, starts)
        instrumented.reset(everyone, other)
        again = instrumented.reset(everyone, starts)
        for slot in range(SLOTS):
            found = difference(
                RandomEpisode(starts[slot], slot, [before[slot]]), RandomEpisode(starts[slot], slot, [again[slot]])
            )
            if found:
                check = "state" if found.only_state else "seeding"
                check_report.fail(check, "start", f"seed {starts[slot]}, slot {slot}: reset twice, {found}")
        if check_report.failed("seeding", "state"):
            _put_off(check_report, _AFTER_FAILURES)
            return
        same = True
        backwards = [iter(seeds[1::-1]) for seeds in by_slot]
        for replayed in random_episodes(instrumented, backwards, steps):
            original = known[replayed.seed]
            found = difference(original, replayed)
            if found is None:
                continue
            same = False
            message = f"seed {replayed.seed}, slot {replayed.slot}: played again with the same actions, {found}"
            if found.at_end:
                text = f"{message}; what comes back at the end is not the successor of the last step"
                check_report.fail("auto-reset", "replay", text)
            elif found.only_state:
                check_report.fail("state", "replay", message)
            elif _neighbours_matter(make, check_report, original, by_slot[replayed.slot][:2], steps):
                check_report.fail("slots", "replay", f"{message}, and without neighbours it is another one again")
            else:
                check_report.fail("seeding", "replay", message)
    if not same:
        _put_off(check_report, _AFTER_FAILURES)
        return

    # 2. Each episode in its neighbour's slot.
    with _CreatedEnv(make, SLOTS, check_report, "close") as instrumented:
        check_report.seen("slots")
        moved = [iter([starts[(slot + 1) % SLOTS]]) for slot in range(SLOTS)]
        for replayed in random_episodes(instrumented, moved, steps):
            original = known[replayed.seed]
            if found := difference(original, replayed):
                message = f"seed {replayed.seed} in slot {replayed.slot} instead of {original.slot}, {found}"
                if found.size < _ROUNDING:
                    check_report.note("slots", f"{message} (rounding)")
                else:
                    check_report.fail("slots", "moved", message)

    # 3. With pauses, so that resets and steps of neighbours fall into the middle of an episode.
    with _CreatedEnv(make, SLOTS, check_report, "pause") as instrumented:
        check_report.seen("pause")
        for replayed in random_episodes(instrumented, [iter([s]) for s in starts], 2 * steps, pause_seed=seed):
            found = difference(known[replayed.seed], replayed)
            if found and not check_report.failed("pause", "reset"):
                message = f"seed {replayed.seed}, slot {replayed.slot}: stepped with pauses in between, {found}"
                check_report.fail("pause", "replay", message)

    # 4. After an episode that was left in the middle.
    with _CreatedEnv(make, SLOTS, check_report, "unfinished") as instrumented:
        longest = max(len(e.steps) for e in episodes)
        left = random_episodes(instrumented, [iter([s]) for s in other], max(1, min(3, longest - 1)))
        if any(not e.ended for e in left):
            check_report.seen("unfinished")
        check_report.unseen("unfinished", "every episode was over at once")
        for replayed in random_episodes(instrumented, [iter([s]) for s in starts], steps):
            if found := difference(known[replayed.seed], replayed):
                message = f"seed {replayed.seed}, slot {replayed.slot}: after an unfinished episode, {found}"
                check_report.fail("unfinished", "replay", message)


def _play_unseeded(
    make: Callable[[int], VectorEnv], first: VectorEnv, check_report: CheckReport, steps: int, seed: int
) -> None:
    """Try what can be tried where an episode cannot be played again: another instance, with pauses."""
    with _CreatedEnv(make, SLOTS, check_report, "close") as instrumented:
        _close_twice(first, check_report)
        check_report.seen("pause")
        random_episodes(instrumented, [iter([s]) for s in range(SLOTS)], steps, pause_seed=seed)
    for check in ("seeding", "state", "slots", "unfinished"):
        check_report.unseen(check, "no episode can be played again: metadata['seeded'] is false")


def _neighbours_matter(
    make: Callable[[int], VectorEnv], check_report: CheckReport, original: RandomEpisode, seeds: list[int], steps: int
) -> bool:
    """Return whether an environment alone, with the same past, repeats itself but not what it did in company."""
    alone = []
    for _ in range(2):
        with _CreatedEnv(make, 1, check_report, "runs") as instrumented:
            played = {e.seed: e for e in random_episodes(instrumented, [iter(seeds)], steps)}
            if original.seed not in played:
                return False
            alone.append(played[original.seed])
    found = difference(original, alone[0])
    return difference(*alone) is None and found is not None and found.size > _ROUNDING


class _CreatedEnv:
    """A new instance for a ``with`` block; ``blame`` is the check that fails if it raises."""

    def __init__(self, make: Callable[[int], VectorEnv], num_envs: int, check_report: CheckReport, blame: str) -> None:
        try:
            self.env = make(num_envs)
        except Exception as error:
            check_report.fail("close", "recreate", f"it cannot be created again: {type(error).__name__}: {error}")
            raise Unusable from error
        self.instrument = lambda: InstrumentedEnv(self.env, num_envs, check_report, blame)
        self.check_report = check_report

    def __enter__(self) -> InstrumentedEnv:
        return self.instrument()

    def __exit__(self, *_: object) -> None:
        _close_twice(self.env, self.check_report)
