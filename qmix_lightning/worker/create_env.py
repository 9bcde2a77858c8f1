"""Create one adapted environment from a factory and its settings; report what fails in one line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qmix_lightning.errors import ConfigurationError, MissingDependencyError, QMixLightningError
from qmix_lightning.registry import load_target
from qmix_lightning.runtime.text import on_one_line
from qmix_lightning.worker.arguments import check_arguments
from qmix_lightning.worker.blame import is_fault, raised_at
from qmix_lightning.worker.declared import close_if_it_can
from qmix_lightning.worker.parallel_adapter import ParallelAdapter

__all__ = ["AdapterMaker", "create_env"]


@dataclass(frozen=True)
class AdapterMaker:
    """Creates one :class:`ParallelAdapter` each time it is called.

    Args:
        factory: returns a ``ParallelEnv``; the factory or its address, ``package.module:name``.
        settings: its keyword arguments.
        name: what messages call the environment.
        reward_aggregation, timeout_is_terminal, episode_limit, team: see :class:`ParallelAdapter`.
    """

    factory: Callable[..., Any] | str
    settings: Mapping[str, Any]
    name: str
    reward_aggregation: str = "sum"
    timeout_is_terminal: bool = False
    episode_limit: int | None = None
    team: list[str] | None = None

    def __call__(self) -> ParallelAdapter:
        what = f"environment '{self.name}'"
        factory = load_target(self.factory, what) if isinstance(self.factory, str) else self.factory
        env = create_env(factory, self.settings, what)
        try:
            return ParallelAdapter(
                env,
                name=self.name,
                reward_aggregation=self.reward_aggregation,
                timeout_is_terminal=self.timeout_is_terminal,
                episode_limit=self.episode_limit,
                team=self.team,
            )
        except BaseException as error:
            with contextlib.suppress(Exception):  # what it could not be made for is more worth telling
                close_if_it_can(env)
            if isinstance(error, QMixLightningError) or not is_fault(error):
                raise
            raise _not_made(what, error) from error

    def to_json(self) -> dict[str, Any]:
        """Return plain containers of which ``AdapterMaker(**...)`` makes an equal one in another process.

        Raises:
            ConfigurationError: the factory has no address, or a setting is no JSON value.
        """
        address = self.factory if isinstance(self.factory, str) else _address_of(self.factory)
        why = "its factory has no address" if address is None else ""
        try:
            settings = json.loads(json.dumps(dict(self.settings)))
        except (TypeError, ValueError) as error:
            settings, why = {}, f"its settings are no plain values: {error}"
        if why:
            raise ConfigurationError(
                f"environment '{self.name}' cannot be sent to worker processes ({why}): register its factory by "
                "'package.module:name', or use rollout=sync"
            )
        return {**vars(self), "factory": address, "settings": settings}


def _address_of(factory: Callable[..., Any]) -> str | None:
    """Return ``package.module:name`` of a factory; ``None`` if it is not found there again."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "")
    found: Any = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is factory else None


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
        raise _not_made(what, error) from error


def _not_made(what: str, error: BaseException) -> ConfigurationError:
    """Return one line for what a factory, or an environment that was asked for its spaces, has raised."""
    reason = on_one_line(error) or "no message"
    where = raised_at(error)
    place = f" ({where})" if where else ""
    return ConfigurationError(f"{what} could not be made: {type(error).__name__}: {reason}{place}")
