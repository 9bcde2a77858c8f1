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
from functools import partial
from typing import Any

from qmix_lightning.env_checker.instrumented_env import InstrumentedEnv, Unusable, random_episodes
from qmix_lightning.env_checker.judge import judge_episodes
from qmix_lightning.env_checker.parallel_env import check_parallel_env
from qmix_lightning.env_checker.replays import SLOTS, Replays, close, close_twice, play_unseeded, put_off
from qmix_lightning.env_checker.report import CHECKS, CheckReport, CheckResult, failures, report
from qmix_lightning.environment import VectorEnv, is_natively_batched
from qmix_lightning.errors import QMixLightningError
from qmix_lightning.runtime import prng
from qmix_lightning.vector.checked import CheckedVectorEnv
from qmix_lightning.vector.factory import Backend, make_vector_env
from qmix_lightning.vector.sync import SyncVectorEnv, close_all
from qmix_lightning.vector.worker_process import Interpreter
from qmix_lightning.worker.create_env import AdapterMaker
from qmix_lightning.worker.fault_tolerance import FaultLimit
from qmix_lightning.worker.parallel_adapter import ParallelAdapter

__all__ = ["CHECKS", "CheckResult", "check_environment", "check_factory", "failures", "report"]

STEPS = 400
_UNKNOWN = "no_such_setting"


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
    interpreter: Interpreter | None = None,
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
        interpreter: another Python that steps them, in a worker; what only the bare environment shows is not tried.

    Raises:
        ConfigurationError: it cannot be created with these settings at all.
    """
    settings = dict(settings or {})
    batched = is_natively_batched(factory)
    single = not batched and interpreter is None
    adapted: dict[str, Any] = {
        "reward_aggregation": reward_aggregation,
        "timeout_is_terminal": timeout_is_terminal,
        "episode_limit": episode_limit,
    }
    # The first fault ends it, so that it shows.
    backend = Backend(interpreter=interpreter, limit=FaultLimit(max_faults=0))

    def make_adapter(given: Mapping[str, Any]) -> ParallelAdapter:
        return AdapterMaker(factory, given, name, **adapted)()

    def make_vector(given: Mapping[str, Any], num_envs: int) -> VectorEnv:
        own = {} if batched else adapted
        return make_vector_env(factory, given, num_envs=num_envs, name=name, backend=backend, **own)

    def make(num_envs: int) -> VectorEnv:
        if not single:
            return _unchecked(make_vector(settings, num_envs))
        # Without the fault tolerance that training adds, so that the first fault shows.
        created: list[ParallelAdapter] = []
        try:
            created.extend(make_adapter(settings) for _ in range(num_envs))
            return SyncVectorEnv(created)
        except BaseException:
            close_all(created)
            raise

    check_report = CheckReport()
    if single:
        adapter = make_adapter(settings)
        try:
            limit = adapter.spec.episode_limit if episode_limit is None else None
            check_parallel_env(adapter.env, check_report, steps=steps, seed=seed, limit=limit)
        finally:
            close(adapter, check_report)
    hidden = "what a ParallelEnv returns stays in its worker, which looks at it"
    only_single = "only a single environment (ParallelEnv) has dicts by agent"
    check_report.unseen("accounts", only_single if interpreter is None else hidden)
    _check_vector_env(make, check_report, steps, seed)
    _check_keywords(make_adapter if single else partial(make_vector, num_envs=1), settings, check_report)
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
        close(env, check_report)
        check_report.fail(
            "keywords",
            prefix,
            f"the setting '{prefix}{_UNKNOWN}' was taken without a word; a misspelt one would be too",
        )


# A vector environment --------------------------------------------------------------------------------------------


def _check_vector_env(make: Callable[[int], VectorEnv], check_report: CheckReport, steps: int, seed: int) -> None:
    first = make(SLOTS)
    try:
        instrumented = InstrumentedEnv(first, SLOTS, check_report, "runs")
        episodes = random_episodes(instrumented, [_seeds(seed, slot) for slot in range(SLOTS)], steps, until_episodes=3)
    except Unusable:
        close(first, check_report)
        put_off(check_report, "an episode could not be played")
        return
    check_report.seen("runs", "spec", "finite", "masks", "reset")
    judge_episodes(first, episodes, check_report)
    if check_report.failed("spec", "reset"):
        close_twice(first, check_report)
        put_off(check_report)
        return
    try:
        if getattr(first, "seeded", True):
            Replays(make, episodes, check_report, steps, seed).play(first)
        else:
            play_unseeded(make, first, check_report, steps, seed)
    except Unusable:
        put_off(check_report)
    finally:
        close_twice(first, check_report)


def _seeds(seed: int, slot: int) -> Iterator[int]:
    number = 0
    while True:
        yield int(prng.to_seed(prng.derive_key(seed, slot, number))[0])
        number += 1
