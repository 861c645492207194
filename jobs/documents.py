"""Reads what comes in as YAML or JSON, within bounds that are checked before anything grows."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000
MAX_KEY = 200
MAX_TEXT = 131_071
"""Bytes of one text: Linux takes no longer argument or variable."""
_LARGEST = 1 << 64
_PARSER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_LONGEST_NUMBER = 60
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|nan))")


class DocumentError(ValueError):
    """A text that can't be read; says where and why, without a full stop."""


def read_yaml(text: str) -> Any:
    """The one document in a YAML text as plain JSON values. Raises DocumentError.

    Numbers are as YAML 1.2 has them (1e-5 is one; 8095:22, 007 and dates are text). Aliases and merge keys count as
    what they stand for. Keys are the texts that were written, and none comes twice.
    """
    _check_size(text)
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            builder.take(event)
    except _Refusal as refusal:
        raise DocumentError(f"{refusal.problem}{_where(refusal.event.start_mark)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise DocumentError(f"it isn't valid YAML{_where(mark)}: {problem}") from None
    except UnicodeEncodeError:
        raise DocumentError("it isn't valid UTF-8 text") from None
    return plain(builder.documents[0]) if builder.documents else None


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises DocumentError."""
    _check_size(text)
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_int=_whole, object_pairs_hook=_object)
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(f"it isn't valid JSON: {error}") from None
    except RecursionError:
        raise DocumentError(f"it is nested more than {MAX_DEPTH} levels deep") from None
    return plain(value)


def plain(value: Any) -> Any:
    """A copy that holds nothing but JSON's values, each within its bounds and none shared. Raises DocumentError."""
    return _Copy().of(value, 0)


class _Copy:
    def __init__(self) -> None:
        self.left = MAX_VALUES

    def of(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise DocumentError(f"it holds more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise DocumentError(f"it is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            return {_key(key): self.of(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.of(item, depth + 1) for item in value]
        if isinstance(value, str):
            return _text(value, MAX_TEXT)
        if isinstance(value, float) and not math.isfinite(value):
            raise DocumentError(f"it holds {value}, which is no finite number")
        if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
            raise DocumentError("it holds a whole number of more than 64 bits")
        if value is None or isinstance(value, bool | int | float):
            return value
        raise DocumentError(f"it holds a {type(value).__name__}, which is neither text, number, list nor mapping")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise DocumentError(f"it has the key {key!r}, which is no text")
    return _text(key, MAX_KEY)


def _text(value: str, limit: int) -> str:
    if len(value) > limit or len(value.encode(errors="surrogatepass")) > limit:
        what = "a key" if limit == MAX_KEY else "a text"
        raise DocumentError(f"it holds {what} of more than {limit:,} bytes: {value[:20]!r}…")
    if "\0" in value:
        raise DocumentError("it holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DocumentError("it holds half of a surrogate pair, which is no character") from None
    return value


def _check_size(text: str) -> None:
    if len(text) > MAX_BYTES:
        raise DocumentError(f"it is larger than {MAX_BYTES >> 20} MiB")


def _where(mark: Any) -> str:
    return f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _no_constant(name: str) -> float:
    raise DocumentError(f"it holds {name}, which is no finite number")


def _whole(digits: str) -> int:
    if len(digits) > 21:
        raise DocumentError(f"it holds a whole number of {len(digits.lstrip('-'))} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise DocumentError(f"it has the key {twice[:60]!r} twice")
    return found


class _Refusal(Exception):
    """What is wrong, and the event where it was seen."""

    def __init__(self, problem: str, event: Any) -> None:
        self.problem, self.event = problem, event


@dataclass
class _Open:
    """A list or mapping whose end hasn't been read yet."""

    event: Any
    before: int
    """How many values there were before it."""
    items: list[Any] = field(default_factory=list)
    """Of a mapping, keys and values in turn."""
    keys: set[str] = field(default_factory=set)
    height: int = 0

    @property
    def takes_key(self) -> bool:
        return isinstance(self.event, yaml.MappingStartEvent) and len(self.items) % 2 == 0


@dataclass(frozen=True)
class _Known:
    """What an alias stands for."""

    value: Any
    count: int
    height: int


class _Builder:
    """Makes values from the parser's events. An alias counts as all that it stands for, before anything is copied."""

    def __init__(self) -> None:
        self.total = 0
        self.open: list[_Open] = []
        self.known: dict[str, _Known] = {}
        self.documents: list[Any] = []

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent) and self.documents:
            raise _Refusal("a second document begins; write one", event)
        if isinstance(event, yaml.CollectionEndEvent):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            known = self.known.get(event.anchor or "")
            if known is None:
                within = any(part.event.anchor == event.anchor for part in self.open)
                raise _Refusal("the alias stands within what it means" if within else "the alias means nothing", event)
            self._count(event, known.count, known.height)
            self._add(event, known.value, known.height)
        elif isinstance(event, yaml.ScalarEvent):
            self._count(event, 1, 0)
            key = bool(self.open) and self.open[-1].takes_key
            value = (_Merge() if event.value == "<<" and event.implicit[0] else event.value) if key else _scalar(event)
            self._remember(event, value, 1, 0)
            self._add(event, value, 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.tag is not None and not event.implicit:
                raise _Refusal(f"the tag {_tag(event)} is not read here", event)
            if self.open and self.open[-1].takes_key:
                raise _Refusal("a key must be text", event)
            self._count(event, 1, 1)
            self.open.append(_Open(event, self.total - 1))

    def _count(self, event: Any, values: int, height: int) -> None:
        self.total += values
        if self.total > 2 * MAX_VALUES:  # keys are counted, too
            raise DocumentError(f"it holds more than {MAX_VALUES:,} values")
        if len(self.open) + height > MAX_DEPTH:
            raise DocumentError(f"it is nested more than {MAX_DEPTH} levels deep{_where(event.start_mark)}")

    def _remember(self, event: Any, value: Any, count: int, height: int) -> None:
        if event.anchor is not None:
            self.known[event.anchor] = _Known(value, count, height)

    def _add(self, event: Any, value: Any, height: int) -> None:
        if not self.open:
            self.documents.append(value)
            return
        part = self.open[-1]
        if part.takes_key and not isinstance(value, str | _Merge):
            raise _Refusal("a key must be text", event)
        if part.takes_key and isinstance(value, str):
            if value in part.keys:
                raise _Refusal(f"the key {value[:60]!r} is there twice", event)
            part.keys.add(value)
        part.items.append(value)
        part.height = max(part.height, height)

    def _close(self) -> None:
        part = self.open.pop()
        value: Any = part.items
        if isinstance(part.event, yaml.MappingStartEvent):
            value = _mapping(part)
        self._remember(part.event, value, self.total - part.before, part.height + 1)
        self._add(part.event, value, part.height + 1)


class _Merge:
    """The key `<<`: what follows is taken over."""


def _mapping(part: _Open) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in zip(part.items[::2], part.items[1::2], strict=True):
        if isinstance(key, str):
            own[key] = value
            continue
        for source in reversed(value if isinstance(value, list) else [value]):
            if not isinstance(source, dict):
                raise _Refusal("`<<` takes a mapping or a list of mappings", part.event)
            merged.update(source)
    return {**merged, **own}


def _tag(event: Any) -> str:
    return str(event.tag)[:80].replace("tag:yaml.org,2002:", "!!")


def _scalar(event: Any) -> Any:
    """The value of a text; only what is written plainly can be anything else."""
    text: str = event.value
    if event.tag is not None and _tag(event) not in ("!", "!!str"):
        raise _Refusal(f"the tag {_tag(event)} is not read here", event)
    if not event.implicit[0] or len(text) > _LONGEST_NUMBER:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if _FLOAT.fullmatch(text) else text
