"""Create any JaxMARL environment with discrete actions by its id: ``env=jaxmarl env.id=MPE_simple_spread_v3``."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import sys
import warnings
from collections.abc import Mapping
from typing import Any, Literal

from qmix_lightning.errors import ConfigurationError, EnvironmentContractError, MissingDependencyError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["import_jaxmarl", "make"]

_MABRAX = "jaxmarl.environments.mabrax"


def import_jaxmarl(family: str) -> Any:
    """Import and return the package ``jaxmarl`` in silence: our standard output may be JSON.

    Its MABrax part replaces ``sys.stdout`` and ``sys.stderr`` by the process's own, whatever they were. It is left out:
    its actions are continuous.

    Args:
        family: the environment that needs it, for the message.
    """
    if importlib.util.find_spec("jaxmarl") is None:
        raise MissingDependencyError(f"environment '{family}' needs jaxmarl: pip install 'qmix-lightning[{family}]'")
    from qmix_lightning.envs.jax_vector import start_jax

    start_jax()  # before anything makes an array, which importing JaxMARL does
    left_out = {} if _MABRAX in sys.modules else {_MABRAX: None}
    sys.modules.update(left_out)  # type: ignore[arg-type]  # None makes an import of it fail
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import jaxmarl
    finally:
        for module in left_out:
            del sys.modules[module]
    return jaxmarl


def make(
    *,
    num_envs: int,
    id: str,
    kwargs: Mapping[str, Any] | None = None,
    reward_aggregation: Literal["sum", "mean"] = "sum",
    timeout_is_terminal: bool = False,
    episode_limit: int | None = None,
    device: Literal["auto", "cpu", "gpu"] = "auto",
) -> Any:
    """Create ``num_envs`` environments of JaxMARL, batched by JAX.

    Args:
        num_envs: environments that step together.
        id: JaxMARL's name, e.g. ``MPE_simple_spread_v3``, ``hanabi``, ``overcooked_v2``, ``switch_riddle``.
        kwargs: keyword arguments of the environment.
        reward_aggregation: the team reward: ``sum`` or ``mean`` over all agents. Where all are paid the same (Hanabi,
            Overcooked), ``mean`` is what one of them gets.
        timeout_is_terminal: count the time limit as a true end.
        episode_limit: joint steps after which an episode is truncated; ``None``: the environment's ``max_steps``.
        device: where JAX runs.
    """
    jaxmarl = import_jaxmarl("jaxmarl")
    from qmix_lightning.envs.jax_program import JaxmarlRules, JaxProgram, shared_program
    from qmix_lightning.envs.jax_vector import JaxVectorEnv

    if id not in jaxmarl.registered_envs:
        raise ConfigurationError(f"unknown JaxMARL environment '{id}'{did_you_mean(id, jaxmarl.registered_envs)}")
    if id.endswith("EnemySMAX"):
        raise ConfigurationError(f"'{id}' has a family of its own: env=smax env.scenario=3m")
    given = dict(kwargs or {})
    name = f"JaxMARL environment '{id}'"

    def build() -> JaxProgram:
        arguments = dict(given)
        if id == "overcooked" and isinstance(arguments.get("layout"), str):
            arguments["layout"] = _overcooked_layout(arguments["layout"])
        with warnings.catch_warnings():
            # Who asks for the first Overcooked by name need not be warned that there is a second.
            warnings.filterwarnings("ignore", "OvercookedV2 is now released", DeprecationWarning)
            try:
                simulator = jaxmarl.make(id, **arguments)
            except ImportError as error:  # of brax
                raise EnvironmentContractError(f"{name} does not fit: its actions are continuous") from error
        _check_names(type(simulator), given, name)
        return JaxProgram(
            simulator,
            JaxmarlRules,
            name=name,
            reward_aggregation=reward_aggregation,
            timeout_is_terminal=timeout_is_terminal,
            episode_limit=episode_limit,
        )

    settings = (id, sorted(given.items()), reward_aggregation, timeout_is_terminal, episode_limit)
    program = shared_program(f"jaxmarl {jaxmarl.__version__} {settings!r}", build)
    return JaxVectorEnv(program, num_envs=num_envs, device=device)


def _overcooked_layout(layout: str) -> Any:
    from jaxmarl.environments.overcooked import overcooked_layouts

    if layout not in overcooked_layouts:
        raise ConfigurationError(f"unknown Overcooked layout '{layout}'{did_you_mean(layout, overcooked_layouts)}")
    return overcooked_layouts[layout]


def _check_names(cls: type, given: Mapping[str, Any], name: str) -> None:
    """Refuse keyword arguments that no constructor names: MPE's take any and ignore it."""
    known: set[str] = set()
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is not None and base is not object:
            parameters = inspect.signature(constructor).parameters.values()
            known |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    for key in given:
        if key not in known - {"self"}:
            raise ConfigurationError(f"{name} has no setting '{key}'{did_you_mean(key, known - {'self'})}")
