"""Looks at every row of a source before a run does, and lists what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from training.config.data import DataSource
from training.data.encode import content_key
from training.data.files import resolve
from training.data.formats import STAGE_KINDS, Chat, Kind, Pair, Prompt, Record, RowError, Text, kind_for
from training.data.records import Placed, Problem, SourceRows, detect, open_source
from training.data.template import TextCodec
from training.errors import DataError


@dataclass
class CheckResult:
    """problems: rows that a run would refuse; warnings: rows that it would take, but that look wrong."""

    format: str = ""
    kind: Kind | None = None
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        return not self.problems

    def summary(self) -> Counter[str]:
        """How many problems of each sort: their words without the row's own names and numbers."""
        return Counter(problem.what.split(":")[0].split(";")[0] for problem in self.problems)


def stages_for(format: str) -> list[str]:
    """The stages that can use a format."""
    found = []
    for stage in STAGE_KINDS:
        try:
            kind_for(format, stage)
        except RowError:
            continue
        found.append(stage)
    return found


def open_for(source: DataSource, stage: str | None) -> SourceRows:
    """The source for a stage, or for the first stage that can use its format."""
    if stage:
        return open_source(source, stage)
    files = tuple(resolve(source))
    format = detect(files) if source.format == "auto" else source.format
    kind = kind_for(format, stages_for(format)[0])
    return SourceRows(source, files, format, kind)


def check_rows(rows: SourceRows, codec: TextCodec | None = None, max_length: int | None = None) -> CheckResult:
    """Checks each row by itself, exact repetitions, and (with a codec) lengths in tokens."""
    result = CheckResult(rows.format, rows.kind)
    seen: dict[int, str] = {}
    special = codec.special_words if codec else ()
    try:
        for item in rows:
            result.rows += 1
            if isinstance(item, Problem):
                result.problems.append(item)
                continue
            result.problems += _too_long(item, codec, max_length)
            result.warnings += _odd(item, seen)
            result.warnings += _special(item, special)
    except DataError as error:  # the rest of the file can't be read
        result.problems.append(Problem("", str(error)))
    return result


def _too_long(item: Placed, codec: TextCodec | None, max_length: int | None) -> Iterator[Problem]:
    if codec is None or max_length is None:
        return
    try:
        longest = max(token_lengths(item.record, codec))
    except DataError as error:
        yield Problem(item.raw.place, str(error))
        return
    if longest > max_length:
        yield Problem(item.raw.place, f"is too long: {longest:,} tokens, over max_length {max_length:,}")


def token_lengths(record: Record, codec: TextCodec) -> list[int]:
    """Tokens of each document that the record makes."""
    if isinstance(record, Text):
        return [len(codec.encode_text(record.text))]
    if isinstance(record, Prompt):
        return [len(codec.encode_prompt(record.messages))]
    return [len(encoded) for encoded in codec.encode_chats(conversations(record))]


def conversations(record: Chat | Pair) -> list[list[dict[str, str]]]:
    """The conversations that end with an answer: one of a chat, chosen and rejected of a pair."""
    if isinstance(record, Chat):
        return [list(record.messages)]
    return [[*record.prompt, {"role": "assistant", "content": answer}] for answer in (record.chosen, record.rejected)]


def all_text(record: Record) -> str:
    """Everything that a record says, for comparing rows."""
    if isinstance(record, Text):
        return record.text
    if isinstance(record, Pair):
        turns = [*(m["content"] for m in record.prompt), record.chosen, record.rejected]
    else:
        turns = [m["content"] for m in record.messages]
    return "\n".join(turns)


def _odd(item: Placed, seen: dict[int, str]) -> Iterator[Problem]:
    text = all_text(item.record)
    if "\ufffd" in text:
        yield Problem(item.raw.place, "holds replacement characters (\ufffd): it was decoded wrongly before")
    if "\x00" in text:
        yield Problem(item.raw.place, "holds NUL characters")
    key = int(content_key(Text(text)))
    if key in seen:
        yield Problem(item.raw.place, f"repeats {seen[key]} word for word")
    else:
        seen[key] = item.raw.place


def _special(item: Placed, special: tuple[str, ...]) -> Iterator[Problem]:
    text = all_text(item.record)
    found = [word for word in special if word in text]
    if found:
        yield Problem(item.raw.place, f"its text holds the special token {found[0]}, which would act as one")
