"""Reads the turns of a conversation as the world's data sets write them: roles, parts, tool calls, which turns count.

A message is {"role": "system" | "user" | "assistant" | "tool", "content": str}; an assistant's may have `tool_calls`
(OpenAI's form, arguments as an object), a tool's a `name`. `learn: False` marks an answer that is read, not learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Message = dict[str, Any]
TURN_KEYS = ("conversations", "messages", "conversation")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""What a text model can't see: rows that bring any are refused."""
SYSTEM_KEYS = ("system", "system_prompt")
_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
_CALLS = ("function_call", "tool_call")
_LEARN = ("weight", "train", "loss")
_REASONING = ("reasoning_content", "reasoning", "thinking")


class RowError(ValueError):
    """What is wrong with one row, as a sentence without its place."""


class Row(Mapping[str, Any]):
    """A row that remembers which of its fields were looked at, so that none is lost without a word."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def rest(self) -> dict[str, Any]:
        """Fields that nobody asked for."""
        return {str(name): value for name, value in self._values.items() if name not in self._read}

    def unread(self) -> tuple[str, ...]:
        """Names of the fields with something in them that nobody asked for."""
        empty: tuple[Any, ...] = (None, "", [], {})
        return tuple(name for name, value in self.rest().items() if value not in empty)


def read_messages(value: Any, name: str) -> list[Message]:
    """A list of turns in any of the known spellings."""
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} is {article(value) if value else 'empty'}, expected a list of turns")
    return [read_message(turn, f"{name}[{number}]") for number, turn in enumerate(value)]


def read_message(turn: Any, name: str) -> Message:
    """One turn: {role, content}, {from, value}, with OpenAI's parts, tool calls and weights."""
    if not isinstance(turn, Mapping):
        raise RowError(f"{name} is {article(turn)}, expected {{role, content}} or {{from, value}}")
    for key in MEDIA:
        if turn.get(key):
            raise RowError(f"{name} has {key}, which a text model can't see")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    calls = _tool_calls(turn, name)
    if role is None or (content is None and not calls):
        raise RowError(f"{name} lacks {'its role' if role is None else 'its text'}; its fields are {field_names(turn)}")
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise RowError(f"{name} has the unknown role {role!r}; known roles: system, user/human, assistant/gpt, tool")
    if role.lower() in _CALLS:
        calls, content = _calls_in_text(content, name), ""
    message: Message = {"role": _ROLES[role.lower()], "content": _content(content, f"the text of {name}")}
    if message["role"] == "assistant":
        thought = next((turn[key] for key in _REASONING if isinstance(turn.get(key), str) and turn[key].strip()), "")
        if thought and "</think>" not in message["content"]:
            message["content"] = f"<think>\n{thought.strip()}\n</think>\n\n{message['content']}"
        if calls:
            message["tool_calls"] = calls
        if not _learned(turn, name):
            message["learn"] = False
    elif calls:
        raise RowError(f"{name} is the {message['role']}'s turn, but calls tools: only the assistant can")
    if message["role"] == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    return message


def check_turns(messages: Sequence[Message], *, ends_with: str) -> tuple[Message, ...]:
    """The turns, if they alternate user, assistant (after an optional system) and end as they must.

    A tool's turns follow the assistant's that called it, and are followed by the assistant again.
    """
    turns = list(messages)
    body = turns[1:] if turns and turns[0]["role"] == "system" else turns
    if not body:
        raise RowError("has no turns")
    offset, before = len(turns) - len(body) + 1, ""
    follows = {"": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
    for number, turn in enumerate(body):
        role, place = turn["role"], f"turn {number + offset}"
        if role == "system":
            raise RowError(f"{place} is a system message; only the first turn can be")
        if role not in follows[before]:
            expected = follows[before][0]
            raise RowError(f"{place} is the {role}'s, expected the {expected}'s: turns must alternate")
        if not turn["content"].strip() and not turn.get("tool_calls") and role != "tool":
            raise RowError(f"{place} ({role}) is empty")
        before = role
    if ends_with == "user" and before == "tool":
        return tuple(turns)  # the assistant is to go on with what the tool said
    if before != ends_with:
        reason = "nothing to learn" if ends_with == "assistant" else "nothing to answer"
        raise RowError(f"the last turn is the {before}'s: {reason}")
    return tuple(turns)


def with_system(messages: list[Message], row: Row) -> list[Message]:
    """The turns after the system message that the row has in a field of its own."""
    for key in SYSTEM_KEYS:
        system = row.get(key)
        if system is None or system == "":
            continue
        system = text_of(system, key)
        if messages and messages[0]["role"] == "system":
            if messages[0]["content"].strip() != system.strip():
                raise RowError(f"has two system messages: {key}, and the first turn")
            return messages
        return [{"role": "system", "content": system}, *messages]
    return messages


def history_turns(row: Row) -> list[Message]:
    """Earlier turns given as `history`: a list of [question, answer]."""
    turns: list[Message] = []
    for turn in row.get("history") or []:
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise RowError("history must be a list of [question, answer]")
        turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return turns


def read_tools(row: Row) -> tuple[Any, ...]:
    """The functions that the assistant may call, in OpenAI's form; a JSON text or a list in the row."""
    value = row.get("tools") or row.get("functions")
    if not value:
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError("tools is text that is not valid JSON") from None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError(f"tools is {article(value)}, expected a list of functions")
    return tuple(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in value)


def _learned(turn: Mapping[str, Any], name: str) -> bool:
    for key in _LEARN:
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise RowError(f"{key} of {name} is {value!r}: give 0 or 1 (false or true), a turn is learned or it isn't")
        return bool(value)
    return True


def _content(value: Any, name: str) -> str:
    """Text, or OpenAI's list of text parts."""
    if isinstance(value, list):
        for part in value:
            kind = part.get("type", "text") if isinstance(part, Mapping) else article(part)
            if kind != "text" or not isinstance(part.get("text"), str):
                raise RowError(f"{name} has a part of type {kind!r}; only text parts are possible")
        value = "".join(part["text"] for part in value)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise RowError(f"{name} is {article(value)}, expected text")
    return encodable(value, name)


def _tool_calls(turn: Mapping[str, Any], name: str) -> list[Any]:
    found = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if isinstance(found, str):
        return _calls_in_text(found, name)
    if not isinstance(found, list):
        raise RowError(f"tool_calls of {name} is {article(found)}, expected a list")
    return [_call(call, name) for call in found]


def _calls_in_text(value: Any, name: str) -> list[Any]:
    """Calls written as JSON, as LLaMA-Factory and ShareGPT do: one object, or a list of them."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise RowError(f"{name} calls a tool in text that is not valid JSON") from None
    return [_call(call, name) for call in (found if isinstance(found, list) else [found])]


def _call(call: Any, name: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RowError(f"a tool call of {name} has no name")
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            raise RowError(f"the arguments of {inner['name']} in {name} are not valid JSON") from None
    assert isinstance(call, Mapping)
    made: dict[str, Any] = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def text_of(value: Any, name: str) -> str:
    """`value` if it is text with something in it."""
    if value is None:
        raise RowError(f"{name} is null")
    if not isinstance(value, str):
        raise RowError(f"{name} is {article(value)}, expected text")
    if not value.strip():
        raise RowError(f"{name} is empty")
    return encodable(value, name)


def encodable(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(
            f"{name} holds half of a surrogate pair (a broken \\u escape), which is not valid text"
        ) from None
    return value


def field_names(row: Mapping[str, Any]) -> str:
    return ", ".join(str(key) for key in list(row)[:8]) or "none"


def article(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
