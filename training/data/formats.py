"""Understands rows: names their format and turns each into a conversation, a pair, a prompt or a text. Pure functions.

| format            | row                                                                                       |
| ----------------- | ----------------------------------------------------------------------------------------- |
| alpaca            | instruction, [input], output (also: query/prompt + response/completion), [system, history] |
| sharegpt, messages | conversations [{from, value}] or messages [{role, content}]                              |
| rm-static         | prompt, [response], chosen, rejected                                                      |
| hh-rlhf           | chosen, rejected: transcripts of "\\n\\nHuman: …\\n\\nAssistant: …"                        |
| dpo               | conversations or messages, chosen, rejected (a turn, a string, or a list of turns)         |
| prompt            | instruction or prompt alone                                                               |
| text              | text (or a plain string)                                                                  |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["chat", "pair", "prompt", "text"]
Message = dict[str, str]
FORMATS = ("alpaca", "sharegpt", "messages", "rm-static", "hh-rlhf", "dpo", "prompt", "text")
STAGE_KINDS: dict[str, tuple[Kind, ...]] = {
    "pt": ("text",),
    "sft": ("chat", "text"),
    "rm": ("pair",),
    "dpo": ("pair",),
    "ppo": ("prompt",),
}
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_INSTRUCTION_KEYS = ("instruction", "query", "prompt", "question")
_ANSWER_KEYS = ("output", "response", "completion", "answer")
_TURN_KEYS = ("conversations", "messages", "conversation")
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


class RowError(ValueError):
    """What is wrong with one row, as a sentence without its place."""


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with the assistant."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Pair:
    """Two answers to one conversation; margin: by how much `chosen` should win (0 = not said)."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float = 0.0


@dataclass(frozen=True)
class Prompt:
    """A conversation that the assistant is to continue; fields: what else the row says."""

    messages: tuple[Message, ...]
    fields: dict[str, Any] = field(default_factory=dict)


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
    turns = next((key for key in _TURN_KEYS if isinstance(row.get(key), list)), None)
    if "chosen" in row and "rejected" in row:
        if turns or isinstance(row["chosen"], list):
            return "dpo"
        if any(key in row for key in _INSTRUCTION_KEYS):
            return "rm-static"
        return "hh-rlhf" if isinstance(row["chosen"], str) and _TRANSCRIPT.search(row["chosen"]) else None
    if turns:
        return "messages" if turns == "messages" else "sharegpt"
    asks = any(key in row for key in _INSTRUCTION_KEYS)
    if asks and any(key in row for key in _ANSWER_KEYS):
        return "alpaca"
    if asks:
        return "prompt"
    return "text" if "text" in row else None


def kind_for(format: str, stage: str) -> Kind:
    """What a stage makes of a format. Raises RowError when it can make nothing of it."""
    kinds = STAGE_KINDS[stage]
    natural: dict[str, tuple[Kind, ...]] = {
        "alpaca": ("chat", "prompt"),
        "sharegpt": ("chat", "prompt"),
        "messages": ("chat", "prompt"),
        "rm-static": ("pair", "prompt"),
        "hh-rlhf": ("pair", "prompt"),
        "dpo": ("pair", "prompt"),
        "prompt": ("prompt",),
        "text": ("text",),
    }
    for kind in kinds:
        if kind in natural[format]:
            return kind
    needs = {
        "pt": "plain text (`text`)",
        "sft": "conversations with answers (`instruction, output`, `conversations` or `messages`)",
        "rm": "pairs (`chosen` and `rejected`)",
        "dpo": "pairs (`chosen` and `rejected`)",
        "ppo": "prompts (`instruction` or `prompt`, or conversations)",
    }[stage]
    raise RowError(f"the rows are of format {format!r}; stage {stage} needs {needs}")


def parse_row(row: Any, format: str, kind: Kind) -> Record:
    """One row as a record of the wanted kind. Raises RowError saying what is wrong with it."""
    if format == "text":
        return Text(_text(row if isinstance(row, str) else _member(row, "text"), "text"))
    if not isinstance(row, Mapping):
        raise RowError(f"is {_article(row)}, expected an object with named fields")
    if format in ("alpaca", "prompt"):
        record: Record = _alpaca(row, kind)
    elif format in ("sharegpt", "messages"):
        record = _conversation(row, kind)
    elif format == "rm-static":
        record = _rm_static(row)
    elif format == "hh-rlhf":
        record = split_transcripts(_text(_member(row, "chosen"), "chosen"), _text(_member(row, "rejected"), "rejected"))
    elif format == "dpo":
        record = _dpo(row)
    else:
        raise RowError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if isinstance(record, Pair):
        if kind == "prompt":
            return Prompt(record.prompt, _other_fields(row, (*_TURN_KEYS, *_INSTRUCTION_KEYS)))
        if record.chosen.strip() == record.rejected.strip():
            raise RowError("chosen and rejected are identical: nothing can be learned from it")
    return record


