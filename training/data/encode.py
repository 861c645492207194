"""Tokenises a source into a store: conversations, pairs and texts, cut to max_length; counts what was left out."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from training.data.files import RawRow
from training.data.formats import Chat, Pair, Record, Text
from training.data.records import Problem, SourceRows
from training.data.store import DOCUMENT, StoreWriter, TokenStore, concatenate, open_store
from training.data.template import Encoded, TextCodec
from training.errors import DataError

VERSION = 1
_CHUNK = 256
_PARALLEL_BYTES = 64 << 20  # below this, starting processes costs more than they save
_KEPT_PROBLEMS = 20


@dataclass(frozen=True)
class EncodeOptions:
    """What changes the tokens of a row. over_long: truncate, split or drop."""

    max_length: int
    over_long: str
    train_on: str = "assistant"
    bad_rows: str = "stop"


@dataclass(frozen=True)
class EncodedChunk:
    """Some rows as documents. counts: what happened to them (see `Report`)."""

    documents: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    counts: dict[str, int]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Report:
    """What became of a source's rows.

    rows: read; documents: kept (two per pair); bad: unusable, skipped because `bad_rows: skip`; truncated, split: over
    max_length; too_long: left out for it; unlearnable: left out because nothing to learn remained.
    """

    path: str
    format: str
    rows: int
    documents: int
    tokens: int
    targets: int
    bad: int = 0
    truncated: int = 0
    split: int = 0
    too_long: int = 0
    unlearnable: int = 0
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        left = [
            f"{value:,} {text}"
            for value, text in (
                (self.truncated, "cut to max_length"),
                (self.split, "split at max_length"),
                (self.too_long, "left out: over max_length"),
                (self.unlearnable, "left out: nothing to learn"),
                (self.bad, "bad and skipped"),
            )
            if value
        ]
        main = (
            f"{self.path} ({self.format}): {self.rows:,} rows, {self.documents:,} documents, {self.tokens:,} tokens, "
        )
        return main + f"{self.targets:,} to learn" + ("; " + "; ".join(left) if left else "")


class RecordEncoder:
    """Rows → documents, with the same options for all of them."""

    def __init__(self, codec: TextCodec, options: EncodeOptions) -> None:
        self.codec = codec
        self.options = options

    def __call__(self, placed: list[tuple[Record, int, RawRow]]) -> EncodedChunk:
        """placed: (record, number of its file, raw row)."""
        try:
            encoded = self._encode([record for record, _, _ in placed])
            problems: list[Problem] = []
        except DataError:  # some row of the chunk: find which
            encoded, problems, kept = [], [], []
            for item in placed:
                try:
                    encoded += self._encode([item[0]])
                    kept.append(item)
                except DataError as error:
                    problems.append(Problem(item[2].place, str(error)))
            placed = kept
        counts: Counter[str] = Counter()
        documents, tokens, targets = [], [], []
        for (record, file, raw), parts in zip(placed, encoded, strict=True):
            pieces = self._fit(parts, isinstance(record, Pair), counts)
            if not pieces:
                continue
            entry = np.zeros(len(pieces), DOCUMENT)
            entry["row"], entry["line"], entry["file"] = raw.index, raw.line, file
            entry["key"] = content_key(record)
            entry["length"] = [len(piece) for piece in pieces]
            entry["prompt"] = [piece.prompt for piece in pieces]
            entry["targets"] = [int(np.count_nonzero(piece.targets[1:])) for piece in pieces]
            if isinstance(record, Pair):
                entry["margin"] = record.margin
            documents.append(entry)
            tokens += [piece.tokens for piece in pieces]
            targets += [piece.targets for piece in pieces]
        return EncodedChunk(
            concatenate(documents, DOCUMENT),
            concatenate(tokens, np.int32),
            concatenate(targets, np.bool_),
            dict(counts),
            tuple(problems),
        )

    def _encode(self, records: list[Record]) -> list[list[Encoded]]:
        """The documents of each record: one, or two of a pair."""
        if not records:
            return []
        if isinstance(records[0], Text):
            return [[e] for e in self.codec.encode_texts([r.text for r in records if isinstance(r, Text)])]
        if isinstance(records[0], Chat):
            chats = [r.messages for r in records if isinstance(r, Chat)]
            return [[e] for e in self.codec.encode_chats(chats, train_on=self.options.train_on)]
        pairs = [r for r in records if isinstance(r, Pair)]
        talks = [
            (*pair.prompt, {"role": "assistant", "content": answer})
            for pair in pairs
            for answer in (pair.chosen, pair.rejected)
        ]
        both = self.codec.encode_chats(talks, train_on="last")
        return [both[i : i + 2] for i in range(0, len(both), 2)]

    def _fit(self, parts: list[Encoded], pair: bool, counts: Counter[str]) -> list[Encoded]:
        """The documents within max_length, or none of them; counts what was done."""
        limit = self.options.max_length
        if any(len(part) > limit for part in parts):
            how = self.options.over_long
            if how == "drop":
                counts["too_long"] += 1
                return []
            if how == "split" and not pair:
                counts["split"] += 1
                step = limit - 1  # pieces share one token, so that each token is predicted exactly once
                parts = [
                    Encoded(part.tokens[i : i + limit], part.targets[i : i + limit], 0)
                    for part in parts
                    for i in range(0, max(len(part) - 1, 1), max(step, 1))
                ]
            else:
                counts["truncated"] += 1
                parts = [Encoded(part.tokens[:limit], part.targets[:limit], min(part.prompt, limit)) for part in parts]
        kept = [part for part in parts if part.targets[1:].any()]
        if pair and (len(kept) < 2 or np.array_equal(kept[0].tokens, kept[1].tokens)):
            kept = []
        if not kept:
            counts["unlearnable"] += 1
        return kept


def encode_source(
    rows: SourceRows, codec: TextCodec, options: EncodeOptions, cache: Path, *, workers: int = 0
) -> tuple[TokenStore, Report]:
    """The source's store, from the cache where its content, the codec and the options are the same."""
    key = store_key(rows, codec, options)

    def build(folder: Path) -> None:
        _build(rows, codec, options, folder, workers)

    store = open_store(cache, key, build)
    report = Report(**{**store.meta["report"], "problems": tuple(store.meta["report"]["problems"])})
    if not len(store.documents):
        reason = f" First problem: {report.problems[0]}." if report.problems else ""
        raise DataError(f"{rows.source.path}: nothing usable is left of {report.rows:,} rows ({report}).{reason}")
    return store, report


