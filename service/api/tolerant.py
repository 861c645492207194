"""Shows stored values whatever they are: one row that can't be shown never takes the others of its page with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from service.contract import schemas

Shown = TypeVar("Shown")
log = structlog.get_logger("views")
_NO_PROGRESS = schemas.Progress()
"""Of all the jobs that haven't begun: most of a long queue."""


def shown(build: Callable[[], Shown], instead: Callable[[str], Shown], row: str) -> Shown:
    """A row as a schema; `instead` makes a bare one with a sentence in it when that fails."""
    try:
        return build()
    except Exception as error:
        log.error("a stored row can't be shown", row=row, exc_info=error)
        return instead(f"This row of the database can't be shown ({type(error).__name__}); the log says why.")


def number(value: Any) -> Any:
    """The number, if it is one that JSON can hold."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def whole(value: Any) -> int | None:
    """The whole number, if it is one that every client can hold."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and abs(found) <= 1 << 53 else None


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def progress(stored: Any) -> schemas.Progress:
    """How far a job is, of what is stored: older versions stored whatever a container printed."""
    found = mapping(stored)
    if not found:
        return _NO_PROGRESS
    return schemas.Progress(
        step=whole(found.get("step")),
        total_steps=whole(found.get("total_steps")),
        loss=number(found.get("loss")),
        tokens_per_second=number(found.get("tokens_per_second")),
        eta_s=number(found.get("eta_s")),
        ready=whole(found.get("ready")),
    )
