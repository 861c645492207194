"""The configuration as a JSON schema: names, types, choices, defaults, and the help that stands beside each field."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from training.config.help import field_docs

_SCALARS: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a dataclass and of those that its fields hold."""
    hints = get_type_hints(cls)
    described = field_docs(cls)
    properties: dict[str, Any] = {}
    required = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        member = _of(hints[field.name])
        if text := described.get(field.name) or (member.get("type") == "object" and _summary(hints[field.name])):
            member["description"] = text
        if field.default is not dataclasses.MISSING:
            if _plain(field.default) is not None:
                member["default"] = _plain(field.default)
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = member
    return {"type": "object", "properties": properties, "required": required}


def _of(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin in (Union, types.UnionType):
        options = [_of(argument) for argument in arguments if argument is not type(None)]
        return options[0] if len(options) == 1 else {"anyOf": options}
    if dataclasses.is_dataclass(hint):
        return schema(hint)  # type: ignore[arg-type]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": True}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", "items": _of(arguments[0])} if arguments else {"type": "array"}
    return {}


def _summary(hint: Any) -> str:
    classes = [hint, *get_args(hint)]
    described = (inspect.cleandoc(one.__doc__ or "").split("\n")[0] for one in classes if dataclasses.is_dataclass(one))
    return next(described, "")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else None