def _build(rows: SourceRows, codec: TextCodec, options: EncodeOptions, folder: Path, workers: int) -> None:
    counts: Counter[str] = Counter()
    problems: list[Problem] = []

    def bad(problem: Problem) -> None:
        if options.bad_rows == "stop":
            raise DataError(f"{problem}. Mend or remove the row, or set data.bad_rows: skip.")
        counts["bad"] += 1
        if len(problems) < _KEPT_PROBLEMS:
            problems.append(problem)

    def records() -> Iterator[tuple[Record, int, RawRow]]:
        numbers = {name: number for number, name in enumerate(rows.names)}
        for item in rows:
            counts["rows"] += 1
            if isinstance(item, Problem):
                bad(item)
            else:
                yield item.record, numbers[item.raw.file], RawRow(None, item.raw.file, item.raw.index, item.raw.line)

    writer = StoreWriter(folder, max(codec.tokenizer.get_vocab().values(), default=0) + 1)
    for chunk in _encode_all(_chunks(records(), _CHUNK), RecordEncoder(codec, options), _worker_count(rows, workers)):
        for problem in chunk.problems:
            bad(problem)
        counts.update(chunk.counts)
        counts.update(
            documents=len(chunk.documents), tokens=len(chunk.tokens), targets=int(chunk.documents["targets"].sum())
        )
        writer.append(chunk.documents, chunk.tokens, chunk.targets)
    numbers = {name: counts[name] for name in Report.__dataclass_fields__ if name not in ("path", "format", "problems")}
    report = Report(path=rows.source.path, format=rows.format, problems=tuple(str(p) for p in problems), **numbers)
    writer.finish({"files": list(rows.names), "kind": rows.kind, "report": asdict(report)})


def _worker_count(rows: SourceRows, asked: int) -> int:
    if asked:
        return asked
    size = sum(file.stat().st_size for file in rows.files)
    return 1 if size < _PARALLEL_BYTES else min(len(os.sched_getaffinity(0)), 16)


def _encode_all(chunks: Iterable[list[Any]], encoder: RecordEncoder, workers: int) -> Iterator[EncodedChunk]:
    """Chunks encoded in order, in this process or in several."""
    if workers <= 1:
        yield from map(encoder, chunks)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(encoder,)) as pool:
        waiting: list[Any] = []
        for chunk in chunks:  # a bounded number in flight: a large file never stands in memory as a whole
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > 4 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


_ENCODER: list[RecordEncoder] = []


def _start_worker(encoder: RecordEncoder) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _ENCODER.append(encoder)


def _work(chunk: list[tuple[Record, int, RawRow]]) -> EncodedChunk:
    return _ENCODER[0](chunk)


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(items, size)):
        yield chunk


def content_key(record: Record) -> np.uint64:
    """Hash of what is asked (or of a text): rows with one question always fall on the same side of a split."""
    if isinstance(record, Text):
        text = record.text
    else:
        messages = record.prompt if isinstance(record, Pair) else record.messages
        text = "\0".join(m["content"] for m in messages if m["role"] == "user")
    return np.uint64(int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "little"))


@lru_cache(maxsize=4096)
def _content_digest(file: Path, size: int, changed: int) -> bytes:
    """Of the file's bytes, read once a process (a run asks twice: for training and for held-out data)."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def store_key(rows: SourceRows, codec: TextCodec, options: EncodeOptions) -> str:
    """Name of the store: a digest of the files' bytes and of all that decides how they become tokens."""
    digest = hashlib.blake2b(digest_size=16)
    for file in rows.files:
        facts_of_file = file.stat()
        digest.update(_content_digest(file, facts_of_file.st_size, facts_of_file.st_mtime_ns))
    facts = [VERSION, rows.names, rows.format, rows.kind, rows.source.max_samples, codec.fingerprint, asdict(options)]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
