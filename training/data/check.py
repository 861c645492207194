"""Looks at every row of a source before a run does, and lists what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from training.config.data import DataSource
from training.data.encode import EncodeOptions, RecordEncoder, content_key
from training.data.files import resolve
from training.data.formats import STAGE_KINDS, Chat, Kind, Prompt, Record, Text, kind_for
from training.data.messages import Message, RowError
from training.data.preferences import Pair
from training.data.records import Placed, Problem, SourceRows, detect, open_source
from training.data.report import Report, refuse_losses
from training.data.template import TextCodec
from training.errors import DataError


@dataclass
class CheckResult:
    """problems: rows that a run would refuse; warnings: rows that it would take, but that look wrong. unused: rows that
    have a field of which nothing is made; tools: rows that need a chat template with a place for tools."""

    format: str = ""
    kind: Kind | None = None
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    tools: int = 0

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
    format = detect(files, source) if source.format == "auto" else source.format
    kind = kind_for(format, stages_for(format)[0])
    return SourceRows(source, files, format, kind)


def check_rows(
    rows: SourceRows, codec: TextCodec | None = None, max_length: int | None = None, max_left_out: float = 1.0
) -> CheckResult:
    """Checks each row by itself, exact repetitions, and (with a codec) all that a run would refuse."""
    result = CheckResult(rows.format, rows.kind)
    seen: dict[int, str] = {}
    special = codec.special_words if codec else ()
    trial = Trial(codec, max_length) if codec else None
    try:
        for item in rows:
            result.rows += 1
            if isinstance(item, Problem):
                result.problems.append(item)
                continue
            if trial:
                result.problems += trial(item)
            result.warnings += _odd(item, seen)
            result.warnings += _special(item, special)
            result.unused.update(item.rest)
            result.tools += bool(getattr(item.record, "tools", ()))
    except DataError as error:  # the rest of the file can't be read
        result.problems.append(Problem("", str(error)))
    if trial and max_length:
        result.problems += trial.losses(rows, result, max_left_out)
    return result


class Trial:
    """Rows made into documents as a run does, to see which it would refuse."""

    def __init__(self, codec: TextCodec, max_length: int | None) -> None:
        self.max_length = max_length
        self.encoder = RecordEncoder(codec, EncodeOptions(max_length or 1 << 60, "truncate"))
        self.counts: Counter[str] = Counter()
        self.longest = 0

    def __call__(self, item: Placed) -> Iterator[Problem]:
        (made,) = self.encoder.encode([item.record])
        if isinstance(made, str):
            yield Problem(item.raw.place, made)
            return
        longest = max(map(len, made))
        self.longest = max(self.longest, longest)
        if not isinstance(item.record, Prompt) and not self.encoder.fit(
            made, isinstance(item.record, Pair), self.counts
        ):
            yield Problem(
                item.raw.place, "nothing is left to learn" + (" within max_length" if self.max_length else "")
            )
        elif self.max_length and longest > self.max_length:
            yield Problem(item.raw.place, f"is too long: {longest:,} tokens, over max_length {self.max_length:,}")

    def losses(self, rows: SourceRows, result: CheckResult, limit: float) -> Iterator[Problem]:
        counts = {name: self.counts[name] for name in ("unlearnable", "answers", "lost", "truncated")}
        report = Report(rows.source.path, rows.format, result.rows, 0, 0, 0, longest=self.longest, **counts)
        try:
            refuse_losses(report, limit, self.max_length or 0)
        except DataError as error:
            yield Problem("", str(error))


def token_lengths(record: Record, codec: TextCodec) -> list[int]:
    """Tokens of each document that the record makes."""
    if isinstance(record, Text):
        return [len(codec.encode_text(record.text))]
    if isinstance(record, Prompt):
        return [len(codec.encode_prompt(record.messages, record.tools))]
    talks = conversations(record)
    return [len(encoded) for encoded in codec.encode_chats(talks, [record.tools] * len(talks))]


def conversations(record: Chat | Pair) -> list[list[Message]]:
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
        acts = "acts as one" if isinstance(item.record, Text) else "is read as plain text"
        yield Problem(item.raw.place, f"its text holds the special token {found[0]}, which {acts}")
