"""Builds trees of frozen dataclasses from mappings: coerces types, names unknown keys and suggests the nearest one."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from training.errors import ConfigError

T = TypeVar("T")


class UnknownKey(ConfigError):
    """A key that isn't there. key: its own name; where: the whole path."""

    def __init__(self, key: str, where: str, hint: str) -> None:
        super().__init__(f"Unknown key {where}.{hint}")
        self.key, self.where = key, where


def build(cls: type[T], value: Any, path: str = "") -> T:
    """Make a `cls` from a mapping (or from what its `shorthand` classmethod accepts).

    Raises ConfigError naming the full path of the key, the value found and what was expected.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        shorthand = getattr(cls, "shorthand", None)
        if shorthand is None or value is None:
            raise ConfigError(f"{path or 'The configuration'} must be a mapping of keys, not {_describe(value)}.")
        try:
            value = shorthand(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from error
    hints = get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    arguments = {}
    for key, item in value.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in known:
            raise UnknownKey(str(key), where, nearest(str(key), list(known)))
        arguments[key] = coerce(hints[key], item, where)
    for name, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ConfigError(f"{f'{path}.{name}' if path else name} is missing: it has no default.")
    try:
        return cls(**arguments)
    except ValueError as error:
        message = str(error)
        raise ConfigError(message if not path or path in message else f"{path}: {message}") from error


def nearest(word: str, known: Sequence[str]) -> str:
    """' Did you mean X?' for a near miss, else the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.55)
    if close:
        return f" Did you mean {close[0]}?"
    return f" Known here: {', '.join(sorted(known))}."


def coerce(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint` says, or ConfigError. Strings become numbers (YAML reads 2e-5 as a string)."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(arguments, value, path)
    if origin is Literal:
        if isinstance(value, bool) and value not in arguments and ("on" in arguments or "off" in arguments):
            value = "on" if value else "off"  # YAML reads on/off as booleans
        if value in arguments:
            return value
        raise ConfigError(
            f"{path} must be one of {', '.join(map(str, arguments))}, not {_describe(value)}."
            + (nearest(value, [str(a) for a in arguments]) if isinstance(value, str) else "").split(" Known here")[0]
        )
    if origin in (tuple, list, Sequence):
        return _coerce_sequence(origin, arguments, value, path)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a mapping, not {_describe(value)}.")
        return {str(key): coerce(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    return _coerce_scalar(hint, value, path)


def _coerce_union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    empty = value is None or (isinstance(value, str) and value.lower() in ("null", "none", ""))
    if empty and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    for choice in rest:
        if isinstance(choice, type) and type(value) is choice:
            return value
    errors = []
    for choice in rest:
        try:
            return coerce(choice, value, path)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _coerce_sequence(origin: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if isinstance(value, str) and arguments and arguments[0] in (int, float, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, Sequence) or isinstance(value, str):
        value = [value]
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise ConfigError(f"{path} must have {len(arguments)} values, not {len(value)}.")
        return tuple(
            coerce(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
        )
    items = [coerce(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    return items if origin is list else tuple(items)


_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def _coerce_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str | int) and str(value).lower() in _TRUE | _FALSE:
            return str(value).lower() in _TRUE
        raise ConfigError(f"{path} must be true or false, not {_describe(value)}.")
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ConfigError(f"{path} must be a number, not {_describe(value)}.")
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"{path} must be a number, not {_describe(value)}.") from None
        if hint is float:
            return number
        if not number.is_integer():
            raise ConfigError(f"{path} must be a whole number, not {_describe(value)}.")
        return int(value) if isinstance(value, int) else int(number)
    if hint is str:
        if isinstance(value, date):  # YAML makes one of 2024-07-26
            return value.isoformat()
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        raise ConfigError(f"{path} must be text, not {_describe(value)}.")
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise ConfigError(f"{path} must be {getattr(hint, '__name__', hint)}, not {_describe(value)}.")


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence):
        return "a list"
    return f"{value!r}"


def as_dict(config: Any) -> Any:
    """The tree as plain dicts and lists, for manifests and logs."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: as_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: as_dict(item) for key, item in config.items()}
    if isinstance(config, tuple | list):
        return [as_dict(item) for item in config]
    return config


def config_dict(config: Any) -> dict[str, Any]:
    """A whole configuration as plain values, for manifests."""
    result = as_dict(config)
    assert isinstance(result, dict)
    return result


def write_out_shorthand(tree: dict[str, Any], parts: Sequence[str]) -> None:
    """Makes `strategy: ddp` and `data: PATH` or `data: [...]` mappings, in place, when `parts` is a key inside them."""
    given = tree.get(parts[0])
    if len(parts) < 2:
        return
    if parts[0] == "strategy" and isinstance(given, str):
        tree["strategy"] = {"name": given}
    elif parts[0] == "lora" and isinstance(given, int) and not isinstance(given, bool):
        tree["lora"] = {"rank": given}
    elif parts[0] == "data" and isinstance(given, str | list) and not parts[1].isdigit():
        tree["data"] = {"sources": [given] if isinstance(given, str) else given}


def set_path(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """tree['a']['b'] = value for the path 'a.b', making mappings on the way; list items by number ('data.0.path'), of
    which the next one, too, is made."""
    here: Any = tree
    parts = dotted.split(".")
    write_out_shorthand(tree, parts)
    for i, part in enumerate(parts[:-1]):
        fresh: Any = [] if parts[i + 1] == "0" else {}
        if isinstance(here, list):
            place = _place(here, parts[: i + 1])
            if place == len(here):
                here.append(fresh)
            elif isinstance(here[place], str):  # a source given by its path alone
                here[place] = {"path": here[place]}
            here = here[place]
            continue
        child = here.get(part)
        if child is None:
            child = here[part] = fresh
        elif not isinstance(child, dict | list):
            raise ConfigError(f"{'.'.join(parts[: i + 1])} is {_describe(child)}: it has no key {parts[i + 1]}.")
        here = child
    if isinstance(here, list):
        place = _place(here, parts)
        here[place : place + 1] = [value]
    else:
        here[parts[-1]] = value


def _place(items: list[Any], parts: Sequence[str]) -> int:
    """The number that ends `parts`: an item's, or that of one more."""
    if not parts[-1].isdigit() or int(parts[-1]) > len(items):
        raise ConfigError(f"{'.'.join(parts)} is not an item of a list of {len(items)}.")
    return int(parts[-1])
