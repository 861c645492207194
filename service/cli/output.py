"""How the command line speaks: tables, times and sizes for people, JSON for programs, errors in one sentence."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.table import Table

#: Exit codes: what a script can branch on.
FAILED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

STATE_STYLES = {
    "queued": "yellow",
    "provisioning": "cyan",
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
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    # Lines for files and pipes are as long as they need to be.
    return Console(highlight=False, soft_wrap=True, width=int(os.environ.get("COLUMNS") or 0) or 240)


@cache
def errors() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of rich markup on standard output."""
    console().print(text)


def note(text: str) -> None:
    """One line on standard error, for people only."""
    errors().print(text)


def plain(text: str) -> None:
    """Text as it stands, without markup or wrapping."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def escape(text: object) -> str:
    """Text from elsewhere, safe within markup."""
    from rich.markup import escape as rich_escape

    return rich_escape(str(text))


def as_json(value: BaseModel | Iterable[BaseModel] | dict[str, Any]) -> None:
    """One JSON document on standard output."""
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        data: Any = value.model_dump(mode="json")
    elif isinstance(value, dict):
        data = value
    else:
        data = [item.model_dump(mode="json") for item in value]
    plain(json.dumps(data, indent=2, ensure_ascii=False))


def report(message: str, hint: str | None, *, code: str | None = None, machine: bool = False) -> None:
    """An error: a clear sentence, what to do next; as JSON where the caller asked for JSON."""
    if machine:
        sys.stderr.write(json.dumps({"code": code, "detail": message, "hint": hint}, ensure_ascii=False) + "\n")
        return
    errors().print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        errors().print(f"[dim]hint:[/] {escape(hint)}")


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold dim", padding=(0, 2, 0, 0))
    for name in columns:  # the last one gives way where the terminal is narrow
        last = name == columns[-1]
        justify: Literal["left", "right"] = "right" if name in right else "left"
        made.add_column(name, justify=justify, no_wrap=not last, overflow="fold" if last else "ellipsis")
    return made


def fact(name: str, value: object) -> None:
    """One line of what is known of a thing: a name and its value (rich markup); nothing when there is none."""
    if value:
        say(f"  [dim]{name:<10}[/] {value}")


def state(name: str) -> str:
    return f"[{STATE_STYLES.get(name, 'default')}]{name}[/]"


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
