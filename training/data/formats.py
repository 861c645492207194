"""Understands rows: names their format and turns each into a conversation, a pair, a prompt or a text. Pure functions.

| format            | row                                                                                       |
| ----------------- | ----------------------------------------------------------------------------------------- |
| alpaca            | instruction, [input], output (also: query/prompt/question + response/completion/answer(s)), |
|                   | [context], [system], [history]                                                            |
| prompt-completion | prompt and completion as lists of turns: only the completion is learned                   |
| sharegpt, messages | conversations [{from, value}] or messages [{role, content}], [system], [tools]           |
| rm-static         | prompt, chosen, rejected; or instruction, [input], output [better, worse]                 |
| hh-rlhf           | chosen, rejected: transcripts of "\\n\\nHuman: …\\n\\nAssistant: …"                        |
| dpo               | chosen, rejected as turns or whole conversations; the prompt beside or within them        |
| prompt            | instruction or prompt alone                                                               |
| text              | text (or a plain string)                                                                  |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.data.messages import (
    MEDIA,
    SYSTEM_KEYS,
    TURN_KEYS,
    Message,
    Row,
    RowError,
    article,
    check_turns,
    field_names,
    read_messages,
    read_tools,
    text_of,
    with_system,
)
from training.data.preferences import (
    ASK_KEYS,
    EXTRA_KEYS,
    TRANSCRIPT,
    Pair,
    answer_names,
    ask_turns,
    read_pair,
    split_transcripts,
)

Kind = Literal["chat", "pair", "prompt", "text"]
_NATURAL: dict[str, tuple[Kind, ...]] = {
    "alpaca": ("chat", "prompt"),
    "prompt-completion": ("chat", "prompt"),
    "sharegpt": ("chat", "prompt"),
    "messages": ("chat", "prompt"),
    "rm-static": ("pair", "prompt"),
    "hh-rlhf": ("pair", "prompt"),
    "dpo": ("pair", "prompt"),
    "prompt": ("prompt",),
    "text": ("text",),
}
FORMATS = tuple(_NATURAL)
STAGE_KINDS: dict[str, tuple[Kind, ...]] = {
    "pt": ("text",),
    "sft": ("chat", "text"),
    "rm": ("pair",),
    "dpo": ("pair",),
    "ppo": ("prompt",),
    "grpo": ("prompt",),
}
_ANSWER_KEYS = ("output", "response", "completion", "answer", "answers")
_MEANINGFUL = ("tools", "functions", "history", *EXTRA_KEYS, *SYSTEM_KEYS)
"""Fields that change what a conversation says: never left out without a word."""


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with the assistant. tools: what it may call, in OpenAI's form."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A conversation that the assistant is to continue; fields: what else the row says."""

    messages: tuple[Message, ...]
    fields: dict[str, Any] = field(default_factory=dict)
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Text:
    text: str


Record = Chat | Pair | Prompt | Text


def detect_format(rows: Iterable[Any]) -> str | None:
    """The format that the most of these rows have; None when no row looks like any."""
    votes: dict[str, int] = {}
    for row in rows:
        name = format_of(row)
        if name:
            votes[name] = votes.get(name, 0) + 1
    return max(votes, key=lambda name: votes[name]) if votes else None


def format_of(row: Any) -> str | None:
    """The format of one row, from its keys."""
    if isinstance(row, str):
        return "text"
    if not isinstance(row, Mapping):
        return None
    turns = next((key for key in TURN_KEYS if isinstance(row.get(key), list)), None)
    ask = next((key for key in ASK_KEYS if key in row), None)
    answers = answer_names(row)
    if answers:
        chosen = row.get(answers[0]) if answers[0] else ""
        if turns or isinstance(chosen, list | dict):
            return "dpo"
        if ask:
            return "rm-static"
        return "hh-rlhf" if isinstance(chosen, str) and TRANSCRIPT.search(chosen) else None
    if turns:
        return "messages" if turns == "messages" else "sharegpt"
    answer = next((key for key in _ANSWER_KEYS if key in row), None)
    if ask and answer:
        as_turns = isinstance(row[ask], list) or (answer == "completion" and isinstance(row[answer], list))
        return "prompt-completion" if as_turns else "alpaca"
    if ask:
        return "prompt"
    return "text" if "text" in row else None


def kind_for(format: str, stage: str) -> Kind:
    """What a stage makes of a format. Raises RowError when it can make nothing of it."""
    for kind in STAGE_KINDS[stage]:
        if kind in _NATURAL[format]:
            return kind
    needs = {
        "pt": "plain text (`text`)",
        "sft": "conversations with answers (`instruction, output`, `conversations` or `messages`)",
        "rm": "pairs (`chosen` and `rejected`)",
        "dpo": "pairs (`chosen` and `rejected`)",
        "ppo": "prompts (`instruction` or `prompt`, or conversations)",
        "grpo": "prompts (`instruction` or `prompt`, or conversations)",
    }[stage]
    raise RowError(f"the rows are of format {format!r}; stage {stage} needs {needs}")


