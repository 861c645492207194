"""Shows what a data set looks like: a histogram of lengths, and a row in the colours of what will be learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from training.data.check import all_text, conversations, token_lengths
from training.data.documents import Documents
from training.data.formats import Chat, Prompt, Record, Text
from training.data.messages import Message
from training.data.preferences import Pair
from training.data.records import Placed, Problem, SourceRows
from training.data.template import TextCodec
from training.errors import DataError

LEARNED, CONTEXT, TURN_END, RESET = "\033[32m", "\033[2m", "\033[1;35m", "\033[0m"
_PERCENTILES = (0, 25, 50, 75, 90, 99, 100)


@dataclass(frozen=True)
class Stats:
    """lengths: [documents] in `unit` (tokens or characters); bad: unusable rows, of which `problem` is the first."""

    format: str
    kind: str
    rows: int
    bad: int
    unit: str
    lengths: np.ndarray
    sample: Placed | None
    problem: Problem | None = None

    def percentiles(self) -> dict[str, int]:
        if not len(self.lengths):
            return {}
        values = np.percentile(self.lengths, _PERCENTILES)
        return {f"p{p}": int(value) for p, value in zip(_PERCENTILES, values, strict=True)}

    def over(self, max_length: int) -> int:
        return int((self.lengths > max_length).sum())


def collect(rows: SourceRows, codec: TextCodec | None, show: int = 0) -> Stats:
    """Reads all rows. show: which row (from 0) becomes the sample."""
    lengths: list[int] = []
    count = bad = 0
    sample: Placed | None = None
    problem: Problem | None = None
    for item in rows:
        count += 1
        try:
            if isinstance(item, Placed):
                lengths += token_lengths(item.record, codec) if codec else [len(t) for t in _documents(item.record)]
                sample = item if sample is None or item.raw.index == show else sample
                continue
        except DataError as error:
            item = Problem(item.raw.place, str(error))
        bad, problem = bad + 1, problem or item
    unit = "tokens" if codec else "characters"
    return Stats(rows.format, rows.kind, count, bad, unit, np.array(lengths, dtype=np.int64), sample, problem)


def _documents(record: Record) -> list[str]:
    if isinstance(record, Pair):
        return ["".join(turn["content"] for turn in talk) for talk in conversations(record)]
    return [all_text(record)]


def histogram(lengths: np.ndarray, *, bins: int = 12, width: int = 40) -> list[str]:
    """Lines of a histogram with bounds that grow by a constant factor."""
    if not len(lengths):
        return ["(no documents)"]
    low, high = max(int(lengths.min()), 1), int(lengths.max())
    edges = np.unique(np.geomspace(low, high + 1, min(bins, high - low + 1) + 1).astype(np.int64))
    if len(edges) < 2:
        edges = np.array([low, high + 1])
    counts, _ = np.histogram(np.maximum(lengths, 1), bins=edges)
    digits = len(f"{edges[-1]:,}")
    lines = []
    for start, end, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        bar = _bar(count / counts.max() * width)
        lines.append(f"{start:>{digits},} – {end - 1:>{digits},}  {bar:<{width}} {count:,}")
    return lines


def _bar(length: float) -> str:
    whole = int(length)
    rest = " ▏▎▍▌▋▊▉"[int((length - whole) * 8)].strip()
    return "█" * whole + rest


def coloured(record: Record, codec: TextCodec | None, *, colour: bool = True, train_on: str = "assistant") -> list[str]:
    """The documents of a record as text: green what is learned, dim what is only read, purple the end tokens.

    Without a codec: who says what, by role. colour=False marks what is learned with ⟦…⟧ instead.
    """
    if codec is None:
        return [_by_role(record, colour)]
    if isinstance(record, Prompt):
        return [_paint(codec.render(record.messages, record.tools, add_generation_prompt=True), CONTEXT, colour)]
    if isinstance(record, Text):
        documents = [codec.encode_text(record.text)]
    else:
        last = "last" if isinstance(record, Pair) else train_on
        talks = conversations(record)
        documents = codec.encode_chats(talks, [record.tools] * len(talks), train_on=last)
    return [by_mask(document.tokens, document.targets, codec, colour) for document in documents]


def first_row(documents: Documents, codec: TextCodec, *, colour: bool, limit: int = 1600) -> str:
    """The first documents of a run as they will be learned, each cut in its middle above `limit` characters."""
    store = documents.stores[documents.store[0]]
    first = int(documents.first[0])
    lines = []
    for entry in store.documents[first : first + documents.width]:
        part = slice(int(entry["start"]), int(entry["start"] + entry["length"]))
        shard = int(entry["shard"])
        tokens, targets = np.array(store.tokens[shard][part]), np.array(store.targets[shard][part])
        text = by_mask(tokens, targets, codec, colour)
        half = limit // 2
        lines.append(text if len(text) <= limit else f"{text[:half]}{RESET if colour else ''} […] {text[-half:]}")
    key = "green is learned, dim is only read" if colour else "⟦…⟧ is learned"
    return "\n".join([f"{documents.row_ids(np.zeros(1, np.int64))[0]} ({key}):", *lines])


def by_mask(tokens: np.ndarray, targets: np.ndarray, codec: TextCodec, colour: bool) -> str:
    """Runs of tokens are decoded together, so that characters of several tokens stay whole."""
    stops = np.isin(tokens, codec.stop_ids)
    style = np.where(targets, np.where(stops, 2, 1), 0)
    cuts = [0, *(np.flatnonzero(np.diff(style)) + 1).tolist(), len(tokens)]
    names = (CONTEXT, LEARNED, TURN_END)
    return "".join(
        _paint(codec.decode(tokens[a:b], skip_special=False), names[style[a]], colour)
        for a, b in pairwise(cuts)
        if a < b
    )


def _by_role(record: Record, colour: bool) -> str:
    if isinstance(record, Text):
        return _paint(record.text, LEARNED, colour)
    turns: Sequence[Message] = record.prompt if isinstance(record, Pair) else record.messages
    lines = []
    for turn in turns:
        learned = isinstance(record, Chat) and turn["role"] == "assistant" and turn.get("learn", True)
        calls = "".join(json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", ()))
        lines.append(f"{turn['role']}: " + _paint(turn["content"] + calls, LEARNED if learned else CONTEXT, colour))
    if isinstance(record, Pair):
        lines += [
            "chosen: " + _paint(record.chosen, LEARNED, colour),
            "rejected: " + _paint(record.rejected, LEARNED, colour),
        ]
    return "\n".join(lines)


def _paint(text: str, style: str, colour: bool) -> str:
    if not colour:
        return text if style == CONTEXT else f"⟦{text}⟧"
    return "\n".join(f"{style}{line}{RESET}" if line else line for line in text.split("\n"))