def split_transcripts(chosen: str, rejected: str) -> Pair:
    """hh-rlhf: the common leading turns are the prompt; the first differing assistant turn of each is its answer."""
    one, other = _turns_of(chosen, "chosen"), _turns_of(rejected, "rejected")
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    if common == len(one) == len(other):
        raise RowError("chosen and rejected are identical: nothing can be learned from it")
    if common == 0:
        raise RowError("chosen and rejected begin with different questions")
    if common >= min(len(one), len(other)):
        raise RowError("one transcript is the beginning of the other: there is no second answer")
    if one[common]["role"] != "assistant" or other[common]["role"] != "assistant":
        raise RowError(f"the transcripts first differ in turn {common + 1}, which is not an answer of the assistant")
    prompt = check_turns(one[:common], ends_with="user")
    return Pair(
        prompt, _text(one[common]["content"], "chosen answer"), _text(other[common]["content"], "rejected answer")
    )


def check_turns(messages: Sequence[Message], *, ends_with: str) -> tuple[Message, ...]:
    """The turns, if they alternate user, assistant (after an optional system) and end as they must."""
    turns = list(messages)
    body = turns[1:] if turns and turns[0]["role"] == "system" else turns
    if not body:
        raise RowError("has no turns")
    offset = len(turns) - len(body)
    for number, turn in enumerate(body):
        expected = "user" if number % 2 == 0 else "assistant"
        if turn["role"] != expected:
            place = f"turn {number + offset + 1}"
            if turn["role"] == "system":
                raise RowError(f"{place} is a system message; only the first turn can be")
            raise RowError(f"{place} is the {turn['role']}'s, expected the {expected}'s: turns must alternate")
        if not turn["content"].strip():
            raise RowError(f"turn {number + offset + 1} ({turn['role']}) is empty")
    if body[-1]["role"] != ends_with:
        reason = "nothing to learn" if ends_with == "assistant" else "nothing to answer"
        raise RowError(f"the last turn is the {body[-1]['role']}'s: {reason}")
    return tuple(turns)


def _alpaca(row: Mapping[str, Any], kind: Kind) -> Chat | Prompt:
    ask = next((key for key in _INSTRUCTION_KEYS if key in row), None)
    if ask is None:
        raise RowError(f"has no {_one_of(_INSTRUCTION_KEYS)}; its fields are {_names(row)}")
    question = _text(row[ask], ask)
    extra = row.get("input")
    if extra is not None and not isinstance(extra, str):
        raise RowError(f"input is {_article(extra)}, expected text")
    if extra and extra.strip():
        question = f"{question}\n{extra}"
    messages: list[Message] = []
    if isinstance(row.get("system"), str) and row["system"].strip():
        messages.append({"role": "system", "content": row["system"]})
    for turn in row.get("history") or []:
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise RowError("history must be a list of [question, answer]")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    messages.append({"role": "user", "content": question})
    if kind == "prompt":
        return Prompt(check_turns(messages, ends_with="user"), _other_fields(row, (ask, "input", "system", "history")))
    answer = next((key for key in _ANSWER_KEYS if key in row), None)
    if answer is None:
        raise RowError(f"has no {_one_of(_ANSWER_KEYS)}; its fields are {_names(row)}")
    messages.append({"role": "assistant", "content": _text(row[answer], answer)})
    return Chat(check_turns(messages, ends_with="assistant"))


def _conversation(row: Mapping[str, Any], kind: Kind) -> Chat | Prompt:
    messages = _turns(row)
    if kind == "chat":
        return Chat(check_turns(messages, ends_with="assistant"))
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return Prompt(check_turns(messages, ends_with="user"), _other_fields(row, _TURN_KEYS))


