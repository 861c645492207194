"""Sizes and durations as people write them ("16GB", "2h30m"), turned into bytes and seconds."""

import math
import re

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?)b?", re.IGNORECASE | re.ASCII)
_SECONDS_ONLY = re.compile(r"\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_DURATION = re.compile(r"(?:\d{1,15}(?:\.\d{1,15})?\s*[dhms]\s*){1,8}", re.IGNORECASE | re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])", re.IGNORECASE | re.ASCII)
_LONGEST = 80
"""Characters of a size or a duration."""
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
MAX_SIZE = 1 << 50
MAX_DURATION_S = 3660 * 86400.0


def parse_size(value: object) -> int:
    """Bytes of "16GB", "512m" or 1048576. Units are powers of 1024, as Docker reads them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a size such as 16GB or a number of bytes, not {_shown(value)}")
    size: float = 0.0
    if isinstance(value, str):
        text = value.strip() if len(value) <= _LONGEST else ""
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError(f"must be a size such as 512MB or 16GB, not {_shown(value)}")
        size = float(match.group(1)) * 1024 ** _POWERS[match.group(2).lower()]
    elif isinstance(value, int) or math.isfinite(value):
        size = min(value, 2 * MAX_SIZE)
    if size < 1:
        raise ValueError(f"must be at least one byte, not {_shown(value)}")
    if size > MAX_SIZE:
        raise ValueError(f"is {_shown(value)}, more than any machine has; write a size such as 16GB")
    return int(size)


def parse_duration(value: object) -> float:
    """Seconds of "90s", "2h30m", "1d" or 90."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a duration such as 90s, 30m or 2h, not {_shown(value)}")
    if isinstance(value, str):
        text = value.strip() if len(value) <= _LONGEST else ""
        if _SECONDS_ONLY.fullmatch(text):
            seconds = float(text)
        elif _DURATION.fullmatch(text):
            seconds = sum(float(n) * _SECONDS[unit.lower()] for n, unit in _DURATION_PART.findall(text))
        else:
            raise ValueError(f"must be a duration such as 90s, 30m or 2h, not {_shown(value)}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a duration such as 90s, 30m or 2h, not {value}")
    else:
        seconds = float(min(value, 2 * MAX_DURATION_S))
    if seconds < 0:
        raise ValueError(f"can't be negative, but is {_shown(value)}")
    if seconds > MAX_DURATION_S:
        raise ValueError(f"is {_shown(value)}, more than ten years; leave it out for no limit")
    return seconds


def _shown(value: object) -> str:
    """The value in a sentence; numbers that are too long to write out aren't."""
    if isinstance(value, int) and abs(value) > 10**20:
        return "a number of more than 20 digits"
    return repr(value[:40] + "…" if isinstance(value, str) and len(value) > 40 else value)[:80]


def format_size(size: int) -> str:
    """A short size for people: 1536 → "1.5 KB"."""
    amount = float(size)
    for unit in ("bytes", "KB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if amount == int(amount) else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


def format_duration(seconds: float) -> str:
    """A short duration for people: 5400 → "1h 30m"."""
    if seconds < 60:
        return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    return " ".join(f"{n}{unit}" for n, unit in parts if n)
