"""Turns what is wrong with a spec into sentences: which key, what it holds, what to write instead."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError


@dataclass(frozen=True)
class Mistake:
    path: str
    """Dotted path of the key, such as `resources.gpus` or `data[0].path`."""
    message: str

    def __str__(self) -> str:
        return self.message


class SpecError(ValueError):
    """A job spec that can't be used, with what is wrong in it."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("; ".join(mistake.message for mistake in self.mistakes))


MOST = 20
"""Mistakes that one answer names; whoever makes more begins with these."""
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_parsing_size": "a whole number of at most 64 bits",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
_LENGTHS = {
    "string_too_long": ("most", "characters"),
    "string_too_short": ("least", "characters"),
    "too_long": ("most", "entries"),
    "too_short": ("least", "entries"),
}


def dotted(location: Iterable[str | int]) -> str:
    """("data", 0, "path") → "data[0].path"."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def shown(value: Any) -> str:
    """A value as a sentence names it, short and with its kind where that is the mistake."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and abs(value) > 10**20:
        return "a number of more than 20 digits"
    return repr(value)[:60]


def unknown_key(path: str, key: str, known: Iterable[str], owner: str, hint: str = "") -> Mistake:
    """The mistake of a key that nothing has, with the nearest one that exists, or with a better `hint`."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    advice = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(names)}"
    return Mistake(path, f"`{path}`: {owner} has no key `{key}`; {hint or advice}")


def from_validation(error: ValidationError, known: Mapping[str, Iterable[str]], owner: str) -> list[Mistake]:
    """pydantic's errors as Mistakes. `known` maps a section's dotted path ("" for the top) to its keys."""
    mistakes = []
    for item in error.errors(include_url=False)[:MOST]:
        location = tuple(item["loc"])
        path = dotted(location)
        kind = item["type"]
        if kind == "extra_forbidden":
            section = dotted(location[:-1])
            owner_name = f"`{section}`" if section else owner
            mistakes.append(unknown_key(path, str(location[-1]), known.get(section, ()), owner_name))
        elif kind == "missing":
            mistakes.append(Mistake(path, f"`{path}` is missing"))
        elif kind in _EXPECTED:
            mistakes.append(Mistake(path, f"`{path}` must be {_EXPECTED[kind]}, not {shown(item['input'])}"))
        elif kind == "value_error":
            mistakes.append(Mistake(path, f"`{path}` {item['ctx']['error']}"))
        elif kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
            word = {"g": "at least", "l": "at most"}[kind[0]] if kind.endswith("equal") else kind.replace("_", " ")
            limit = item["ctx"].get("ge", item["ctx"].get("le", item["ctx"].get("gt", item["ctx"].get("lt"))))
            mistakes.append(Mistake(path, f"`{path}` must be {word} {limit}, not {shown(item['input'])}"))
        elif kind in _LENGTHS:
            word, thing = _LENGTHS[kind]
            limit = item["ctx"].get("max_length", item["ctx"].get("min_length"))
            mistakes.append(Mistake(path, f"`{path}` must have at {word} {limit:,} {thing}"))
        elif kind in ("literal_error", "enum"):
            choices = str(item["ctx"]["expected"]).replace("'", "")
            near = difflib.get_close_matches(
                str(item["input"]), [c.strip() for c in choices.replace(" or ", ", ").split(",")], n=1
            )
            advice = f"; did you mean {near[0]}?" if near else ""
            mistakes.append(Mistake(path, f"`{path}` must be {choices}, not {shown(item['input'])}{advice}"))
        else:
            mistakes.append(
                Mistake(path, f"`{path}`: {item['msg'][0].lower()}{item['msg'][1:]}, not {shown(item['input'])}")
            )
    return mistakes
