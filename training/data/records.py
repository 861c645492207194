"""Reads a source as records of the kind that a stage needs; says of each bad row where it is and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from training.config.data import DataSource
from training.data.files import RawRow, read_rows, resolve
from training.data.formats import FORMATS, Kind, Record, detect_format, kind_for, parse_with_rest
from training.data.messages import RowError, field_names
from training.errors import DataError
from training.report.phases import phase

_LOOKED_AT = 50


@dataclass(frozen=True)
class Problem:
    """A row that can't be used. place is empty where `what` names it already."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" if self.place else self.what


@dataclass(frozen=True)
class Placed:
    """A record and the row it came from. rest: names of the row's fields that are not in the record."""

    record: Record
    raw: RawRow
    rest: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceRows:
    """A source, resolved: its files, the format of its rows and what a stage makes of them."""

    source: DataSource
    files: tuple[Path, ...]
    format: str
    kind: Kind

    @property
    def names(self) -> tuple[str, ...]:
        """Each file's short name, unique within the source, as row ids show it."""
        names = [file.name for file in self.files]
        if len(set(names)) == len(names):
            return tuple(names)
        return tuple("/".join(file.parts[-2:]) for file in self.files)

    def __iter__(self) -> Iterator[Placed | Problem]:
        """Every row up to `max_samples`, good or bad, in the order of the files."""
        with phase(f"reading {self.source.path}") as now:
            for count, raw in enumerate(islice(raw_rows(self.files, self.names), self.source.max_samples), 1):
                now.at(count, unit="rows")
                yield read_record(raw, self.format, self.kind, self.source)


def raw_rows(files: tuple[Path, ...], names: tuple[str, ...]) -> Iterator[RawRow]:
    return chain.from_iterable(read_rows(file, name) for file, name in zip(files, names, strict=True))


def read_record(raw: RawRow, format: str, kind: Kind, source: DataSource) -> Placed | Problem:
    if raw.problem:
        return Problem(raw.place, raw.problem)
    try:
        record, rest = parse_with_rest(renamed(raw.value, source), format, kind)
    except RowError as error:
        return Problem(raw.place, str(error))
    return Placed(record, raw, rest)


def renamed(value: Any, source: DataSource) -> Any:
    """The row with its fields under the names that formats know, without those that are to be ignored.

    Raises RowError when `columns` names a field that the row does not have.
    """
    if not (source.columns or source.ignore) or not isinstance(value, Mapping):
        return value
    missing = [theirs for theirs in source.columns.values() if theirs not in value]
    if missing:
        raise RowError(f"has no {missing[0]}, which columns names; its fields are {field_names(value)}")
    gone = {*source.columns.values(), *source.ignore}
    kept = {name: item for name, item in value.items() if name not in gone}
    return kept | {ours: value[theirs] for ours, theirs in source.columns.items()}


def open_source(source: DataSource, stage: str) -> SourceRows:
    """Finds the files and the format. Raises MissingInput or DataError naming the source."""
    files = tuple(resolve(source))
    name: str = source.format
    if name == "auto":
        name = detect(files, source)
    try:
        return SourceRows(source, files, name, kind_for(name, stage))
    except RowError as error:
        raise DataError(f"{source.path}: {error}.") from error


def detect(files: tuple[Path, ...], source: DataSource) -> str:
    """The format of the first rows that can be read."""
    first: RawRow | None = None
    rows = []
    try:
        for raw in islice(raw_rows(files, tuple(file.name for file in files)), _LOOKED_AT):
            first = first or raw
            if not raw.problem:
                rows.append(renamed(raw.value, source))
    except RowError as error:
        raise DataError(f"{raw.place}: {error}.") from error
    except DataError:  # broken further on: said when that place is reached
        if not rows:
            raise
    where = files[0] if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
    if first is None:
        raise DataError(f"{where} is empty: there are no rows in it.")
    if not rows:
        raise DataError(f"{first.place}: {first.problem} (and no other of the first {_LOOKED_AT} rows can be read).")
    found = detect_format(rows)
    if found is None:
        keys = ", ".join(map(str, rows[0])) if isinstance(rows[0], dict) else type(rows[0]).__name__
        raise DataError(
            f"{first.place}: the rows are of no known format (fields: {keys or 'none'}). "
            f"Known formats: {', '.join(FORMATS)}. Say which field is which with `columns` "
            f"({{path: …, columns: {{instruction: THEIR_NAME, output: THEIR_NAME}}}}), or name its `format`."
        )
    return found
