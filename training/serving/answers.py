"""Turns a completion's updates into OpenAI's answers and stream events: text, log-probs, finish reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from training.serving.messages import Update
from training.serving.spelling import Spelled, Speller
from training.serving.streaming_text import TextStream

LOWEST_LOGPROB = -9999.0
"""JSON has no -inf."""


class Token(NamedTuple):
    """One generated token: its spelling, its log-prob, the most likely ones at its place, and where its text begins."""

    spelled: Spelled
    logprob: float
    top: list[tuple[Spelled, float]]
    offset: int


class Piece(NamedTuple):
    """New text and its tokens (these only when log-probs were asked for); the last piece has a finish reason."""

    text: str
    tokens: list[Token]
    finish: str | None


class Text:
    """One completion's text as its updates come. `generated` counts its tokens, the stop token included.

    speller: given when log-probs were asked for.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...], speller: Speller | None) -> None:
        self._stream = TextStream(decode, stop)
        self._speller = speller
        self.generated = 0
        self.stopped = False
        """A stop string has ended it: the decoder need not go on."""

    def add(self, update: Update) -> Piece:
        last = update.finish is not None
        ids = update.tokens[:-1] if update.finish == "stop" else update.tokens
        before = self.generated
        text = self._stream.add(ids, last=last)
        self.generated += len(update.tokens)
        finish = update.finish
        if self._stream.stopped:
            self.stopped, self.generated, finish = True, self._stream.count, "stop"
        shown = min(len(ids), self.generated - before)  # the stop token is not part of the text
        return Piece(text, self._spelled(update, shown) if self._speller else [], finish)

    def _spelled(self, update: Update, count: int) -> list[Token]:
        assert self._speller is not None
        tokens = []
        for number in range(count):
            top = update.top[number] if update.top else []
            spelled, offset, others = self._speller.add(update.tokens[number], [token for token, _ in top])
            scores = [score for _, score in top]
            logprob = update.logprobs[number] if update.logprobs else 0.0
            tokens.append(Token(spelled, logprob, list(zip(others, scores, strict=True)), offset))
        return tokens


class Whole:
    """The pieces of one completion put together, for an answer that does not stream."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.tokens: list[Token] = []
        self.finish: str | None = None

    def add(self, piece: Piece) -> None:
        self.parts.append(piece.text)
        self.tokens += piece.tokens
        self.finish = piece.finish


class Shape:
    """How chat completions (or plain ones) write what was generated."""

    def __init__(self, *, chat: bool, logprobs: bool) -> None:
        self.chat, self.logprobs = chat, logprobs

    def choice(self, index: int, whole: Whole) -> dict[str, Any]:
        text = "".join(whole.parts)
        logprobs = self._logprobs(whole.tokens)
        if self.chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            return {"index": index, "message": message, "finish_reason": whole.finish, "logprobs": logprobs}
        return {"index": index, "text": text, "finish_reason": whole.finish, "logprobs": logprobs}

    def opening(self, index: int) -> dict[str, Any]:
        """First event of a streamed chat choice."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """An event's choice."""
        made: dict[str, Any] = {"index": index, "finish_reason": piece.finish}
        if self.chat:
            made["delta"] = {"content": piece.text} if piece.text else {}
        else:
            made["text"] = piece.text
        made["logprobs"] = self._logprobs(piece.tokens)
        return made

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            content = [
                {**_entry(token.spelled, token.logprob), "top_logprobs": [_entry(*pair) for pair in token.top]}
                for token in tokens
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [token.spelled.shown for token in tokens],
            "token_logprobs": [max(token.logprob, LOWEST_LOGPROB) for token in tokens],
            "top_logprobs": [
                {spelled.shown: max(score, LOWEST_LOGPROB) for spelled, score in token.top} for token in tokens
            ],
            "text_offset": [token.offset for token in tokens],
        }


def _entry(spelled: Spelled, logprob: float) -> dict[str, Any]:
    return {"token": spelled.shown, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(spelled.raw)}


def event(data: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
