"""How JSON columns are written and read: whatever is in them, a row can be read and shown."""

import json
import math
from typing import Any


def dump(value: Any) -> str:
    """JSON text for a column: no NaN, no half characters, whatever came in."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except ValueError:  # of which UnicodeEncodeError is one
        return json.dumps(clean(value), ensure_ascii=False)
    return text


def load(text: str) -> Any:
    """A column's value; an empty object where the text is none of JSON. Older versions let NaN and more through."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return {}
    escaped = "\\ud" in text or "\\uD" in text  # half a character can only be written so
    return clean(value) if escaped else value


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


_DECODER = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_finite)
"""Made once: `json.loads` with arguments would make one for each value of each row."""


def clean(value: Any) -> Any:
    """The value without what JSON can't hold: what isn't finite becomes null, half a character a question mark."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value
