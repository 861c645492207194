"""How the command line speaks: tables, times and sizes for people, JSON for programs, errors in one sentence."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from service.cli.clean import clean, json_text

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

#: Exit codes: what a script can branch on.
FAILED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

STATE_STYLES = {
    "queued": "yellow",
    "provisioning": "cyan",
    "starting": "cyan",
    "removing": "magenta",
    "running": "green",
    "stopping": "magenta",
    "succeeded": "bold green",
    "failed": "bold red",
    "stopped": "dim",
    "ready": "green",
    "importing": "cyan",
}


@cache
def console() -> Console:
    from service.cli.terminal import CleanConsole

    if sys.stdout.isatty():
        return CleanConsole(highlight=False)
    # Lines for files and pipes are as long as they need to be.
    return CleanConsole(highlight=False, soft_wrap=True, width=int(os.environ.get("COLUMNS") or 0) or 240)


@cache
def errors() -> Console:
    from service.cli.terminal import CleanConsole

    return CleanConsole(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of rich markup on standard output."""
    console().print(text)


def note(text: str) -> None:
    """One line on standard error, for people only."""
    errors().print(text)


def plain(text: str) -> None:
    """Text without markup or wrapping, and without control codes."""
    verbatim(clean(text))


def verbatim(text: str) -> None:
    """Text exactly as it stands: what we made ourselves, or what the user asked to get so."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def escape(text: object) -> str:
    """Text from elsewhere, safe within markup: no markup of its own and no control codes."""
    from rich.markup import escape as rich_escape

    return rich_escape(clean(str(text)))


def as_json(value: BaseModel | Iterable[BaseModel] | dict[str, Any]) -> None:
    """One JSON document on standard output."""
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        data: Any = value.model_dump(mode="json")
    elif isinstance(value, dict):
        data = value
    else:
        data = [item.model_dump(mode="json") for item in value]
    verbatim(json_text(data, indent=2))


def report(message: str, hint: str | None, *, code: str | None = None, machine: bool = False) -> None:
    """An error: a clear sentence, what to do next; as JSON where the caller asked for JSON."""
    if machine:
        sys.stderr.write(json_text({"code": code, "detail": message, "hint": hint}) + "\n")
        return
    errors().print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        errors().print(f"[dim]hint:[/] {escape(hint)}")


def fact(name: str, value: object) -> None:
    """One line of what is known of a thing: a name and its value (rich markup); nothing when there is none."""
    if value:
        say(f"  [dim]{name:<10}[/] {value}")


def state(name: str) -> str:
    return f"[{STATE_STYLES.get(name, 'default')}]{escape(name)}[/]"


def duration(seconds: float | None) -> str:
    """42s, 5m 10s, 3h 20m, 2d 4h."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours < 48 else f"{hours // 24}d {hours % 24}h"


def ago(moment: float | None) -> str:
    return f"{duration(time.time() - moment)} ago" if moment is not None else ""


def clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03d}"


def date(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def size(count: int | None) -> str:
    if count is None:
        return ""
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


def number(value: float | None) -> str:
    """A metric's value in few characters."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"
