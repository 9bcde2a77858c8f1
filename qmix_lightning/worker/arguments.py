"""Check the keyword arguments of a factory before it is called.

Imports no numpy: the registry of environments needs this to list names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["check_arguments"]


def check_arguments(factory: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> None:
    """Refuse keyword arguments that ``factory`` does not take, and required ones that are missing.

    A factory with ``**kwargs`` takes everything here; it has to refuse for itself.

    Args:
        factory: what will be called.
        arguments: its keyword arguments.
        what: names the factory in messages.
    """
    parameters = {k: p for k, p in inspect.signature(factory).parameters.items() if p.kind is not p.POSITIONAL_ONLY}
    named = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in arguments:
            if key not in named:
                raise ConfigurationError(f"{what} has no setting '{key}'{did_you_mean(key, named)}")
    missing = [k for k, p in named.items() if p.default is p.empty and k not in arguments]
    if missing:
        # Only an address comes here without it: a factory that was registered is given the number.
        cure = (
            "; environments that step together have a name: a plugin, or environment.register"
            if "num_envs" in missing
            else ""
        )
        raise ConfigurationError(f"{what} needs {', '.join(missing)}{cure}")
