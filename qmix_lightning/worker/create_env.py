"""Create one adapted environment from a factory and its settings; report what fails in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qmix_lightning.errors import ConfigurationError, MissingDependencyError, QMixLightningError
from qmix_lightning.worker.arguments import check_arguments
from qmix_lightning.worker.blame import is_fault, raised_at
from qmix_lightning.worker.parallel_adapter import ParallelAdapter

__all__ = ["AdapterMaker", "create_env"]


@dataclass(frozen=True)
class AdapterMaker:
    """Creates one :class:`ParallelAdapter` each time it is called; can be sent to a worker process.

    Args:
        factory: returns a ``ParallelEnv``.
        settings: its keyword arguments.
        name: what messages call the environment.
        reward_aggregation, timeout_is_terminal, episode_limit: see :class:`ParallelAdapter`.
    """

    factory: Callable[..., Any]
    settings: Mapping[str, Any]
    name: str
    reward_aggregation: str
    timeout_is_terminal: bool
    episode_limit: int | None

    def __call__(self) -> ParallelAdapter:
        env = create_env(self.factory, self.settings, f"environment '{self.name}'")
        try:
            return ParallelAdapter(
                env,
                name=self.name,
                reward_aggregation=self.reward_aggregation,
                timeout_is_terminal=self.timeout_is_terminal,
                episode_limit=self.episode_limit,
            )
        except BaseException:
            close = getattr(env, "close", None)  # a simulator may hold processes
            if callable(close):
                close()
            raise


def create_env(factory: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> Any:
    """Return ``factory(**arguments)``; whatever it raises becomes one line that names the environment."""
    check_arguments(factory, arguments, what)
    try:
        return factory(**arguments)
    except QMixLightningError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        way_out = f"needs the package '{package}': pip install {package}" if package else f"could not be made: {error}"
        raise MissingDependencyError(f"{what} {way_out}") from error
    except BaseException as error:
        if not is_fault(error):
            raise
        reason = " ".join(str(error).split()) or "no message"
        where = raised_at(error)
        place = f" ({where})" if where else ""
        raise ConfigurationError(f"{what} could not be made: {type(error).__name__}: {reason}{place}") from error
