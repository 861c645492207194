"""Renders chat templates as transformers does, and keeps a conversation's own words apart from the template's.

Special tokens that stand in somebody's words ("what does <|im_end|> mean?") are text, not control tokens: they are
written as placeholders, which `own_words` turns back, so that the tokenizer can be told which is which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from training.errors import ConfigError, DataError

Messages = Sequence[Mapping[str, Any]]
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # Unicode noncharacters: no text has them
_BEGIN, _END = "\ufdd2", "\ufdd3"
_PLACEHOLDER = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_MARK = re.compile(f"[{_BEGIN}{_END}]")
_KEPT = ("<think>", "</think>")
"""Words that a model's own answer brings and that must reach the tokenizer as they are."""


class ChatTemplate:
    """A compiled template. variables: bos_token and so on; special: the tokenizer's special tokens as written.

    today: what `strftime_now` says, the same for a whole run.
    """

    def __init__(
        self,
        text: str,
        name: str,
        variables: Mapping[str, str],
        special: Sequence[str] = (),
        today: datetime | None = None,
    ) -> None:
        self.text, self.name, self.today = text, name, today or datetime.now()
        self.says_date = "strftime_now" in text
        self._variables = dict(variables)
        self._words = [word for word in sorted(special, key=len, reverse=True) if word and word not in _KEPT]
        self._numbers = {word: number for number, word in enumerate(self._words)}
        self._find = re.compile("|".join(map(re.escape, self._words))) if self._words else None
        self._marking = False
        self._compiled = self._compile()

    def render(self, messages: Messages, tools: Sequence[Any] = (), *, add_generation_prompt: bool = False) -> str:
        """The conversation as the template writes it, with placeholders for special tokens in its words."""
        try:
            return str(
                self._compiled.render(
                    messages=self._protected(messages),
                    tools=self._protected(list(tools)) or None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self._variables,
                )
            )
        except Exception as error:  # Jinja raises whatever the template's own code raises
            raise DataError(f"The chat template {self.name!r} refuses this conversation: {error}") from error

    def render_marked(self, messages: Messages, tools: Sequence[Any] = ()) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where its `{% generation %}` blocks begin and end."""
        self._marking = True
        try:
            text = self.render(messages, tools)
        finally:
            self._marking = False
        if _BEGIN not in text:
            return text, []
        spans: list[tuple[int, int]] = []
        for number, mark in enumerate(_MARK.finditer(text)):
            place = mark.start() - number
            if mark[0] == _BEGIN:
                spans.append((place, place))
            elif spans:
                spans[-1] = (spans[-1][0], place)
        return _MARK.sub("", text), [span for span in spans if span[0] < span[1]]

    def own_words(self, text: str) -> str:
        """The text with its placeholders written out."""
        return _PLACEHOLDER.sub(lambda mark: self._words[int(mark[1])], text) if _OPEN in text else text

    def protect(self, text: str) -> str:
        """Somebody's words with placeholders for the special tokens in them."""
        return self._find.sub(lambda found: f"{_OPEN}{self._numbers[found[0]]}{_CLOSE}", text) if self._find else text

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """The text cut at its placeholders: (words written out, whether they were one)."""
        cut, at = [], 0
        for mark in _PLACEHOLDER.finditer(text):
            cut += [(text[at : mark.start()], False), (self._words[int(mark[1])], True)]
            at = mark.end()
        return [piece for piece in [*cut, (text[at:], False)] if piece[0]]

    @staticmethod
    def has_placeholders(text: str) -> bool:
        return _OPEN in text

    def _protected(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.protect(value)
        if isinstance(value, Mapping):
            return {key: item if key == "role" else self._protected(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._protected(item) for item in value]
        return value

    def _compile(self) -> Any:
        """Sandboxed, blocks trimmed, loop controls, the few functions that templates call."""
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        owner = self

        class Generation(Extension):
            """`{% generation %} … {% endgeneration %}` marks what the model says; the text is unchanged by it."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                call = self.call_method("_said")
                return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

            @staticmethod
            def _said(caller: Any) -> str:
                return f"{_BEGIN}{caller()}{_END}" if owner._marking else str(caller())

        def refuse(message: str) -> None:
            raise jinja2.exceptions.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: self.today.strftime(form)
        try:
            return environment.from_string(self.text)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"The chat template {self.name!r} is not valid: line {error.lineno}: {error.message}"
            ) from error


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def locate(text: str, words: str, start: int = 0, end: int | None = None) -> tuple[int, int] | None:
    """Where `words` stand in the text; a template may have changed the white space in them, or escaped them as JSON."""
    words, end = words.strip(), len(text) if end is None else end
    if not words:
        return start, start
    for form in (words, json.dumps(words, ensure_ascii=False)[1:-1]):
        at = text.find(form, start, end)
        if at >= 0:
            return at, at + len(form)
    places = [place for place in range(start, end) if not text[place].isspace()]
    squeezed, wanted = "".join(text[place] for place in places), "".join(words.split())
    at = squeezed.find(wanted)
    return (places[at], places[at + len(wanted) - 1] + 1) if at >= 0 else None


def common_prefix(one: str, other: str) -> int:
    """How many leading characters two texts share."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(place for place in range(shorter) if one[place] != other[place])
