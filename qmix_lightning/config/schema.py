"""Check settings with pydantic, against dataclasses and against the keyword arguments of components.

A mistake becomes one line: the closest name there is, or what was expected instead. Imports no torch.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, NotRequired, Required, TypeVar, Union, cast, get_args, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    with_config,
)
from pydantic_core import SchemaError
from typing_extensions import TypedDict

from qmix_lightning.config.expected import describe, describe_range, options_of, parts_of, typed
from qmix_lightning.config.synonyms import meant_by
from qmix_lightning.errors import ConfigurationError
from qmix_lightning.runtime.text import did_you_mean

__all__ = ["check_settings", "from_mapping", "settings_of", "typed"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Section:
    """The keys of a mapping.

    Attributes:
        hints: key -> type.
        required: keys without a default.
        bundles: argument -> the dataclass whose fields stand among the keys in its place.
        open_ended: whether any other key is accepted too.
    """

    hints: dict[str, Any]
    required: set[str]
    bundles: dict[str, type] = field(default_factory=dict)
    open_ended: bool = False

    def as_type(self) -> Any:
        """Return the section as a type that pydantic checks."""
        keys = {
            name: (Required if name in self.required else NotRequired)[_strict(hint)]
            for name, hint in self.hints.items()
        }
        rules = ConfigDict(extra="allow" if self.open_ended else "forbid", arbitrary_types_allowed=True)
        make: Any = TypedDict  # of keys that only a run knows
        return with_config(rules)(make("Section", keys))


def _section_of(cls: type) -> _Section:
    hints = typing.get_type_hints(cls, include_extras=True)
    own = [f for f in fields(cls) if f.init]
    required = {f.name for f in own if f.default is MISSING and f.default_factory is MISSING}
    return _Section({f.name: hints[f.name] for f in own}, required)


def _strict(hint: Any) -> Any:
    """Return a type for pydantic that takes what YAML and the command line may mean by it, and nothing else.

    ``1e6`` is an integer, ``1`` a number and a text; ``"1"`` is no number, and ``true`` neither a number nor a text.
    """
    if hint in _STRICT:
        return _STRICT[hint]
    if isinstance(hint, type) and is_dataclass(hint):
        return Annotated[_section_of(hint).as_type(), AfterValidator(lambda values: hint(**values))]
    arguments = get_args(hint)
    match get_origin(hint):
        case typing.Annotated:
            return Annotated[(_strict(arguments[0]), *hint.__metadata__)]
        case typing.Literal:
            return Annotated[hint, BeforeValidator(partial(_of_a_type, {type(option) for option in arguments}))]
        case typing.Union | types.UnionType:
            # Where a float is one too, 1.0 stays what it is: to Lightning, 1.0 is all batches, and 1 is one.
            own = {int: Annotated[int, Strict()]} if float in arguments else {}
            return Union[tuple(own.get(part) or _strict(part) for part in arguments)]  # noqa: UP007
        case None:
            return hint
        case container:
            return container[tuple(part if part is ... else _strict(part) for part in arguments)]


def _whole(value: object) -> object:
    """Return an integer that is written as a float, ``1e6``, as one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _of_a_type(kinds: set[type], value: object) -> object:
    if type(value) not in kinds:  # to Python, 1 equals true
        raise ValueError
    return value


_STRICT: dict[Any, Any] = {
    int: Annotated[int, Strict(), BeforeValidator(_whole)],
    float: Annotated[float, Strict()],
    bool: Annotated[bool, Strict()],
    str: Annotated[str, Field(coerce_numbers_to_str=True)],
    inspect.Parameter.empty: Any,
}


def from_mapping(cls: type[T], given: Mapping[str, Any], path: str) -> T:
    """Return a dataclass made from checked settings; ``path`` is where they are, for messages."""
    return cls(**_check(_section_of(cls), given, path))


def _check(section: _Section, given: Mapping[str, Any], path: str, provided: Iterable[str] = ()) -> dict[str, Any]:
    try:
        return TypeAdapter(section.as_type()).validate_python(dict(given))
    except ValidationError as error:
        raise ConfigurationError(_explain(error, section, given, path, provided)) from None
    except SchemaError as error:
        # What a signal raises while pydantic builds its checks comes out as text in an error of its own.
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        if stopped := re.search(r"SystemExit: (\d+)", str(error)):
            raise SystemExit(int(stopped[1])) from error
        raise


