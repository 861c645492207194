"""Reads raw rows from files, folders and Hugging Face data sets, each with its place (file and line) for messages."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from training.config.data import HUB_PREFIX, DataSource
from training.errors import DataError, MissingInput
from training.hub import reach_hub

KINDS = (".jsonl", ".json", ".txt", ".parquet")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_NOT_DATA = {"dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json", "config.json"}


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in the file. line counts from 1 (0: the file has none), index from 0.

    problem: why the row can't be read (then value is None), else "".
    """

    value: Any
    file: str
    index: int
    line: int
    problem: str = ""

    @property
    def place(self) -> str:
        """ "alpaca.json:17", or "part.parquet row 3": what a person looks for."""
        return f"{self.file}:{self.line}" if self.line else f"{self.file} row {self.index + 1}"


def resolve(source: DataSource) -> list[Path]:
    """The files of a source, sorted; downloads hub data sets. Raises MissingInput when there are none."""
    if source.is_hub:
        return _download(source)
    path = Path(source.path).expanduser()
    if path.is_file():
        if file_kind(path) is None:
            raise MissingInput(
                f"{path} is not a data file: it must end in {', '.join(KINDS)} (or one of these with .gz)."
            )
        return [path]
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        chosen = choose_split(names, source.split)
        if not chosen:
            raise MissingInput(f"The folder {path} holds no data file ({', '.join(KINDS)}, also .gz).")
        return [path / name for name in chosen]
    raise MissingInput(f"{path} does not exist. Name a data file, a folder, or hf:org/name.")


def file_kind(path: Path | str) -> str | None:
    """ ".jsonl", ".json", ".txt" or ".parquet"; None for what isn't data."""
    name = Path(path).name.lower()
    if name in _NOT_DATA or name.startswith("."):
        return None
    name = name.removesuffix(".gz")
    return next((kind for kind in KINDS if name.endswith(kind)), None)


def choose_split(names: list[str], split: str) -> list[str]:
    """The data files that belong to a split, by a word in their path; all files when none names any split."""
    data = sorted(name for name in names if file_kind(name))

    def words(name: str) -> set[str]:
        stem = name.lower()
        for mark in "/-_.":
            stem = stem.replace(mark, " ")
        return set(stem.split())

    mine = [name for name in data if split.lower() in words(name)]
    if mine:
        return mine
    return [] if any(words(name) & set(_SPLITS) for name in data) and split != "train" else _unnamed(data, words)


def _unnamed(data: list[str], words: Any) -> list[str]:
    plain = [name for name in data if not words(name) & set(_SPLITS)]
    return plain or data


def read_rows(path: Path, name: str | None = None) -> Iterator[RawRow]:
    """All rows of a file, unreadable ones too (with their problem). Raises DataError where nothing more can be read."""
    name = name or path.name
    kind = file_kind(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path, name)
            return
        with _open(path) as file:
            if kind == ".jsonl":
                yield from _json_lines(file, name)
            elif kind == ".txt":
                yield from _text_lines(file, name)
            else:
                yield from _json(file.read(), name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is a damaged .gz file ({error}). Download or pack it again.") from error
    except FileNotFoundError:
        raise MissingInput(f"{path} does not exist.") from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str, str]]:
    """(line number, text, problem) of each line that isn't blank."""
    offset = 0
    for number, raw in enumerate(file, start=1):
        if number == 1:
            _refuse_utf16(raw, name)
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield number, "", _bad_bytes(raw, error, offset)
        else:
            if text.strip():
                yield number, text, ""
        offset += len(raw)


def _json_lines(file: IO[bytes], name: str) -> Iterator[RawRow]:
    for index, (number, text, problem) in enumerate(_lines(file, name)):
        bracket = text.strip() if number == 1 and text.lstrip().startswith("[") else ""
        if bracket == "[" or bracket.endswith("]"):  # an array under a .jsonl name
            yield from _json((text + "\n").encode() + file.read(), name)
            return
        value = None
        if not problem:
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                problem = f"is not valid JSON: {_reason(error)} at column {error.colno}"
            except RecursionError:
                problem = "is not usable JSON: nested too deeply"
        yield RawRow(value, name, index, number, problem)


