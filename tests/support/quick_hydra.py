"""Hydra without what it does again for every command of the tests: a quarter of a command that trains a little."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TextIO

import omegaconf.omegaconf
import yaml
from hydra._internal.config_repository import CachingConfigRepository


def quicken(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let Hydra parse a text of YAML once, and copy no schema, by means of ``patch``."""
    # It copies all that is registered with it for each composition, and for each group that --help lists.
    patch(CachingConfigRepository, "__init__", _with_a_cache_of_its_own)
    patch(omegaconf.omegaconf, "yaml", SimpleNamespace(**{**vars(yaml), "load": _parsed_once}))


def _with_a_cache_of_its_own(repository: CachingConfigRepository, delegate: Any) -> None:
    repository.delegate, repository.cache = copy.copy(delegate), {}  # its sources are its own, as they have to be


_PARSED: dict[str, Any] = {}


def _parsed_once(source: str | TextIO, Loader: Any) -> Any:
    """What a text says, in containers that OmegaConf copies from."""
    if isinstance(source, str):
        text = source
    else:
        begin, text = source.tell(), source.read()
        source.seek(begin)  # an error names the file
    if text not in _PARSED:
        _PARSED[text] = yaml.load(source, Loader)
    return _PARSED[text]
