"""Takes secrets out of texts that go to logs: what is known to be secret here, and what looks like a credential."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "[redacted]"
_SHORTEST = 6
"""Shorter values would be found everywhere."""
_KEEP = 10_000
_KEY = re.compile(
    r"token|secret|passw(or)?d|passphrase|authorization|api[-_]?key|private[-_]?key|credential|cookie", re.IGNORECASE
)
_LOOKS = re.compile(
    r"""
      (?: nav_ | hf_ | gh[a-z]_ | sk-) [\w-]{16,}
    | (?P<scheme>\b(?:bearer|basic)\s+) [^\s'",;]+
    | (?P<user>://[^/\s:@]{0,100}:) [^/\s@]{1,500} (?=@)
    | (?P<name>(?:token|secret|passw(?:or)?d|passphrase|authorization|api[-_]?key)[\w-]{0,20}["']?
               \s{0,3}[:=]\s{0,3}["']?)
      (?!bearer\b|basic\b)[^\s'",;&}\]]+
    | -----BEGIN\ [A-Z ]{0,30}PRIVATE\ KEY-----.*?(?:-----END[^-]{0,40}-----|$)
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_lock = threading.Lock()
_known: dict[str, None] = {}
_pattern: re.Pattern[str] | None = None


def protect(values: Iterable[object]) -> None:
    """From now on these values are taken out of every log line of this process."""
    global _pattern
    fresh = [text for value in values if len(text := str(value).strip()) >= _SHORTEST and text not in _known]
    if not fresh:
        return
    with _lock:
        _known.update(dict.fromkeys(fresh))
        for oldest in list(_known)[:-_KEEP]:
            del _known[oldest]
        _pattern = None


def redact(text: str) -> str:
    """The text without secrets."""
    pattern = _compiled()
    if pattern is not None:
        text = pattern.sub(HIDDEN, text)
    return _LOOKS.sub(_hide, text)


def clean(value: Any, limit: int, depth: int = 6) -> Any:
    """A value of a log event: without secrets, each text cut at `limit`, of bounded depth and width."""
    if isinstance(value, str):
        text = redact(value[: limit + 256])  # a secret that straddles the cut must go whole
        return text if len(text) <= limit else text[:limit] + "…"
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        pairs = list(value.items())[:50]
        return {str(key)[:100]: HIDDEN if secret_key(key) else clean(item, limit, depth - 1) for key, item in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(item, limit, depth - 1) for item in list(value)[:50]]
    return clean(str(value), limit)


def secret_key(key: object) -> bool:
    return _KEY.search(str(key)) is not None


def _hide(found: re.Match[str]) -> str:
    return (found["scheme"] or found["user"] or found["name"] or "") + HIDDEN


def _compiled() -> re.Pattern[str] | None:
    global _pattern
    if _pattern is None and _known:
        with _lock:
            longest_first = sorted(_known, key=len, reverse=True)
            _pattern = re.compile("|".join(map(re.escape, longest_first)))
    return _pattern