def _explain(
    error: ValidationError, section: _Section, given: Mapping[str, Any], path: str, provided: Iterable[str]
) -> str:
    """Return one line: about the first unknown key, else about all that are missing, else about the first wrong one."""
    mistakes = error.errors(include_url=False)
    for mistake in mistakes:
        if mistake["type"] in ("extra_forbidden", "invalid_key"):
            where, known, _ = _follow(mistake["loc"][:-1], section, given, path)
            return _explain_unknown(str(mistake["loc"][-1]), known, f"{where}." if where else "")
    absent = [_follow(mistake["loc"], section, given, path)[0] for mistake in mistakes if mistake["type"] == "missing"]
    if absent:
        return f"missing value: {', '.join(absent)}{_meant_as_provided(absent, list(provided))}"
    where, hint, value = _follow(mistakes[0]["loc"], section, given, path)
    for mistake in mistakes:
        reason = mistake.get("ctx", {}).get("error")
        if _follow(mistake["loc"], section, given, path)[0] != where:
            continue
        if mistake["type"].startswith(("greater_than", "less_than")):
            return f"{where} must be {describe_range(hint, value)}"
        if str(reason or ""):
            return f"{where}: {reason}"
    options = options_of(hint)
    close = did_you_mean(str(value), map(str, options)).split(";")[0] if options else ""
    if amount := re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM])", str(value)):
        close = close or f": {amount[2]} is written {amount[1]}e{3 if amount[2] in 'kK' else 6}"
    return f"{where} must be {describe(hint)}, not {typed(value)}{close}"


def _meant_as_provided(absent: list[str], provided: list[str]) -> str:
    """Say that an argument without a value has nearly the name of one that the package passes itself."""
    for name in absent:
        for meant in difflib.get_close_matches(name.rpartition(".")[2], provided, n=1, cutoff=0.7):
            return f"; what is passed without a setting is '{meant}': is that the argument's name?"
    return ""


def _explain_unknown(name: str, section: _Section, prefix: str) -> str:
    # The section is right already: what counts is how close the name in it is.
    for meant in meant_by(f"{prefix}{name}"):
        if meant.startswith(prefix) and meant.removeprefix(prefix).partition(".")[0] in section.hints:
            return f"unknown key '{prefix}{name}'. Did you mean '{meant}'?"
    return f"unknown key '{prefix}{name}'{did_you_mean(name, section.hints, prefix)}"


def _follow(steps: Iterable[int | str], hint: Any, value: Any, path: str) -> tuple[str, Any, Any]:
    """Go along the place that pydantic names, as far as it is one of the user's; return its key, type and value."""
    for step in steps:
        options = [part for part in parts_of(hint) if part is not type(None)]
        hint = options[0] if len(options) == 1 else hint
        if isinstance(hint, type) and is_dataclass(hint):
            hint = _section_of(hint)
        if isinstance(hint, _Section):
            hint = hint.hints.get(str(step), Any)
        elif get_origin(hint) in (list, dict):
            hint = get_args(hint)[-1]
        else:
            break  # a name of pydantic's for one way in which it tried to read the value
        path = f"{path}.{step}" if path else str(step)
        value = value.get(step) if isinstance(value, Mapping) else value[step]
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
        hint = _section_of(hint)
    return path, hint, value


def _section_of_arguments(factory: Callable[..., Any], provided: Iterable[str]) -> _Section:
    """Return the keyword arguments that are left to configuration.

    An argument that is a dataclass stands for its fields: components share settings without repeating them.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(factory).parameters.items()
        if name not in set(provided) and parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    }
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    section = _Section({}, set(), open_ended=open_ended)
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        hint, required = _hint_of(factory, parameter), parameter.default is inspect.Parameter.empty
        own = _Section({name: hint}, {name} if required else set())
        if (
            required
            and parameter.kind is inspect.Parameter.KEYWORD_ONLY
            and inspect.isclass(hint)
            and is_dataclass(hint)
        ):
            section.bundles[name] = hint
            own = _section_of(hint)
        section.hints.update(own.hints)
        section.required.update(own.required)
    return section


def _hint_of(factory: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the type of a keyword argument, whose annotation may be a text.

    Raises:
        ConfigurationError: it names something that its module does not import at run time.
    """
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    function = factory.__init__ if inspect.isclass(factory) else factory
    alone = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        names = getattr(inspect.unwrap(function), "__globals__", {})
        return typing.get_type_hints(alone, names, include_extras=True)[parameter.name]
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigurationError(
            f"the setting '{parameter.name}' of {getattr(factory, '__qualname__', factory)} cannot be checked: its "
            f"annotation '{parameter.annotation}' names what its module does not import ({error})"
        ) from error


def settings_of(factory: Callable[..., Any], provided: Iterable[str] = ()) -> list[str]:
    """Return the names of a component's settings: its keyword arguments without those that the package provides."""
    return list(_section_of_arguments(factory, provided).hints)


def check_settings(
    section: str, given: Mapping[str, Any], factory: Callable[..., Any], provided: Iterable[str] = ()
) -> dict[str, Any]:
    """Check ``given`` against the keyword arguments of ``factory``: names, presence and types.

    Args:
        section: the group, for messages.
        given: settings without ``name``.
        factory: the component.
        provided: arguments that the package passes itself.

    Raises:
        ConfigurationError: an unknown or missing key, or a wrong type.
    """
    known = _section_of_arguments(factory, provided)
    settings = _check(known, given, section, provided)
    for name, bundle in known.bundles.items():
        own = [f.name for f in fields(cast(Any, bundle)) if f.name in settings]
        settings[name] = bundle(**{key: settings.pop(key) for key in own})
    return settings