def _text_lines(file: IO[bytes], name: str) -> Iterator[RawRow]:
    for index, (number, text, problem) in enumerate(_lines(file, name)):
        yield RawRow(None if problem else text, name, index, number, problem)


def _json(data: bytes, name: str) -> Iterator[RawRow]:
    """A JSON array of rows, or objects one after another; keeps the line on which each row begins."""
    _refuse_utf16(data, name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}: {_bad_bytes(data, error, 0)}. Save the file as UTF-8.") from error
    decoder = json.JSONDecoder()
    position = _skip(text, 0, " \t\r\n")
    array = text[position : position + 1] == "["
    position += array
    index, line, counted = 0, 1, 0
    while True:
        position = _skip(text, position, " \t\r\n")
        line += text.count("\n", counted, position)
        counted = position
        if position >= len(text):
            if array:
                raise DataError(f"{name}:{line}: the list is cut off: its closing ] is missing. Is the file complete?")
            return
        if array and text[position] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name}:{error.lineno}: not valid JSON in row {index + 1} (which begins on line {line}): "
                f"{_reason(error)} at column {error.colno}."
            ) from error
        except RecursionError:
            raise DataError(f"{name}:{line}: row {index + 1} is nested too deeply.") from None
        yield RawRow(value, name, index, line)
        index += 1
        position = _skip(text, end, " \t\r\n")
        if position < len(text) and text[position] == ",":
            position += 1
        elif array and text[position : position + 1] not in ("]", ""):
            at = line + text.count("\n", counted, position)
            raise DataError(f"{name}:{at}: a comma is missing after row {index}.")


def _parquet(path: Path, name: str) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        index = 0
        for batch in table.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                yield RawRow(value, name, index, 0)
                index += 1
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        first = str(error).split("\n")[0]
        raise DataError(f"{name} is not a readable parquet file ({first}). Download it again.") from error


def _download(source: DataSource) -> list[Path]:
    """Fetches a hub data set's files of one split (from $HF_ENDPOINT where set); `hf:org/name/folder` takes a part."""
    from huggingface_hub import constants, hf_hub_download, list_repo_files, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    parts = source.path[len(HUB_PREFIX) :].strip("/").split("/")
    repo, folder = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        if reach_hub():
            names = list_repo_files(repo, repo_type="dataset")
        else:
            cached = Path(snapshot_download(repo, repo_type="dataset", local_files_only=True))
            names = [file.relative_to(cached).as_posix() for file in cached.rglob("*") if file.is_file()]
        inside = [n for n in names if not folder or n == folder or n.startswith(f"{folder}/")]
        chosen = choose_split(inside, source.split)
        if not chosen:
            raise MissingInput(
                f"The data set {repo} on {constants.ENDPOINT} has no {', '.join(KINDS)} files of the split "
                f"{source.split!r}{' in ' + folder if folder else ''}; it has {', '.join(sorted(names)[:10])}."
            )
        return [Path(hf_hub_download(repo, name, repo_type="dataset")) for name in chosen]
    except RepositoryNotFoundError as error:
        raise MissingInput(f"There is no data set {repo} on {constants.ENDPOINT} (or it needs HF_TOKEN).") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise MissingInput(
            f"Could not fetch the data set {repo} from {constants.ENDPOINT}: {first} "
            "Set HF_ENDPOINT to a mirror, or give a local file."
        ) from error


def _skip(text: str, position: int, marks: str) -> int:
    while position < len(text) and text[position] in marks:
        position += 1
    return position


def _reason(error: json.JSONDecodeError) -> str:
    return error.msg[0].lower() + error.msg[1:]


def _bad_bytes(raw: bytes, error: UnicodeDecodeError, offset: int) -> str:
    said = f"is not UTF-8: byte 0x{raw[error.start]:02x} at byte offset {offset + error.start} of the file"
    try:
        chinese = any("\u4e00" <= letter <= "\u9fff" for letter in raw.decode("gb18030"))
    except UnicodeDecodeError:
        return said
    return f"{said}; it looks like GBK (iconv -f GB18030 -t UTF-8)" if chinese else said


def _refuse_utf16(data: bytes, name: str) -> None:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name} is UTF-16, not UTF-8. Save it as UTF-8 (iconv -f UTF-16 -t UTF-8).")
