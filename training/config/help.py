"""Tells what a stage can be told: every key with its default, what it may be, and what it means (no torch)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

_WIDTH = 118
_NAMES = {bool: "true | false", int: "whole number", float: "number", str: "text"}


class Key(NamedTuple):
    """path: dotted; default: as YAML writes it, or "required"; values: what it may be; meaning: a sentence."""

    path: str
    default: str
    values: str
    meaning: str


def keys_of(tree: type[Any], prefix: str = "", made: Any = None) -> Iterator[Key]:
    """Every key below a dataclass, in order; `made` has the defaults where they differ from the class's own."""
    hints, meanings = get_type_hints(tree), field_docs(tree)
    for field in dataclasses.fields(tree):
        path, hint = f"{prefix}{field.name}", hints[field.name]
        default = getattr(made, field.name) if made is not None else _default(field)
        inside = _section(hint)
        if inside is not None and get_origin(hint) not in (tuple, list):
            yield from keys_of(inside, f"{path}.", default if dataclasses.is_dataclass(default) else None)
            continue
        shown = "required" if default is dataclasses.MISSING else written(default)
        yield Key(path, shown, allowed(hint), meanings.get(field.name, ""))
        if path == "data.sources" and inside is not None:
            yield from keys_of(inside, f"{path}.0.")


def help_text(title: str, tree: type[Any]) -> str:
    """The keys as a page for a terminal, section by section."""
    lines = [title, "", inspect.cleandoc(tree.__doc__ or ""), ""]
    section = ""
    for key in keys_of(tree):
        here = key.path.rpartition(".")[0]
        if here != section:
            lines += ["", f"{here}:"]
            section = here
        facts = key.default if key.default == "required" else f"default {key.default}"
        lines.append(f"  {key.path:30} {', '.join(part for part in (facts, key.values) if part)}")
        lines += textwrap.wrap(key.meaning, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


@cache
def field_docs(tree: type[Any]) -> Mapping[str, str]:
    """The string after each field of a dataclass and of those that it comes from, as one line."""
    found: dict[str, str] = {}
    for base in reversed(tree.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                text = getattr(after.value, "value", None)
                if isinstance(text, str):
                    found[node.target.id] = " ".join(text.split())
    return found


def allowed(hint: Any) -> str:
    """What a value may be, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        kinds = [allowed(kind) for kind in arguments if kind is not type(None)]
        return " or ".join(kinds + (["null"] if type(None) in arguments else []))
    if origin in (tuple, list):
        if origin is tuple and Ellipsis not in arguments:
            return f"{len(arguments)} × {allowed(arguments[0])}"
        kind = arguments[0]
        return "list of sources" if dataclasses.is_dataclass(kind) else f"list of {allowed(kind)}s"
    if origin in (dict, Mapping):
        return "mapping"
    return _NAMES.get(hint, "")


def written(value: Any) -> str:
    """A default as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    return str(value) or '""'


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _section(hint: Any) -> type[Any] | None:
    kinds = (hint, *get_args(hint))
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)
