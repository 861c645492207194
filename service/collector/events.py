"""What a container may report, as strict types: a printed line is one of these events, or it is dropped and counted.

Whoever writes to a container's standard output writes these lines, so nothing in them is believed: numbers are finite
and whole where they count something, texts are bounded and plain, paths stay below the run folder.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

PREFIX = "@navarch "
MAX_EVENT_BYTES = 256 * 1024
MAX_FIGURES = 500
"""Figures in one event."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NOT_A_NUMBER = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
Figure = float | Literal["NaN", "Infinity", "-Infinity"]
"""A figure as it is stored: JSON has no word for what isn't finite, and it must not get lost."""


def _cut(limit: int) -> Any:
    """A text without control characters, cut at `limit`."""

    def plain(text: str) -> str:
        clean = _CONTROL.sub("", text)
        return clean if len(clean) <= limit else clean[: limit - 1] + "…"

    return AfterValidator(plain)


def _below(path: str) -> str:
    """A relative path that doesn't climb."""
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or _CONTROL.search(path):
        raise ValueError("not a path below the run folder")
    return str(pure)


def figure(value: object) -> Figure | None:
    """A reported value as it is stored; None when it is no number. `null` is what JSON writers make of a NaN."""
    if value is None:
        return "NaN"
    if isinstance(value, str):
        return value if value in _NOT_A_NUMBER else None  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return "Infinity" if value > 0 else "-Infinity"
    if math.isnan(number):
        return "NaN"
    return number if math.isfinite(number) else "Infinity" if number > 0 else "-Infinity"


def _time(value: object) -> object:
    """A time that is none counts as not given: the engine's time is taken then."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11
    return value if usable else None


Whole = Annotated[int, Field(ge=0, le=1 << 53)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Cell = str | int | float | bool | None


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")
    time: Annotated[float | None, BeforeValidator(_time)] = None


class Metrics(_Event):
    event: Literal["metrics", "eval"]
    step: Whole
    total_steps: Whole | None = None
    values: dict[Name, Any] = Field(max_length=MAX_FIGURES)


class Progress(_Event):
    event: Literal["progress"]
    step: Whole | None = None
    total_steps: Whole | None = None
    eta_s: Seconds | None = None


class Sample(_Event):
    event: Literal["sample"]
    title: Annotated[str, _cut(200)] = ""
    columns: list[Annotated[str, _cut(100)]] = Field(default=[], max_length=20)
    rows: list[list[Cell] | Cell] = Field(max_length=200)


class Artifact(_Event):
    event: Literal["artifact"]
    path: Annotated[str, Field(max_length=400), AfterValidator(_below)]
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")] = "model"
    metrics: dict[Name, Any] = Field(default={}, max_length=MAX_FIGURES)


class Ready(_Event):
    event: Literal["ready"]
    url_path: Annotated[str, Field(max_length=200, pattern=r"^/[A-Za-z0-9._~/%-]*$")] = "/"


class Error(_Event):
    event: Literal["error"]
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")] = "internal"
    message: Annotated[str, _cut(4000)] = ""
    host: Annotated[str, _cut(100)] = ""
    """Whose fault it is, where a gang's check found that out."""


Event = Metrics | Progress | Sample | Artifact | Ready | Error
_KNOWN: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
_NAMES = frozenset({"metrics", "eval", "progress", "sample", "artifact", "ready", "error"})


@dataclass(frozen=True)
class Dropped:
    """A line that looks like an event and can't be used; `why` is one of a few sentences of our own."""

    why: str


def parse(text: str) -> Event | Dropped | None:
    """The event in a line; None when it is a plain line, or an event that this version doesn't know."""
    if not text.startswith(PREFIX):
        return None
    if len(text) > MAX_EVENT_BYTES:
        return Dropped(f"longer than {MAX_EVENT_BYTES >> 10} KiB")
    try:
        content = from_json(text[len(PREFIX) :].encode())
    except (ValueError, RecursionError):
        return Dropped("not JSON")
    name = content.get("event") if isinstance(content, dict) else None
    if not isinstance(name, str):
        return Dropped("not an object with a text `event`")
    if name not in _NAMES:
        return None
    try:
        return _KNOWN.validate_python(content)
    except (ValidationError, RecursionError) as error:
        return Dropped(_why(name, error))


def _why(name: str, error: Exception) -> str:
    """The first thing that is wrong, in words that hold nothing of what was printed."""
    if not isinstance(error, ValidationError):
        return f"{name}: nested too deeply"
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = next((str(part) for part in first["loc"][1:2]), "")
    inner = len(first["loc"]) > 2 and first["type"] not in _INNER
    said = "holds something of the wrong kind" if inner else _WORDS.get(first["type"], "is not what it must be")
    return f"{name}: `{field}` {said}" if field else f"{name}: {said}"


_INNER = frozenset({"string_pattern_mismatch", "string_too_long"})
"""What may also be said of a field's parts."""
_WORDS = {
    "missing": "is missing",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "string_type": "is not a text",
    "string_too_long": "is too long",
    "too_long": "has too many entries",
    "dict_type": "is not an object",
    "list_type": "is not a list",
    "greater_than_equal": "is negative",
    "less_than_equal": "is too large",
    "string_pattern_mismatch": "has characters that it must not have",
    "value_error": "is not a path below the run folder",
}
