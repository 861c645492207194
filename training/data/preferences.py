"""Reads rows that compare two answers, in the spellings of the public preference sets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.messages import (
    TURN_KEYS,
    Message,
    Row,
    RowError,
    article,
    check_turns,
    field_names,
    history_turns,
    read_message,
    read_messages,
    read_tools,
    text_of,
    with_system,
)

ASK_KEYS = ("instruction", "query", "prompt", "question")
EXTRA_KEYS = ("input", "context")
"""What a question comes with, under it."""
ANSWERS = (("chosen", "rejected"), ("response_chosen", "response_rejected"))
_SCORES = (
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
)
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


@dataclass(frozen=True)
class Pair:
    """Two answers to one conversation; margin: by how much `chosen` should win (0 = not said)."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float = 0.0
    tools: tuple[Any, ...] = ()


def answer_names(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The fields that hold the better and the worse answer; "" twice where `output` holds both."""
    for names in ANSWERS:
        if all(name in row for name in names):
            return names
    output = row.get("output")
    return ("", "") if isinstance(output, list) and len(output) == 2 else None


def read_pair(row: Row) -> Pair:
    """Answers as texts, turns or whole conversations; the question beside them, or before them."""
    names = answer_names(row)
    if names is None:
        raise RowError(f"has no chosen and rejected; its fields are {field_names(row)}")
    if names == ("", ""):
        both = row["output"]
        names = ("output[0]", "output[1]")
    else:
        both = [row[name] for name in names]
    one, other = (_turns(value, name) for value, name in zip(both, names, strict=True))
    bare = [turns[0]["role"] == "assistant" for turns in (one, other)]
    if bare[0] != bare[1]:
        raise RowError(f"{names[0]} and {names[1]} must both be answers, or both whole conversations")
    prompt = _question(row) if all(bare) else _common(row, one, other, names)
    for name, turns in zip(names, (one, other), strict=True):
        if turns[-1]["role"] != "assistant":
            raise RowError(f"{name} does not end with an answer of the assistant")
        if len(turns) > 1 and turns[0]["role"] == "assistant":
            raise RowError(f"{name} goes on for {len(turns)} turns after the question; only one answer can be compared")
        if turns[-1].get("tool_calls"):
            raise RowError(f"{name} calls a tool; only answers in words can be compared")
    prompt = with_system(prompt, row)
    chosen, rejected = text_of(one[-1]["content"], names[0]), text_of(other[-1]["content"], names[1])
    _check_scores(row)
    return Pair(check_turns(prompt, ends_with="user"), chosen, rejected, _margin(row), read_tools(row))


def split_transcripts(chosen: str, rejected: str) -> Pair:
    """hh-rlhf: the common leading turns are the prompt; the first differing assistant turn of each is its answer."""
    one, other = transcript_turns(chosen, "chosen"), transcript_turns(rejected, "rejected")
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
        prompt, text_of(one[common]["content"], "chosen answer"), text_of(other[common]["content"], "rejected answer")
    )


def ask_turns(row: Row, ask: str) -> list[Message]:
    """The conversation that the field `ask` holds: turns, a transcript, or a question with what comes under it."""
    value = row[ask]
    if isinstance(value, list):
        return [*history_turns(row), *read_messages(value, ask)]
    question = text_of(value, ask)
    if TRANSCRIPT.match(question):
        turns = transcript_turns(question, ask)
        if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
            turns.pop()  # "… \n\nAssistant:" asks for the answer
        return [*history_turns(row), *turns]
    for key in EXTRA_KEYS:
        extra = row.get(key)
        if extra is not None and not isinstance(extra, str):
            raise RowError(f"{key} is {article(extra)}, expected text")
        if extra and extra.strip():
            question = f"{question}\n{extra}"
    return [*history_turns(row), {"role": "user", "content": question}]


def transcript_turns(transcript: str, name: str) -> list[Message]:
    """The turns of "\\n\\nHuman: … \\n\\nAssistant: …"."""
    marks = list(TRANSCRIPT.finditer(transcript))
    if not marks or transcript[: marks[0].start()].strip():
        raise RowError(f"{name} is not a transcript that begins with 'Human:'")
    ends = [mark.start() for mark in marks[1:]] + [len(transcript)]
    return [
        {"role": "user" if mark[1] == "Human" else "assistant", "content": transcript[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def _turns(value: Any, name: str) -> list[Message]:
    """An answer as turns: a text or one turn is the assistant's."""
    if isinstance(value, list):
        return read_messages(value, name)
    if isinstance(value, Mapping):
        message = read_message(value, name)
        if message["role"] != "assistant":
            raise RowError(f"{name} is the {message['role']}'s turn, expected the assistant's")
        return [message]
    return [{"role": "assistant", "content": text_of(value, name)}]


def _question(row: Row) -> list[Message]:
    """The conversation before the answers, from the row's other fields."""
    ask = next((key for key in ASK_KEYS if row.get(key)), None)
    key = next((key for key in TURN_KEYS if isinstance(row.get(key), list)), None)
    if key is None:
        if ask is None:
            raise RowError(f"has no prompt; its fields are {field_names(row)}")
        return ask_turns(row, ask)
    turns = read_messages(row[key], key)
    if ask is not None and not _says(turns, row[ask]):
        raise RowError(f"has two prompts, {ask} and {key}, and they differ: remove one")
    return turns


def _common(row: Row, one: Sequence[Message], other: Sequence[Message], names: tuple[str, str]) -> list[Message]:
    """The conversation that both answers end, where each is given whole."""
    if one[:-1] != other[:-1]:
        raise RowError(f"{names[0]} and {names[1]} must be the same conversation up to the last turn")
    ask = next((key for key in ASK_KEYS if row.get(key)), None)
    if ask is not None and not _says(one[:-1], row[ask]):
        raise RowError(f"{ask} is not what {names[0]} and {names[1]} answer: remove one of them")
    key = next((key for key in TURN_KEYS if isinstance(row.get(key), list)), None)
    if key is not None and read_messages(row[key], key) not in (list(one), list(one[:-1])):
        raise RowError(f"{key} is another conversation than {names[0]} and {names[1]}: remove one of them")
    return list(one[:-1])


def _says(turns: Sequence[Message], asked: Any) -> bool:
    """Whether `asked` (a text or turns) is already in these turns."""
    if isinstance(asked, list):
        return read_messages(asked, "prompt") == list(turns)
    return any(turn["role"] == "user" and turn["content"].strip() == str(asked).strip() for turn in turns)


def _check_scores(row: Row) -> None:
    """Scores are not used, but they must not say that the wrong answer is the better one."""
    for names in _SCORES:
        values = [row.get(name) for name in names]
        if any(value is None for value in values):
            continue
        better, worse = (_number(value, name) for value, name in zip(values, names, strict=True))
        if worse > better:
            raise RowError(
                f"the rejected answer has the better score ({names[0]} {better:g}, {names[1]} {worse:g}); "
                "swap the answers, or leave such rows out with data.bad_rows: skip"
            )


def _margin(row: Row) -> float:
    value = row.get("margin")
    margin = 0.0 if value is None else _number(value, "margin")
    if margin < 0:
        raise RowError(f"margin is {margin:g}: below 0 it would make the rejected answer win; swap the answers")
    return margin


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{name} is {value!r}, expected a finite number")
    return float(value)
