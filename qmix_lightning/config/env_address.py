"""Tell an environment's address from a name, call it by a name of its own, and know which modules are trusted.

Imports nothing that is named, and no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.regular_files import write_whole

__all__ = [
    "FACTORY",
    "env_label",
    "is_address",
    "is_trusted",
    "own_arguments",
    "trust",
    "trust_file",
    "trusted_modules",
]

FACTORY = "factory"
"""The name of an environment that :func:`qmix_lightning.train` was given as an object, which no command knows."""

_ADDRESS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_GENERIC = ("make", "make_env", "create", "env", "raw_env", "parallel_env", "factory")
"""Names of factories that say nothing of what they make."""


def is_address(text: str) -> bool:
    """Return whether a text is ``package.module:factory``, or a dotted module, whose ``parallel_env`` is meant."""
    return _ADDRESS.fullmatch(text) is not None or ("." in text and _MODULE.fullmatch(text) is not None)


def env_label(section: Mapping[str, Any]) -> str:
    """Return what an environment is called in tables, folders and messages: that of an address is its own name.

    That is the factory's, or the module's where the factory is called ``parallel_env``, ``make`` or the like.
    """
    name, address = str(section.get("name")), section.get("id")
    if name != "pettingzoo" or not isinstance(address, str) or not is_address(address):
        return name
    module, _, factory = address.partition(":")
    return module.rpartition(".")[2] if not factory or factory.lower() in _GENERIC else factory


def trust_file() -> Path:
    """Return the file that lists the modules that the user trusts, one a line, in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "qmix-lightning" / "trusted_modules"


def trusted_modules() -> list[str]:
    """Return the modules that a file may name, since the user has said so; others have to be typed each time."""
    try:
        lines = trust_file().read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line.strip() for line in lines if _MODULE.fullmatch(line.strip())]


def own_arguments(key: str) -> str:
    """Return the end of a message about an unknown ``env.KEY`` where the section has ``kwargs``."""
    return f"; the environment's own arguments are typed env.kwargs.{key}"


def is_trusted(text: object) -> bool:
    """Return whether a text is an address in a trusted module, or in one of its sub-modules."""
    if not isinstance(text, str) or not (_ADDRESS.fullmatch(text) or _MODULE.fullmatch(text)):
        return False
    module = text.partition(":")[0]
    return any(module == known or module.startswith(f"{known}.") for known in trusted_modules())


def trust(module: str, *, remove: bool = False) -> Path:
    """Add a module to the trusted ones, or take it out; return the file.

    Raises:
        ConfigurationError: it is no module's name, is not there to be taken out, or the file cannot be written.
    """
    if not _MODULE.fullmatch(module):
        raise ConfigurationError(f"'{module}' is not the name of a module, as in my_package.my_module")
    known, path = trusted_modules(), trust_file()
    if remove and module not in known:
        raise ConfigurationError(f"'{module}' is not among the trusted modules of {path}")
    kept = [name for name in known if name != module] + ([] if remove else [module])
    try:
        write_whole("".join(f"{name}\n" for name in kept), path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}") from error
    return path
