"""Check settings against schemas, from dataclasses and from keyword arguments, by one validator.

A mistake becomes one line: the closest name there is, or what was expected instead. Imports no torch.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from qmix_lightning.config.synonyms import meant_by
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["check_settings", "from_mapping", "settings_of", "typed"]


@dataclass(frozen=True)
class _Key:
    hint: Any
    required: bool
    bundle: str | None = None
    """The dataclass argument that this key is a field of."""


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(_plain, get_args(hint)))
    if get_origin(hint) in (typing.Union, types.UnionType):
        literals = [v for a in get_args(hint) if get_origin(a) is Literal for v in get_args(a)]
        parts = [f"one of {', '.join(dict.fromkeys(map(_plain, literals)))}"] if literals else []
        others = [a for a in get_args(hint) if get_origin(a) is not Literal]
        return " or ".join([*parts, *("null" if a is type(None) else _describe(a) for a in others)])
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", list: "a list"}
    names |= {dict: "a mapping {key: value}", Mapping: "a mapping {key: value}"}
    kind = get_origin(hint) or hint
    return names.get(kind) or getattr(kind, "__name__", str(hint))


def _plain(value: Any) -> str:
    """Return a value as YAML and the command line write it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def typed(value: Any) -> str:
    """Return a value as YAML and the command line write it, texts in quotes."""
    return repr(value) if isinstance(value, str) else _plain(value)


def _coerce(value: Any, hint: Any, path: str) -> Any:
    """Return ``value`` as ``hint``, or raise with one line that says what was expected."""
    origin = get_origin(hint)
    wrong = ConfigurationError(f"{path} must be {_describe(hint)}, not {typed(value)}")
    if hint is Any or hint is inspect.Parameter.empty:
        return value
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in get_args(hint)):  # 1 is not true
            hint_text = did_you_mean(str(value), map(str, get_args(hint)))
            raise ConfigurationError(f"{path} must be {_describe(hint)}, not {typed(value)}{hint_text.split(';')[0]}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in sorted(get_args(hint), key=lambda h: not (isinstance(h, type) and type(value) is h)):
            try:
                return _coerce(value, option, path)
            except ConfigurationError:
                continue
        raise wrong
    if hint is type(None) or hint is None:
        if value is not None:
            raise wrong
        return None
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise wrong
        return from_mapping(typing.cast(type, hint), value, path)
    if hint is bool:
        if not isinstance(value, bool):
            raise wrong
        return value
    if hint is int:
        if isinstance(value, float) and value.is_integer():
            return int(value)  # total_env_steps=1e6
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong
        return float(value)
    if hint is str:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise wrong
        return str(value)
    container = origin or hint
    if isinstance(container, type) and not isinstance(value, container):
        raise wrong
    return value


def _check_keys(given: Mapping[str, Any], known: Mapping[str, _Key], path: str) -> dict[str, Any]:
    prefix = f"{path}." if path else ""
    for name in given:
        if name not in known:
            # The section is right already: what counts is how close the name in it is.
            for meant in meant_by(f"{prefix}{name}"):
                if meant.startswith(prefix) and meant.removeprefix(prefix).partition(".")[0] in known:
                    raise ConfigurationError(f"unknown key '{prefix}{name}'. Did you mean '{meant}'?")
            raise ConfigurationError(f"unknown key '{prefix}{name}'{did_you_mean(str(name), known, prefix)}")
    missing = [name for name, key in known.items() if key.required and name not in given]
    if missing:
        raise ConfigurationError(f"missing value: {', '.join(prefix + name for name in missing)}")
    return {name: _coerce(value, known[name].hint, f"{prefix}{name}") for name, value in given.items()}


def from_mapping(cls: type, given: Mapping[str, Any], path: str) -> Any:
    """Return a dataclass made from checked settings; ``path`` is where they are, for messages."""
    return cls(**_check_keys(given, _field_keys(cls), path))


def _bundle_of(factory: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the dataclass that a required keyword is annotated with, ``None`` if it is something else."""
    annotation = parameter.annotation
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.default is not inspect.Parameter.empty:
        return None
    if isinstance(annotation, str):
        function = factory.__init__ if inspect.isclass(factory) else factory
        annotation = getattr(inspect.unwrap(function), "__globals__", {}).get(annotation)
    return annotation if inspect.isclass(annotation) and is_dataclass(annotation) else None


def _field_keys(cls: Any, bundle: str | None = None) -> dict[str, _Key]:
    hints = typing.get_type_hints(cls)
    return {
        f.name: _Key(hints[f.name], f.default is MISSING and f.default_factory is MISSING, bundle) for f in fields(cls)
    }  # fmt: skip


def _signature_keys(factory: Callable[..., Any], provided: Iterable[str]) -> tuple[dict[str, _Key], bool]:
    """Return the keyword arguments that are left to configuration, and whether any other is accepted too.

    An argument that is a dataclass stands for its fields: components share settings without repeating them.
    """
    names = {"int": int, "float": float, "bool": bool, "str": str, "None": None, "Any": Any, "list": list, "dict": dict}
    names |= {"Mapping": Mapping, "Sequence": Sequence}
    keys: dict[str, _Key] = {}
    open_ended = False
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL and name not in provided:
            hint: Any = parameter.annotation
            if (bundle := _bundle_of(factory, parameter)) is not None:
                keys |= _field_keys(bundle, name)
                continue
            if isinstance(hint, str):
                try:
                    hint = eval(hint, {"__builtins__": {}, "Literal": Literal}, names)
                except Exception:
                    hint = Any  # an annotation that needs imports of its own is not a schema
            keys[name] = _Key(hint, parameter.default is inspect.Parameter.empty)
    return keys, open_ended


def settings_of(factory: Callable[..., Any], provided: Iterable[str] = ()) -> list[str]:
    """Return the names of a component's settings: its keyword arguments without those that the package provides."""
    return list(_signature_keys(factory, set(provided))[0])


def check_settings(
    section: str, given: Mapping[str, Any], factory: Callable[..., Any], provided: Iterable[str] = ()
) -> dict[str, Any]:
    """Check ``given`` against the keyword arguments of ``factory``: names, presence and simple types.

    Args:
        section: the group, for messages.
        given: settings without ``name``.
        factory: the component.
        provided: arguments that the package passes itself.

    Raises:
        ConfigurationError: an unknown or missing key, or a wrong type.
    """
    known, open_ended = _signature_keys(factory, set(provided))
    if open_ended:
        known |= {str(name): _Key(Any, False) for name in given if name not in known}
    settings = _check_keys(given, known, section)
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in provided and (bundle := _bundle_of(factory, parameter)) is not None:
            own = [key for key in settings if key in known and known[key].bundle == name]
            settings[name] = bundle(**{key: settings.pop(key) for key in own})
    return settings
