"""Turns what is wrong with a spec into sentences: which key, what it holds, what to write instead."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError


@dataclass(frozen=True)
class Problem:
    path: str
    """Dotted path of the key, such as `resources.gpus` or `data[0].path`."""
    message: str

    def __str__(self) -> str:
        return self.message


class SpecError(ValueError):
    """A job spec that can't be used, with every problem that was found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(p.message for p in self.problems))


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
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
    return repr(value)[:60]


def unknown_key(path: str, key: str, known: Iterable[str], owner: str) -> Problem:
    """The problem of a key that nothing has, with the nearest one that exists."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    advice = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(names)}"
    return Problem(path, f"`{path}`: {owner} has no key `{key}`; {advice}")


def from_validation(error: ValidationError, known: Mapping[str, Iterable[str]], owner: str) -> list[Problem]:
    """pydantic's errors as Problems. `known` maps a section's dotted path ("" for the top) to its keys."""
    problems = []
    for item in error.errors(include_url=False):
        location = tuple(item["loc"])
        path = dotted(location)
        kind = item["type"]
        if kind == "extra_forbidden":
            section = dotted(location[:-1])
            owner_name = f"`{section}`" if section else owner
            problems.append(unknown_key(path, str(location[-1]), known.get(section, ()), owner_name))
        elif kind == "missing":
            problems.append(Problem(path, f"`{path}` is missing"))
        elif kind in _EXPECTED:
            problems.append(Problem(path, f"`{path}` must be {_EXPECTED[kind]}, not {shown(item['input'])}"))
        elif kind == "value_error":
            problems.append(Problem(path, f"`{path}` {item['ctx']['error']}"))
        elif kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
            word = {"g": "at least", "l": "at most"}[kind[0]] if kind.endswith("equal") else kind.replace("_", " ")
            limit = item["ctx"].get("ge", item["ctx"].get("le", item["ctx"].get("gt", item["ctx"].get("lt"))))
            problems.append(Problem(path, f"`{path}` must be {word} {limit}, not {item['input']!r}"))
        elif kind in ("literal_error", "enum"):
            choices = str(item["ctx"]["expected"]).replace("'", "")
            near = difflib.get_close_matches(
                str(item["input"]), [c.strip() for c in choices.replace(" or ", ", ").split(",")], n=1
            )
            advice = f"; did you mean {near[0]}?" if near else ""
            problems.append(Problem(path, f"`{path}` must be {choices}, not {shown(item['input'])}{advice}"))
        else:
            problems.append(
                Problem(path, f"`{path}`: {item['msg'][0].lower()}{item['msg'][1:]}, not {shown(item['input'])}")
            )
    return problems
