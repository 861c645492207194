"""Writes a conversation as one text in which each answer follows exactly what the model sees when it is to answer.

A template's `{% generation %}` marks say what the assistant said. Without them an answer begins where the template
asks for one (its generation prompt) and ends with its own words. Some templates write an answer differently once it is
past (Qwen3 leaves its reasoning out, Mistral moves the system message, DeepSeek-R1 cuts all before `</think>`). Then
the text is put together turn by turn: prompt, answer as it is generated, what leads to the next prompt, and so on; so
every answer is learned, reasoning included, after the prompt that inference gives. Earlier answers stay as they were
generated, as they do when a chat goes on in one context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.data.rendering import ChatTemplate, Messages, common_prefix, locate
from training.errors import DataError

_THINK = "<think>"


@dataclass(frozen=True)
class Turn:
    """An answer in the text, in characters: where it starts and where its own words end (its end token comes after).
    learn: whether it is to be learned."""

    start: int
    words_end: int
    learn: bool


@dataclass(frozen=True)
class Written:
    """text: as the template writes it, with placeholders; turns: the assistant's; unmarked: answers that should be
    learned but that the template's own marks leave out."""

    text: str
    turns: tuple[Turn, ...]
    unmarked: int = 0


def write(template: ChatTemplate, messages: Messages, tools: Sequence[Any] = (), *, end_text: str = "") -> Written:
    """See the module. end_text: what ends an answer that the template itself cuts. Raises DataError."""
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    plain = [{key: value for key, value in message.items() if key != "learn"} for message in messages]
    learn = [bool(messages[number].get("learn", True)) for number in answers]
    text, marks = template.render_marked(plain, tools)
    check_written(template, plain, text)
    if marks and all(locate(text, template.protect(messages[number]["content"])) for number in answers):
        return _by_marks(template, plain, tools, text, marks, answers, learn)
    forms = [_Answer(template, plain, tools, number, text) for number in answers]
    if all(form.stands_in(text) for form in forms):
        places = [(form.start, form.words_end) for form in forms]
    else:
        text, places = _joined(template, forms, end_text)
    return Written(text, tuple(Turn(*place, wanted) for place, wanted in zip(places, learn, strict=True)))


class _Answer:
    """One answer as the model generates it: `prompt`, then `words`, then `after`."""

    def __init__(
        self, template: ChatTemplate, messages: Messages, tools: Sequence[Any], number: int, whole: str
    ) -> None:
        message = messages[number]
        self.content = template.protect(message["content"])
        asked = template.render(messages[:number], tools, add_generation_prompt=True)
        last = number == len(messages) - 1
        self.through = whole if last else template.render(messages[: number + 1], tools)
        self.cut = False
        """The template leaves some of these words out even while they are the newest."""
        start = common_prefix(asked, self.through)
        if start < len(asked):  # the answer may begin like what the prompt goes on with
            start -= _shared(self.through[:start], self.content.strip())
        found = locate(self.through, self.content, start)
        if found is None:
            words = self.content.strip()
            if asked.rstrip().endswith(_THINK) and words.startswith(_THINK):
                words = words[len(_THINK) :].lstrip()
            self.prompt, self.start, self.words, self.after, self.cut = asked, len(asked), words, "", True
            self.words_end = self.start + len(words)
            return
        end = len(self.through.rstrip()) if message.get("tool_calls") else found[1]
        self.prompt, self.start, self.words_end = self.through[:start], start, end
        self.words, self.after = self.through[start:end], self.through[end:]

    def stands_in(self, text: str) -> bool:
        """Whether the whole conversation has this answer after the same prompt, in the same words."""
        return not self.cut and text.startswith(self.through[: self.words_end])

    def past(self, text: str, start: int) -> int | None:
        """Where this answer ends in a later prompt, in which the template may have shortened it."""
        for form in (self.words, self.content, self.content.rpartition("</think>")[2]):
            if form.strip() and (found := locate(text, form, start)):
                return found[1]
        return None


def _shared(before: str, words: str) -> int:
    """How many characters at the end of `before` are the beginning of `words`."""
    return next((size for size in range(min(len(words), len(before), 64), 0, -1) if before.endswith(words[:size])), 0)


def _joined(template: ChatTemplate, forms: Sequence[_Answer], end_text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text put together turn by turn, and where each answer and its words stand in it."""
    text, places = "", []
    for number, form in enumerate(forms):
        end: int | None = 0
        if number:
            before = forms[number - 1]
            end = before.past(form.prompt, common_prefix(before.prompt, form.prompt))
        if end is None:
            raise DataError(
                f"The chat template {template.name!r} leaves answer {number} out of what comes after it: the "
                "conversation can't be learned as one. Cut it after that answer, or choose another data.template."
            )
        text += form.prompt[end:]
        places.append((len(text), len(text) + len(form.words)))
        text += form.words
    return text + (forms[-1].after or end_text), places


def _by_marks(
    template: ChatTemplate, messages: Messages, tools: Sequence[Any], text: str, marks: list[tuple[int, int]],
    answers: Sequence[int], learn: Sequence[bool],
) -> Written:  # fmt: skip
    """Each mark belongs to the answer with which it first appears."""
    owners: list[int] = []
    if len(marks) == len(answers):
        owners = list(range(len(answers)))
    else:
        for order, number in enumerate(answers):
            seen = len(template.render_marked(messages[: number + 1], tools)[1])
            owners += [order] * max(seen - len(owners), 0)
    turns = [Turn(start, end, learn[owner]) for (start, end), owner in zip(marks, owners, strict=False)]
    return Written(text, tuple(turns), len({n for n, wanted in enumerate(learn) if wanted} - set(owners)))


def check_written(template: ChatTemplate, messages: Messages, text: str) -> None:
    """Raises DataError when the template leaves out what somebody says, or which tool is called."""
    for number, message in enumerate(messages, 1):
        if message["role"] != "assistant":
            if locate(text, template.protect(message["content"])) is None:
                raise DataError(
                    f"The chat template {template.name!r} leaves out turn {number} (the {message['role']}'s). Choose "
                    "another data.template, or remove such turns."
                )
            continue
        for call in message.get("tool_calls", ()):
            if call["function"]["name"] not in text:
                raise DataError(
                    f"The chat template {template.name!r} has no place for tool calls (turn {number}). Choose a "
                    "data.template that has, or write calls and results as text."
                )


def takes_tools(template: ChatTemplate) -> bool:
    """Whether the template shows the model which tools there are."""
    probe = {"name": "navarchprobe", "description": "x", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": probe}]
    try:
        return "navarchprobe" in template.render([{"role": "user", "content": "x"}], tools)
    except DataError:
        return False
