"""Read ``key=value`` arguments of commands that Hydra does not compose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["parse_key_values"]


def parse_key_values(arguments: Sequence[str], known: Iterable[str]) -> dict[str, Any]:
    """Return what was typed, each value read as YAML.

    Args:
        arguments: ``key=value`` each.
        known: keys, for messages.

    Raises:
        ConfigurationError: an argument is something else, a value cannot be read, or a key stands twice.
    """
    import yaml

    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            hint = did_you_mean(argument.lstrip("-"), known).split(";")[0].replace("'?", "='?")
            raise ConfigurationError(f"cannot read '{argument}', which should be key=value{hint}")
        if key in given:
            raise ConfigurationError(f"{key} is given twice")
        try:
            given[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            if text.startswith("[") and "]" not in text:
                raise ConfigurationError(
                    f"cannot read '{argument}': a list is closed and has no blanks, {key}=[a,b], or is in quotes"
                ) from error
            raise ConfigurationError(f"cannot read '{argument}': {' '.join(str(error).split())}") from error
    return given
