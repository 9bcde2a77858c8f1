"""The conformance kit: plays random legal episodes and tells which promises of an environment are broken, and where.

For a plugin's own tests::

    from qmix_lightning import environment
    from qmix_lightning.env_checker import check_factory, failures, report

    findings = check_factory(environment.load("my_env"))
    assert not failures(findings), report(findings)

``qmix-envs check`` is the same from the command line. The promises are listed in :data:`PROMISES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qmix_lightning.env_checker.auto_reset import check_last_observations
from qmix_lightning.env_checker.episodes import Episode, difference
from qmix_lightning.env_checker.parallel_env import check_parallel_env
from qmix_lightning.env_checker.probe import Broken, Probe, play
from qmix_lightning.env_checker.report import PROMISES, Finding, Ledger, failures, report
from qmix_lightning.environment import VectorEnv, is_natively_batched
from qmix_lightning.errors import QMixLightningError
from qmix_lightning.runtime import prng as keys
from qmix_lightning.vector.factory import make_vector_env
from qmix_lightning.vector.sync import SyncVectorEnv
from qmix_lightning.worker.create_env import AdapterMaker
from qmix_lightning.worker.parallel_adapter import ParallelAdapter

__all__ = ["PROMISES", "Finding", "check_environment", "check_factory", "failures", "report"]

SLOTS = 3
STEPS = 400
_UNKNOWN = "no_such_setting"
_AFTER_FAILURES = "told apart only once the failures are gone"
_ROUNDING = 1e-4
"""Batched arithmetic may round differently in another slot; this much at the first difference, relative."""


def check_environment(make: Callable[[int], VectorEnv], *, steps: int = STEPS, seed: int = 0) -> list[Finding]:
    """Check what every vector environment promises.

    Args:
        make: makes so many environments that step together; called several times.
        steps: joint steps of the first play at most; it ends sooner once each slot has seen three episodes.
        seed: decides the episodes and the actions.

    Returns:
        One finding at least for each promise; see :func:`failures` and :func:`report`.
    """
    ledger = Ledger()
    _check_vector_env(make, ledger, steps, seed)
    return ledger.findings()


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
) -> list[Finding]:
    """Check an environment by its factory: all of :func:`check_environment`, what only the bare ``ParallelEnv`` shows,
    and that unknown settings are refused.

    Args:
        factory: from :func:`qmix_lightning.environment.load`, or your own.
        settings: its keyword arguments.
        name: what messages call the environment.
        steps, seed: see :func:`check_environment`.
        reward_aggregation, timeout_is_terminal, episode_limit: as in training; single environments only.

    Raises:
        ConfigurationError: it cannot be opened with these settings at all.
    """
    settings = dict(settings or {})
    ledger = Ledger()

    def adapters(given: Mapping[str, Any]) -> AdapterMaker:
        return AdapterMaker(factory, given, name, reward_aggregation, timeout_is_terminal, episode_limit)

    def make(num_envs: int) -> VectorEnv:
        if is_natively_batched(factory):
            return make_vector_env(factory, settings, num_envs=num_envs, name=name)
        # Without the supervision that training adds, so that the first fault shows.
        opened: list[ParallelAdapter] = []
        try:
            opened.extend(adapters(settings)() for _ in range(num_envs))
            return SyncVectorEnv(opened)
        except BaseException:
            for adapter in opened:
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
            check_parallel_env(adapter.env, ledger, steps=steps, seed=seed, limit=limit)
        finally:
            _close(adapter, ledger)
    ledger.unseen("accounts", "only a single environment (ParallelEnv) has dicts by agent")
    _check_vector_env(make, ledger, steps, seed)
    _check_keywords(make_unknown, settings, ledger)
    return ledger.findings()


# Unknown settings ------------------------------------------------------------------------------------------------


def _check_keywords(make: Callable[[Mapping[str, Any]], Any], settings: Mapping[str, Any], ledger: Ledger) -> None:
    misspelt = {"": {**settings, _UNKNOWN: 1}}
    if isinstance(settings.get("kwargs"), Mapping):
        misspelt["kwargs."] = {**settings, "kwargs": {**settings["kwargs"], _UNKNOWN: 1}}
    ledger.seen("keywords")
    for prefix, given in misspelt.items():
        try:
            env = make(given)
        except QMixLightningError:
            continue
        _close(env, ledger)
        ledger.fail(
            "keywords",
            prefix,
            f"the setting '{prefix}{_UNKNOWN}' was taken without a word; a misspelt one would be too",
        )


def _close(env: Any, ledger: Ledger) -> None:
    try:
        env.close()
    except Exception as error:
        ledger.fail("close", "raised", f"close() raised {type(error).__name__}: {error}")


# A vector environment --------------------------------------------------------------------------------------------


def _check_vector_env(make: Callable[[int], VectorEnv], ledger: Ledger, steps: int, seed: int) -> None:
    first = make(SLOTS)
    try:
        probe = Probe(first, SLOTS, ledger, "plays")
        episodes = play(probe, [_seeds(seed, slot) for slot in range(SLOTS)], steps, until_episodes=3)
    except Broken:
        _close_twice(first, ledger)
        _put_off(ledger, "an episode could not be played")
        return
    ledger.seen("plays", "spec", "finite", "masks", "reset")
    _judge_episodes(first, episodes, ledger)
    if ledger.failed("spec", "reset"):
        _close_twice(first, ledger)
        _put_off(ledger, _AFTER_FAILURES)
        return
    try:
        _replay(make, first, episodes, ledger, steps, seed)
    except Broken:
        _put_off(ledger, _AFTER_FAILURES)
    finally:
        _close_twice(first, ledger)


def _put_off(ledger: Ledger, why: str) -> None:
    for promise in PROMISES:
        ledger.unseen(promise, why)


def _seeds(seed: int, slot: int) -> Iterator[int]:
    number = 0
    while True:
        yield int(keys.bounded(keys.mix(seed, slot, number))[0])
        number += 1


def _close_twice(env: VectorEnv, ledger: Ledger) -> None:
    ledger.seen("close")
    for time in ("", "the second "):
        try:
            env.close()
        except Exception as error:
            ledger.fail("close", "raised", f"{time}close() raised {type(error).__name__}: {error}")


def _judge_episodes(env: VectorEnv, episodes: list[Episode], ledger: Ledger) -> None:
    """What shows in the episodes of one play."""
    spec, ended = env.spec, [e for e in episodes if e.ended]
    taken = sum(len(e.steps) for e in episodes)
    if any(not row.mask.all() for e in episodes for row in e.rows[: -1 if e.terminated else None]):
        ledger.seen("death")
    ledger.unseen("death", f"no agent died in {taken} steps of random play")
    if ended:
        ledger.seen("ends", "last observation")
    for promise in ("ends", "last observation"):
        ledger.unseen(promise, f"no episode ended in {taken} steps; --steps plays on")
    if spec.episode_limit is None:
        ledger.note("limit", "none is declared; env.episode_limit cuts episodes that never end")
    else:
        ledger.seen("limit")
        for e in episodes:
            if len(e.steps) > spec.episode_limit:
                ledger.fail(
                    "limit",
                    "kept",
                    f"step {spec.episode_limit + 1}, slot {e.slot} (seed {e.seed}): the episode goes on, but "
                    f"spec.episode_limit is {spec.episode_limit}",
                )
        at_limit = [e for e in ended if len(e.steps) == spec.episode_limit]
        if at_limit and all(e.terminated for e in at_limit):
            ledger.note(
                "ends",
                f"every episode that reached the limit of {spec.episode_limit} steps ({len(at_limit)} seen) ended as "
                "terminated: right only if the limit is part of the task",
            )
    ledger.unseen("limit", "none is declared")
    for e in episodes:
        for t, row in enumerate(e.rows[:-1]):
            if not row.mask.any():
                ledger.note(
                    "death", f"step {t}, slot {e.slot} (seed {e.seed}): nobody is alive, but the episode goes on"
                )
    if len({e.seed for e in episodes}) > 1 and len({e.rows[0].digest for e in episodes}) == 1:
        ledger.note("seeding", f"all {len(episodes)} seeds tried start alike: right for a task without chance")
    states = {row.digest[1] for e in episodes for row in e.rows}
    if len(states) == 1 and len({row.digest[0] for e in episodes for row in e.rows}) > 1:
        ledger.note("state", "the state never changes, though observations do")
    check_last_observations(episodes, ledger)


def _replay(
    make: Callable[[int], VectorEnv], first: VectorEnv, episodes: list[Episode], ledger: Ledger, steps: int, seed: int
) -> None:
    """Play the same seeds again in other circumstances; the episodes must be the same."""
    known = {e.seed: e for e in episodes}
    by_slot = [[e.seed for e in episodes if e.slot == slot] for slot in range(SLOTS)]
    starts = [seeds[0] for seeds in by_slot]
    other = [int(keys.bounded(keys.mix(seed, slot, 10**6))[0]) for slot in range(SLOTS)]

    # 1. The same slots, in another order. The first instance is closed meanwhile, as one that evaluates would be.
    with _Opened(make, SLOTS, ledger, "close") as probe:
        _close_twice(first, ledger)
        ledger.seen("seeding", "state")
        everyone = [True] * SLOTS
        before = probe.reset(everyone, starts)
        probe.reset(everyone, other)
        again = probe.reset(everyone, starts)
        for slot in range(SLOTS):
            found = difference(Episode(starts[slot], slot, [before[slot]]), Episode(starts[slot], slot, [again[slot]]))
            if found:
                promise = "state" if found.only_state else "seeding"
                ledger.fail(promise, "start", f"seed {starts[slot]}, slot {slot}: reset twice, {found}")
        if ledger.failed("seeding", "state"):
            _put_off(ledger, _AFTER_FAILURES)
            return
        same = True
        backwards = [iter(seeds[1::-1]) for seeds in by_slot]
        for replayed in play(probe, backwards, steps):
            original = known[replayed.seed]
            found = difference(original, replayed)
            if found is None:
                continue
            same = False
            message = f"seed {replayed.seed}, slot {replayed.slot}: played again with the same actions, {found}"
            if found.at_end:
                text = f"{message}; what comes back at the end is not the successor of the last step"
                ledger.fail("last observation", "replay", text)
            elif found.only_state:
                ledger.fail("state", "replay", message)
            elif _neighbours_matter(make, ledger, original, by_slot[replayed.slot][:2], steps):
                ledger.fail("slots", "replay", f"{message}, and without neighbours it is another one again")
            else:
                ledger.fail("seeding", "replay", message)
    if not same:
        _put_off(ledger, _AFTER_FAILURES)
        return

    # 2. Each episode in its neighbour's slot.
    with _Opened(make, SLOTS, ledger, "close") as probe:
        ledger.seen("slots")
        moved = [iter([starts[(slot + 1) % SLOTS]]) for slot in range(SLOTS)]
        for replayed in play(probe, moved, steps):
            original = known[replayed.seed]
            if found := difference(original, replayed):
                message = f"seed {replayed.seed} in slot {replayed.slot} instead of {original.slot}, {found}"
                if found.size < _ROUNDING:
                    ledger.note("slots", f"{message} (rounding)")
                else:
                    ledger.fail("slots", "moved", message)

    # 3. With pauses, so that resets and steps of neighbours fall into the middle of an episode.
    with _Opened(make, SLOTS, ledger, "pause") as probe:
        ledger.seen("pause")
        for replayed in play(probe, [iter([s]) for s in starts], 2 * steps, pause_seed=seed):
            found = difference(known[replayed.seed], replayed)
            if found and not ledger.failed("pause", "reset"):
                message = f"seed {replayed.seed}, slot {replayed.slot}: stepped with pauses in between, {found}"
                ledger.fail("pause", "replay", message)

    # 4. After an episode that was left in the middle.
    with _Opened(make, SLOTS, ledger, "unfinished") as probe:
        longest = max(len(e.steps) for e in episodes)
        left = play(probe, [iter([s]) for s in other], max(1, min(3, longest - 1)))
        if any(not e.ended for e in left):
            ledger.seen("unfinished")
        ledger.unseen("unfinished", "every episode was over at once")
        for replayed in play(probe, [iter([s]) for s in starts], steps):
            if found := difference(known[replayed.seed], replayed):
                message = f"seed {replayed.seed}, slot {replayed.slot}: after an unfinished episode, {found}"
                ledger.fail("unfinished", "replay", message)


def _neighbours_matter(
    make: Callable[[int], VectorEnv], ledger: Ledger, original: Episode, seeds: list[int], steps: int
) -> bool:
    """Whether an environment that is alone, with the same past, repeats itself but not what it did in company."""
    alone = []
    for _ in range(2):
        with _Opened(make, 1, ledger, "plays") as probe:
            played = {e.seed: e for e in play(probe, [iter(seeds)], steps)}
            if original.seed not in played:
                return False
            alone.append(played[original.seed])
    found = difference(original, alone[0])
    return difference(*alone) is None and found is not None and found.size > _ROUNDING


class _Opened:
    """A new instance for a ``with`` block; ``blame`` is the promise that is broken if it raises."""

    def __init__(self, make: Callable[[int], VectorEnv], num_envs: int, ledger: Ledger, blame: str) -> None:
        try:
            self.env = make(num_envs)
        except Exception as error:
            ledger.fail("close", "reopen", f"it cannot be opened again: {type(error).__name__}: {error}")
            raise Broken from error
        self.probe_of = lambda: Probe(self.env, num_envs, ledger, blame)
        self.ledger = ledger

    def __enter__(self) -> Probe:
        return self.probe_of()

    def __exit__(self, *_: object) -> None:
        _close_twice(self.env, self.ledger)
