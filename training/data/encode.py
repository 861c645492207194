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
from training.data.formats import Chat, Pair, Prompt, Record, Text
from training.data.records import Problem, SourceRows
from training.data.report import Report, refuse_losses
from training.data.store import DOCUMENT, StoreWriter, TokenStore, concatenate, open_store
from training.data.template import Encoded, TextCodec
from training.errors import DataError

VERSION = 2
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
    """Some rows as documents. counts: what happened to them (see `Report`); longest: tokens before anything is cut."""

    documents: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    counts: dict[str, int]
    problems: tuple[Problem, ...] = ()
    longest: int = 0


class RecordEncoder:
    """Rows → documents, with the same options for all of them."""

    def __init__(self, codec: TextCodec, options: EncodeOptions) -> None:
        self.codec = codec
        self.options = options

    def __call__(self, placed: list[tuple[Record, int, RawRow]]) -> EncodedChunk:
        """placed: (record, number of its file, raw row)."""
        each = self.encode([record for record, _, _ in placed])
        problems = [
            Problem(raw.place, made) for (_, _, raw), made in zip(placed, each, strict=True) if isinstance(made, str)
        ]
        kept = [(item, made) for item, made in zip(placed, each, strict=True) if not isinstance(made, str)]
        longest = max((len(part) for _, parts in kept for part in parts), default=0)
        counts: Counter[str] = Counter()
        documents, tokens, targets = [], [], []
        for (record, file, raw), parts in kept:
            pieces = self.fit(parts, isinstance(record, Pair), counts)
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
            longest,
        )

    def encode(self, records: list[Record]) -> list[list[Encoded] | str]:
        """The documents of each record, one or two of a pair; or what is wrong with it."""
        try:
            return list(self._encode(records))
        except DataError as error:  # some record: find which
            if len(records) == 1:
                return [str(error)]
            return [made for record in records for made in self.encode([record])]

    def _encode(self, records: list[Record]) -> list[list[Encoded]]:
        if not records:
            return []
        if isinstance(records[0], Prompt):
            asked = [r for r in records if isinstance(r, Prompt)]
            prompts = self.codec.encode_prompts([r.messages for r in asked], [r.tools for r in asked])
            return [[Encoded(np.array(ids, np.int32), np.zeros(len(ids), np.bool_), len(ids))] for ids in prompts]
        if isinstance(records[0], Text):
            return [[e] for e in self.codec.encode_texts([r.text for r in records if isinstance(r, Text)])]
        if isinstance(records[0], Chat):
            chats = [r for r in records if isinstance(r, Chat)]
            talks, tools = [r.messages for r in chats], [r.tools for r in chats]
            return [[e] for e in self.codec.encode_chats(talks, tools, train_on=self.options.train_on)]
        pairs = [r for r in records if isinstance(r, Pair)]
        answered = [
            (*pair.prompt, {"role": "assistant", "content": answer})
            for pair in pairs
            for answer in (pair.chosen, pair.rejected)
        ]
        given = [pair.tools for pair in pairs for _ in range(2)]
        both = self.codec.encode_chats(answered, given, train_on="last")
        return [both[i : i + 2] for i in range(0, len(both), 2)]

    def fit(self, parts: list[Encoded], pair: bool, counts: Counter[str]) -> list[Encoded]:
        """The documents within max_length, or none of them; counts what was done."""
        limit = self.options.max_length
        whole = parts
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
        else:
            for part in whole:
                counts["answers"] += len(part.answers) + part.unmarked
                counts["lost"] += part.unmarked + sum(start >= limit for start in part.answers)
        return kept


def encode_source(
    rows: SourceRows,
    codec: TextCodec,
    options: EncodeOptions,
    cache: Path,
    *,
    workers: int = 0,
    max_left_out: float = 1.0,
) -> tuple[TokenStore, Report]:
    """The source's store, from the cache where its content, the codec and the options are the same.

    Raises DataError when more than the share `max_left_out` of its rows or answers is not in it.
    """
    key = store_key(rows, codec, options)

    def build(folder: Path) -> None:
        _build(rows, codec, options, folder, workers)

    store = open_store(cache, key, build)
    report = Report(**{**store.meta["report"], "problems": tuple(store.meta["report"]["problems"])})
    if not len(store.documents):
        reason = f" First problem: {report.problems[0]}." if report.problems else ""
        raise DataError(f"{rows.source.path}: nothing usable is left of {report.rows:,} rows ({report}).{reason}")
    refuse_losses(report, max_left_out, options.max_length)
    return store, report


def _build(rows: SourceRows, codec: TextCodec, options: EncodeOptions, folder: Path, workers: int) -> None:
    counts: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    longest = 0
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
                unused.update(item.rest)
                yield item.record, numbers[item.raw.file], RawRow(None, item.raw.file, item.raw.index, item.raw.line)

    writer = StoreWriter(folder, max(codec.tokenizer.get_vocab().values(), default=0) + 1)
    for chunk in _encode_all(_chunks(records(), _CHUNK), RecordEncoder(codec, options), _worker_count(rows, workers)):
        for problem in chunk.problems:
            bad(problem)
        counts.update(chunk.counts)
        longest = max(longest, chunk.longest)
        counts.update(
            documents=len(chunk.documents), tokens=len(chunk.tokens), targets=int(chunk.documents["targets"].sum())
        )
        writer.append(chunk.documents, chunk.tokens, chunk.targets)
    counted = set(Report.__dataclass_fields__) - {"path", "format", "problems", "unused", "longest"}
    report = Report(
        path=rows.source.path, format=rows.format, problems=tuple(str(p) for p in problems), unused=dict(unused),
        longest=longest, **{name: counts[name] for name in counted},
    )  # fmt: skip
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
    source = rows.source
    facts = [VERSION, rows.names, rows.format, rows.kind, source.max_samples, source.columns, source.ignore]
    facts += [codec.cache_key, asdict(options)]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