def _rm_static(row: Mapping[str, Any]) -> Pair:
    ask = next((key for key in _INSTRUCTION_KEYS if key in row), None)
    if ask is None:
        raise RowError(f"has no prompt; its fields are {_names(row)}")
    if isinstance(row[ask], list):
        prompt = _messages(row[ask], ask)
    else:
        text = _text(row[ask], ask)
        extra = row.get("input")
        if _TRANSCRIPT.match(text):
            prompt = _turns_of(text, ask)
            if prompt and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"].strip():
                prompt.pop()  # "… \n\nAssistant:" asks for the answer
        else:
            question = f"{text}\n{extra}" if isinstance(extra, str) and extra.strip() else text
            prompt = [{"role": "user", "content": question}]
    return Pair(check_turns(prompt, ends_with="user"), _answer(row, "chosen"), _answer(row, "rejected"), _margin(row))


def _dpo(row: Mapping[str, Any]) -> Pair:
    if any(isinstance(row.get(key), list) for key in _TURN_KEYS):
        prompt = check_turns(_turns(row), ends_with="user")
        return Pair(prompt, _answer(row, "chosen"), _answer(row, "rejected"), _margin(row))
    one, other = _messages(row.get("chosen"), "chosen"), _messages(row.get("rejected"), "rejected")
    if not one or not other or one[:-1] != other[:-1]:
        raise RowError("chosen and rejected must be the same conversation up to the last turn")
    for name, turns in (("chosen", one), ("rejected", other)):
        if turns[-1]["role"] != "assistant":
            raise RowError(f"{name} does not end with an answer of the assistant")
    return Pair(
        check_turns(one[:-1], ends_with="user"),
        _text(one[-1]["content"], "chosen"),
        _text(other[-1]["content"], "rejected"),
        _margin(row),
    )


def _turns(row: Mapping[str, Any]) -> list[Message]:
    key = next((key for key in _TURN_KEYS if key in row), None)
    if key is None:
        raise RowError(f"has no {_one_of(_TURN_KEYS)}; its fields are {_names(row)}")
    messages = _messages(row[key], key)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} is {_article(value) if value else 'empty'}, expected a list of turns")
    return [_message(turn, f"{name}[{number}]") for number, turn in enumerate(value)]


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{name} is {_article(turn)}, expected {{role, content}} or {{from, value}}")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if role is None or content is None:
        raise RowError(f"{name} lacks {'its role' if role is None else 'its text'}; its fields are {_names(turn)}")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        known = "system, user/human, assistant/gpt"
        raise RowError(f"{name} has the unknown role {role!r}; known roles: {known}")
    if not isinstance(content, str):
        raise RowError(f"the text of {name} is {_article(content)}, expected text")
    return {"role": _ROLES[role.lower()], "content": _encodable(content, f"the text of {name}")}


def _answer(row: Mapping[str, Any], name: str) -> str:
    value = _member(row, name)
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        message = _message(value, name)
        if message["role"] != "assistant":
            raise RowError(f"{name} is the {message['role']}'s turn, expected the assistant's")
        value = message["content"]
    return _text(value, name)


def _margin(row: Mapping[str, Any]) -> float:
    value = row.get("margin")
    if value is None and "chosen_score" in row and "rejected_score" in row:
        scores = (row["chosen_score"], row["rejected_score"])
        if all(isinstance(score, int | float) for score in scores):
            value = scores[0] - scores[1]
    if value is None:
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise RowError(f"margin is {value!r}, expected a number")
    return float(value)


def _turns_of(transcript: str, name: str) -> list[Message]:
    marks = list(_TRANSCRIPT.finditer(transcript))
    if not marks or transcript[: marks[0].start()].strip():
        raise RowError(f"{name} is not a transcript that begins with 'Human:'")
    ends = [mark.start() for mark in marks[1:]] + [len(transcript)]
    return [
        {"role": "user" if mark[1] == "Human" else "assistant", "content": transcript[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def _member(row: Any, name: str) -> Any:
    if not isinstance(row, Mapping):
        raise RowError(f"is {_article(row)}, expected an object with {name}")
    if name not in row:
        raise RowError(f"has no {name}; its fields are {_names(row)}")
    return row[name]


def _text(value: Any, name: str) -> str:
    if value is None:
        raise RowError(f"{name} is null")
    if not isinstance(value, str):
        raise RowError(f"{name} is {_article(value)}, expected text")
    if not value.strip():
        raise RowError(f"{name} is empty")
    return _encodable(value, name)


def _encodable(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(
            f"{name} holds half of a surrogate pair (a broken \\u escape), which is not valid text"
        ) from None
    return value


def _other_fields(row: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
    known = set(used)
    return {str(key): value for key, value in row.items() if key not in known}


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(str(key) for key in list(row)[:8]) or "none"


def _one_of(names: Sequence[str]) -> str:
    return " / ".join(names)


def _article(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
