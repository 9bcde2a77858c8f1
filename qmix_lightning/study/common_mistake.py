"""Find a mistake that all jobs of a sweep share, before any of them begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qmix_lightning.cli.compose import composer
from qmix_lightning.cli.overrides import parse_swept
from qmix_lightning.config.early_checks import check_early
from qmix_lightning.errors import ConfigurationError

__all__ = ["refuse_common_mistake"]


def refuse_common_mistake(overrides: Sequence[str]) -> None:
    """Compose jobs of a sweep until one fits, or fails in another way than the first.

    Beside the first job those are composed that differ from it in one of the swept settings. What all of them are
    refused for depends on no swept setting; mistakes of single jobs are left to the sweep, which goes on without them.

    Args:
        overrides: as they were typed; Hydra's own settings are left out.

    Raises:
        ConfigurationError: all of them are refused, in the same words.
    """
    common: str | None = None
    with composer() as compose:
        for job in _jobs([o for o in overrides if not o.startswith(("hydra.", "hydra/", "+hydra", "~hydra"))]):
            try:
                check_early(compose(job, None)[0])
                return
            except ConfigurationError as error:
                if common not in (None, str(error)):
                    return
                common = str(error)
    if common is not None:
        raise ConfigurationError(common)


def _jobs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield the overrides of the first job, and of those that differ from it in one setting."""
    choices = [_choices(override) for override in overrides]
    first = [values[0] for values in choices]
    yield first
    for i, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:i], value, *first[i + 1 :]]


def _choices(override: str) -> list[str]:
    """Return an override with each of its swept values; of an interval, its ends.

    Called while a :func:`composer` is open.

    Raises:
        ConfigurationError: it has no value.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.types import IntervalSweep

    parsed = parse_swept(override)
    if parsed is None:
        return [override]
    parsed.config_loader = GlobalHydra.instance().config_loader()  # glob(...) looks for a group's choices
    key, swept = override.partition("=")[0], parsed.value()
    if isinstance(swept, IntervalSweep):
        return [f"{key}={swept.start}", f"{key}={swept.end}"]
    if values := [f"{key}={value}" for value in parsed.sweep_string_iterator()]:
        return values
    raise ConfigurationError(f"{override} fits no choice of {key}")
