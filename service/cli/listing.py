"""One shape for what can be listed, shown and removed: columns that give way on a narrow terminal, facts, removals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from service.cli import output

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

Item = TypeVar("Item")
Model = TypeVar("Model", bound="BaseModel")

GAP = 2
LAST_MIN = 34
"""The last column tells most: others give way until it has so many characters, or all that it needs."""


@dataclass(frozen=True)
class Column(Generic[Item]):
    """One column of a list. `cell` gives rich markup; `gives_way`: the lowest goes first, 0 never goes."""

    name: str
    cell: Callable[[Item], str]
    right: bool = False
    gives_way: int = 0


def listing(items: Sequence[Model], columns: Sequence[Column[Model]], *, as_json: bool, empty: str = "") -> bool:
    """Print a list, or `empty` where there is nothing; true where a table was printed."""
    if as_json:
        output.as_json(items)
    elif items or not empty:
        output.console().print(table(items, columns, output.console().width))
        return True
    else:
        output.say(empty)
    return False


def table(items: Sequence[Item], columns: Sequence[Column[Item]], width: int) -> Table:
    """A table that is readable at `width`: columns that don't fit are left out, the last one wraps."""
    from rich.table import Table
    from rich.text import Text

    cells = {column.name: [column.cell(item) for item in items] for column in columns}
    widths = {
        name: max([len(name), *(Text.from_markup(cell).cell_len for cell in column)]) for name, column in cells.items()
    }
    last = columns[-1].name
    shown = list(columns)

    def too_much() -> int:
        taken = sum(min(widths[c.name], LAST_MIN) if c.name == last else widths[c.name] + GAP for c in shown)
        return taken - width

    while too_much() > 0 and any(column.gives_way for column in shown):
        shown.remove(min((column for column in shown if column.gives_way), key=lambda column: column.gives_way))
    if too_much() > 0:  # then the longest name is cut
        longest = max((column.name for column in shown if column.name != last), key=widths.__getitem__)
        widths[longest] = max(widths[longest] - too_much(), 10)
    made = Table(box=None, pad_edge=False, header_style="bold dim", padding=(0, GAP, 0, 0))
    for column in shown:
        made.add_column(
            column.name,
            justify="right" if column.right else "left",
            no_wrap=column.name != last,
            overflow="fold" if column.name == last else "ellipsis",
            max_width=None if column.name == last else widths[column.name],
        )
    for index in range(len(items)):
        made.add_row(*(cells[column.name][index] for column in shown))
    return made


def single(item: BaseModel, title: str, facts: Iterable[tuple[str, object]], *, as_json: bool) -> None:
    """Print one thing: a title (rich markup) and what is known of it; facts without a value are left out."""
    if as_json:
        output.as_json(item)
        return
    output.say(title)
    for name, value in facts:
        output.fact(name, output.escape(value) if value else None)


def remove(refs: Iterable[str], delete: Callable[[str], None], *, as_json: bool) -> None:
    """Remove things one after the other, and say so of each."""
    removed = []
    for ref in refs:
        delete(ref)
        removed.append(ref)
        if not as_json:
            output.say(f"{output.escape(ref)} removed")
    if as_json:
        output.as_json({"removed": removed})
