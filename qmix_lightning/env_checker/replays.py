"""Play the random episodes of a check again, by the same seeds in other circumstances: they must be the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable

from qmix_lightning.env_checker.episodes import RandomEpisode, difference
from qmix_lightning.env_checker.instrumented_env import InstrumentedEnv, Unusable, random_episodes
from qmix_lightning.env_checker.report import CHECKS, CheckReport
from qmix_lightning.environment import VectorEnv
from qmix_lightning.runtime import prng
from qmix_lightning.worker.blame import is_fault
from qmix_lightning.worker.parallel_adapter import ParallelAdapter

__all__ = ["SLOTS", "Replays", "close", "close_twice", "play_unseeded", "put_off"]

SLOTS = 3
_ROUNDING = 1e-4
"""Batched arithmetic may round differently in another slot; this much at the first difference, relative."""


class Replays:
    """The seeds of random episodes, played again on new instances.

    Args:
        make: creates an instance of so many slots.
        episodes: as they were played first, in :data:`SLOTS` slots.
        check_report: where results go.
        steps: joint steps at most of each playing.
        seed: decides what is drawn besides.
    """

    def __init__(
        self,
        make: Callable[[int], VectorEnv],
        episodes: list[RandomEpisode],
        check_report: CheckReport,
        steps: int,
        seed: int,
    ) -> None:
        self.make = make
        self.check_report = check_report
        self.steps = steps
        self.seed = seed
        self.known = {e.seed: e for e in episodes}
        self.by_slot = [[e.seed for e in episodes if e.slot == slot] for slot in range(SLOTS)]
        self.starts = [seeds[0] for seeds in self.by_slot]
        self.other = [int(prng.to_seed(prng.derive_key(seed, slot, 10**6))[0]) for slot in range(SLOTS)]

    def play(self, first: VectorEnv) -> None:
        """Play everything again; ``first`` is the instance that the episodes were played on first."""
        # The first instance is closed meanwhile, as one that evaluates would be.
        with _created(self.make, SLOTS, self.check_report, "close") as instrumented:
            close_twice(first, self.check_report)
            same = self._resets_alike(instrumented) and self._backwards(instrumented)
        if not same:
            put_off(self.check_report)
            return
        self._moved()
        self._with_pauses()
        self._after_unfinished()

    def _again(
        self, instrumented: InstrumentedEnv, seeds: Iterable[list[int]], steps: int, pause_seed: int | None = None
    ) -> list[RandomEpisode]:
        return random_episodes(instrumented, [iter(own) for own in seeds], steps, pause_seed=pause_seed)

    def _resets_alike(self, instrumented: InstrumentedEnv) -> bool:
        """Return whether resets by the same seeds begin alike."""
        self.check_report.seen("seeding", "state")
        everyone = [True] * SLOTS
        before = instrumented.reset(everyone, self.starts)
        instrumented.reset(everyone, self.other)
        again = instrumented.reset(everyone, self.starts)
        for slot, seed in enumerate(self.starts):
            found = difference(RandomEpisode(seed, slot, [before[slot]]), RandomEpisode(seed, slot, [again[slot]]))
            if found:
                check = "state" if found.only_state else "seeding"
                self.check_report.fail(check, "start", f"seed {seed}, slot {slot}: reset twice, {found}")
        return not self.check_report.failed("seeding", "state")

    def _backwards(self, instrumented: InstrumentedEnv) -> bool:
        """Play the first two episodes of each slot in the other order; return whether they are the same."""
        same = True
        for replayed in self._again(instrumented, [seeds[1::-1] for seeds in self.by_slot], self.steps):
            original = self.known[replayed.seed]
            found = difference(original, replayed)
            if found is None:
                continue
            same = False
            message = f"seed {replayed.seed}, slot {replayed.slot}: played again with the same actions, {found}"
            if found.at_end:
                text = f"{message}; what comes back at the end is not the successor of the last step"
                self.check_report.fail("auto-reset", "replay", text)
            elif found.only_state:
                self.check_report.fail("state", "replay", message)
            elif self._neighbours_matter(original, self.by_slot[replayed.slot][:2]):
                self.check_report.fail("slots", "replay", f"{message}, and without neighbours it is another one again")
            else:
                self.check_report.fail("seeding", "replay", message)
        return same

    def _neighbours_matter(self, original: RandomEpisode, seeds: list[int]) -> bool:
        """Return whether an environment alone, with the same past, repeats itself but not what it did in company."""
        alone: list[RandomEpisode] = []
        for _ in range(2):
            with _created(self.make, 1, self.check_report, "runs") as instrumented:
                played = {e.seed: e for e in self._again(instrumented, [seeds], self.steps)}
                if original.seed not in played:
                    return False
                alone.append(played[original.seed])
        found = difference(original, alone[0])
        return difference(*alone) is None and found is not None and found.size > _ROUNDING

    def _moved(self) -> None:
        """Play each episode in its neighbour's slot."""
        with _created(self.make, SLOTS, self.check_report, "close") as instrumented:
            self.check_report.seen("slots")
            moved = [[self.starts[(slot + 1) % SLOTS]] for slot in range(SLOTS)]
            for replayed in self._again(instrumented, moved, self.steps):
                original = self.known[replayed.seed]
                if found := difference(original, replayed):
                    message = f"seed {replayed.seed} in slot {replayed.slot} instead of {original.slot}, {found}"
                    if found.size < _ROUNDING:
                        self.check_report.note("slots", f"{message} (rounding)")
                    else:
                        self.check_report.fail("slots", "moved", message)

    def _with_pauses(self) -> None:
        """Play with pauses, so that resets and steps of neighbours fall into the middle of an episode."""
        with _created(self.make, SLOTS, self.check_report, "pause") as instrumented:
            self.check_report.seen("pause")
            for replayed in self._again(instrumented, [[s] for s in self.starts], 2 * self.steps, self.seed):
                found = difference(self.known[replayed.seed], replayed)
                if found and not self.check_report.failed("pause", "reset"):
                    message = f"seed {replayed.seed}, slot {replayed.slot}: stepped with pauses in between, {found}"
                    self.check_report.fail("pause", "replay", message)

    def _after_unfinished(self) -> None:
        """Play after episodes that were left in the middle."""
        with _created(self.make, SLOTS, self.check_report, "unfinished") as instrumented:
            longest = max(len(e.steps) for e in self.known.values())
            left = self._again(instrumented, [[s] for s in self.other], max(1, min(3, longest - 1)))
            if any(not e.ended for e in left):
                self.check_report.seen("unfinished")
            self.check_report.unseen("unfinished", "every episode was over at once")
            for replayed in self._again(instrumented, [[s] for s in self.starts], self.steps):
                if found := difference(self.known[replayed.seed], replayed):
                    message = f"seed {replayed.seed}, slot {replayed.slot}: after an unfinished episode, {found}"
                    self.check_report.fail("unfinished", "replay", message)