def parse_row(value: Any, format: str, kind: Kind) -> Record:
    """One row as a record of the wanted kind. Raises RowError saying what is wrong with it."""
    return parse_with_rest(value, format, kind)[0]


def parse_with_rest(value: Any, format: str, kind: Kind) -> tuple[Record, tuple[str, ...]]:
    """The record, and the names of the row's fields that are not in it.

    Raises RowError also for a field that changes the row's meaning and that nothing is made of.
    """
    if format == "text" and isinstance(value, str):
        return Text(text_of(value, "text")), ()
    if not isinstance(value, Mapping):
        raise RowError(f"is {article(value)}, expected an object with named fields")
    row = Row(value)
    record = _parse(row, format, kind)
    rest = row.unread()
    for name in MEDIA:
        if name in rest:
            raise RowError(f"has {name}, which a text model can't see; drop them with ignore: [{name}]")
    if kind in ("chat", "pair"):
        for name in _MEANINGFUL:
            if name in rest:
                raise RowError(
                    f"has {name}, which format {format!r} does not read; put it into the turns, or leave it out on "
                    f"purpose with ignore: [{name}]"
                )
    return record, () if isinstance(record, Prompt) else rest


def _parse(row: Row, format: str, kind: Kind) -> Record:
    if format == "text":
        if "text" not in row:
            raise RowError(f"has no text; its fields are {field_names(row)}")
        return Text(text_of(row["text"], "text"))
    if format in ("alpaca", "prompt", "prompt-completion"):
        return _alpaca(row, kind)
    if format in ("sharegpt", "messages"):
        return _conversation(row, kind)
    if format == "hh-rlhf":
        for name in ("chosen", "rejected"):
            if name not in row:
                raise RowError(f"has no {name}; its fields are {field_names(row)}")
        pair = split_transcripts(text_of(row["chosen"], "chosen"), text_of(row["rejected"], "rejected"))
    elif format in ("rm-static", "dpo"):
        pair = read_pair(row)
    else:
        raise RowError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if kind == "prompt":
        fields = {str(name): value for name, value in row.items() if name not in (*TURN_KEYS, *ASK_KEYS)}
        return Prompt(pair.prompt, fields, pair.tools)
    if pair.chosen.strip() == pair.rejected.strip():
        raise RowError("chosen and rejected are identical: nothing can be learned from it")
    return pair


def _alpaca(row: Row, kind: Kind) -> Chat | Prompt:
    ask = next((key for key in ASK_KEYS if key in row), None)
    if ask is None:
        raise RowError(f"has no {' / '.join(ASK_KEYS)}; its fields are {field_names(row)}")
    messages = with_system(ask_turns(row, ask), row)
    tools = read_tools(row)
    if kind == "prompt":
        return Prompt(check_turns(messages, ends_with="user"), row.rest(), tools)
    key = next((key for key in _ANSWER_KEYS if key in row), None)
    if key is None:
        raise RowError(f"has no {' / '.join(_ANSWER_KEYS)}; its fields are {field_names(row)}")
    if isinstance(row[ask], list):  # what comes before the completion is read, not learned
        messages = [{**m, "learn": False} if m["role"] == "assistant" else m for m in messages]
    answers = _answer(row[key], key)
    return Chat(check_turns([*messages, *answers], ends_with="assistant"), tools)


def _answer(value: Any, key: str) -> list[Message]:
    if key == "answers":  # SQuAD: {"text": […], "answer_start": […]}
        texts = value.get("text") if isinstance(value, Mapping) else value
        if not isinstance(texts, list) or not texts:
            raise RowError("answers holds no answer")
        value = texts[0]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return read_messages(value, key)
    if isinstance(value, list):
        raise RowError(f"{key} is a list; two answers are a pair, for rm or dpo (format: rm-static)")
    return [{"role": "assistant", "content": text_of(value, key)}]


def _conversation(row: Row, kind: Kind) -> Chat | Prompt:
    key = next((key for key in TURN_KEYS if key in row), None)
    if key is None:
        raise RowError(f"has no {' / '.join(TURN_KEYS)}; its fields are {field_names(row)}")
    messages, tools = with_system(read_messages(row[key], key), row), read_tools(row)
    if kind == "chat":
        return Chat(check_turns(messages, ends_with="assistant"), tools)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return Prompt(check_turns(messages, ends_with="user"), row.rest(), tools)
