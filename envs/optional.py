"""Require packages that an environment needs and a plain installation lacks; import nothing here."""

from __future__ import annotations

import importlib.util

from qmix_lightning.errors import MissingDependencyError

__all__ = ["require"]


def require(package: str, env: str, extra: str) -> None:
    """Refuse, with the command that installs it, if ``package`` is not there.

    Args:
        package: the module that would be imported.
        env: the environment that needs it.
        extra: this distribution's extra that brings it.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingDependencyError(
            f"environment '{env}' needs the package '{package}': pip install 'qmix-lightning[{extra}]'"
        )
