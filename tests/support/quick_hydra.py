"""Hydra without what it does again for every command of the tests: two thirds of one that only composes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TextIO

import omegaconf._utils
import omegaconf.base
import omegaconf.omegaconf
import yaml
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides, create_defaults_list


def quicken(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let Hydra parse a text once, put together the same shipped files once, and copy no schema, by ``patch``."""
    # It copies all that is registered with it for each composition, and for each group that --help lists.
    patch(CachingConfigRepository, "__init__", _with_a_cache_of_its_own)
    patch(omegaconf.omegaconf, "yaml", SimpleNamespace(**{**vars(yaml), "load": _parsed_once}))
    parse = functools.cache(omegaconf.base.parse)  # its trees are only read
    patch(omegaconf.base, "parse", parse)
    patch(omegaconf._utils, "parse", parse)
    patch(config_loader_impl, "create_defaults_list", _listed_once)
    patch(ConfigLoaderImpl, "_compose_config_from_defaults_list", _merged_once)


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


def _packages(repository: CachingConfigRepository) -> list[str]:
    """The packages whose files these are; none if some are in a folder, where a test may change them."""
    sources = repository.get_sources()
    return [] if any(source.scheme() == "file" for source in sources) else [source.path for source in sources]


_LISTED: dict[str, DefaultsList] = {}


def _listed_once(
    repo: CachingConfigRepository, config_name: str | None, overrides_list: list[Any], *how: Any, **named: Any
) -> DefaultsList:
    """Which files the choices lead to; what is typed beside them is of this command."""
    if not (packages := _packages(repo)):
        return create_defaults_list(repo, config_name, overrides_list, *how, **named)
    typed = Overrides(repo, overrides_list)
    choices = (typed.override_choices, typed.append_group_defaults, typed.deletions)
    key = repr((packages, config_name, choices, how, named))
    if key not in _LISTED:
        _LISTED[key] = create_defaults_list(repo, config_name, overrides_list, *how, **named)
    return dataclasses.replace(_LISTED[key], config_overrides=typed.config_overrides)


_MERGED: dict[str, bytes] = {}
_merge = ConfigLoaderImpl._compose_config_from_defaults_list


def _merged_once(loader: ConfigLoaderImpl, defaults: list[Any], repo: CachingConfigRepository) -> Any:
    """What these files say together, before anything that was typed; copied by pickling, which is the quicker way."""
    if not (packages := _packages(repo)):
        return _merge(loader, defaults, repo)
    if (key := repr((packages, defaults))) not in _MERGED:
        _MERGED[key] = pickle.dumps(_merge(loader, defaults, repo))
    return pickle.loads(_MERGED[key])