def play_unseeded(
    make: Callable[[int], VectorEnv], first: VectorEnv, check_report: CheckReport, steps: int, seed: int
) -> None:
    """Try what can be tried where an episode cannot be played again: another instance, with pauses."""
    with _created(make, SLOTS, check_report, "close") as instrumented:
        close_twice(first, check_report)
        check_report.seen("pause")
        random_episodes(instrumented, [iter([s]) for s in range(SLOTS)], steps, pause_seed=seed)
    for check in ("seeding", "state", "slots", "unfinished"):
        check_report.unseen(check, "no episode can be played again: metadata['seeded'] is false")


def put_off(check_report: CheckReport, why: str = "tried only once the failures are gone") -> None:
    """Record every check that has no result as not tried."""
    for check in CHECKS:
        check_report.unseen(check, why)


def close_twice(env: VectorEnv, check_report: CheckReport) -> None:
    """Close an environment, which may be done twice."""
    check_report.seen("close")
    close(env, check_report)
    close(env, check_report, "the second ")


def close(env: VectorEnv | ParallelAdapter, check_report: CheckReport, which: str = "") -> None:
    """Close an environment, and record what that raises."""
    try:
        env.close()
    except BaseException as error:
        if not is_fault(error):
            raise
        check_report.fail("close", "raised", f"{which}close() raised {type(error).__name__}: {error}")


@contextlib.contextmanager
def _created(
    make: Callable[[int], VectorEnv], num_envs: int, check_report: CheckReport, blame: str
) -> Generator[InstrumentedEnv]:
    """Yield a new instance, closed at the end; ``blame`` is the check that fails if it raises."""
    try:
        env = make(num_envs)
    except BaseException as error:
        if not is_fault(error):
            raise
        check_report.fail("close", "recreate", f"it cannot be created again: {type(error).__name__}: {error}")
        raise Unusable from error
    try:
        yield InstrumentedEnv(env, num_envs, check_report, blame)
    finally:
        close_twice(env, check_report)
