"""Record what the random episodes of a vector environment show."""

from __future__ import annotations

from qmix_lightning.env_checker.auto_reset import detect_auto_reset
from qmix_lightning.env_checker.episodes import RandomEpisode
from qmix_lightning.env_checker.report import CheckReport
from qmix_lightning.environment import VectorEnv
from qmix_lightning.worker.declared import LIMIT_ATTRIBUTES

__all__ = ["judge_episodes"]


def judge_episodes(env: VectorEnv, episodes: list[RandomEpisode], check_report: CheckReport) -> None:
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
    if spec.episode_limit is None and spec.natively_batched:
        check_report.note("limit", "none is declared (EnvSpec.episode_limit); it must truncate episodes by itself")
    elif spec.episode_limit is None:
        check_report.note(
            "limit",
            f"none is declared ({', '.join(LIMIT_ATTRIBUTES)}); env.episode_limit truncates episodes that never end",
        )
    else:
        _judge_limit(spec.episode_limit, episodes, check_report)
    check_report.unseen("limit", "none is declared")
    deserted = [(e, t) for e in episodes for t, row in enumerate(e.rows[:-1]) if not row.mask.any()]
    for e, t in deserted:
        check_report.note("death", f"step {t}, slot {e.slot} (seed {e.seed}): nobody is alive, but the episode goes on")
    _judge_variety(episodes, check_report)
    detect_auto_reset(episodes, check_report)


def _judge_variety(episodes: list[RandomEpisode], check_report: CheckReport) -> None:
    """Note seeds that make no difference, and a state that never changes."""
    if len({e.seed for e in episodes}) > 1 and len({e.rows[0].digest for e in episodes}) == 1:
        check_report.note("seeding", f"all {len(episodes)} seeds tried start alike: right for a task without chance")
    states = {row.digest[1] for e in episodes for row in e.rows}
    if len(states) == 1 and len({row.digest[0] for e in episodes for row in e.rows}) > 1:
        check_report.note("state", "the state never changes, though observations do")


def _judge_limit(limit: int, episodes: list[RandomEpisode], check_report: CheckReport) -> None:
    check_report.seen("limit")
    for e in episodes:
        if len(e.steps) > limit:
            check_report.fail(
                "limit",
                "exceeded",
                f"step {limit + 1}, slot {e.slot} (seed {e.seed}): the episode goes on, but "
                f"spec.episode_limit is {limit}",
            )
    at_limit = [e for e in episodes if e.ended and len(e.steps) == limit]
    if at_limit and all(e.terminated for e in at_limit):
        check_report.note(
            "ends",
            f"every episode that reached the limit of {limit} steps ({len(at_limit)} seen) ended as "
            "terminated: right only if the limit is part of the task",
        )
