"""Sizes and durations as people write them ("16GB", "2h30m"), turned into bytes and seconds."""

import re

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*$", re.IGNORECASE)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|m|s)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_size(value: object) -> int:
    """Bytes of "16GB", "512m" or 1048576. Units are powers of 1024, as Docker reads them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a size such as 16GB or a number of bytes, not {value!r}")
    if isinstance(value, str):
        match = _SIZE.match(value)
        if match is None:
            raise ValueError(f"must be a size such as 512MB or 16GB, not {value!r}")
        size = float(match.group(1)) * 1024 ** _POWERS[match.group(2).lower()]
    else:
        size = float(value)
    if size <= 0:
        raise ValueError(f"must be more than nothing, not {value!r}")
    return int(size)


def parse_duration(value: object) -> float:
    """Seconds of "90s", "2h30m", "1d" or 90."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a duration such as 90s, 30m or 2h, not {value!r}")
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        elif text and not _DURATION_PART.sub("", text).strip():
            seconds = sum(float(n) * _SECONDS[unit.lower()] for n, unit in _DURATION_PART.findall(text))
        else:
            raise ValueError(f"must be a duration such as 90s, 30m or 2h, not {value!r}")
    else:
        seconds = float(value)
    if seconds < 0:
        raise ValueError(f"can't be negative, but is {value!r}")
    return seconds


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
