"""Turns a completion's updates into OpenAI's answers and stream events: text, log-probs, finish reasons."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from training.data.template import TextCodec
from training.serving.messages import Update
from training.serving.streaming_text import TextStream

LOWEST_LOGPROB = -9999.0
"""JSON has no -inf."""


class Token(NamedTuple):
    """One generated token with its log-prob and the most likely ones at its place."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


class Piece(NamedTuple):
    """New text and its tokens (these only when log-probs were asked for); the last piece has a finish reason."""

    text: str
    tokens: list[Token]
    finish: str | None


class Text:
    """One completion's text as its updates come. `generated` counts its tokens, the stop token included."""

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...], logprobs: bool) -> None:
        self._stream = TextStream(decode, stop)
        self._logprobs = logprobs
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
        tokens = []
        if self._logprobs:
            tops = update.top or [[] for _ in update.tokens]
            scores = update.logprobs or []
            tokens = [Token(*parts) for parts in zip(update.tokens, scores, tops, strict=True)]
            tokens = tokens[: self.generated - before]
        return Piece(text, tokens, finish)


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

    def __init__(self, codec: TextCodec, *, chat: bool, logprobs: bool) -> None:
        self.codec, self.chat, self.logprobs = codec, chat, logprobs

    def choice(self, index: int, whole: Whole) -> dict[str, Any]:
        text = "".join(whole.parts)
        logprobs = self._logprobs(whole.tokens, 0)
        if self.chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            return {"index": index, "message": message, "finish_reason": whole.finish, "logprobs": logprobs}
        return {"index": index, "text": text, "finish_reason": whole.finish, "logprobs": logprobs}

    def opening(self, index: int) -> dict[str, Any]:
        """First event of a streamed chat choice."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}

    def delta(self, index: int, piece: Piece, offset: int) -> dict[str, Any]:
        """An event's choice; `offset` is where its tokens begin, in characters of the completion."""
        made: dict[str, Any] = {"index": index, "finish_reason": piece.finish}
        if self.chat:
            made["delta"] = {"content": piece.text} if piece.text else {}
        else:
            made["text"] = piece.text
        made["logprobs"] = self._logprobs(piece.tokens, offset)
        return made

    def width(self, piece: Piece) -> int:
        """Characters of a piece's tokens, each written alone."""
        return sum(len(self._token_text(token.id)) for token in piece.tokens)

    def _token_text(self, token: int) -> str:
        return self.codec.decode([token], skip_special=False)

    def _logprobs(self, tokens: list[Token], offset: int) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            content = [
                {**self._entry(token.id, token.logprob), "top_logprobs": [self._entry(*pair) for pair in token.top]}
                for token in tokens
            ]
            return {"content": content, "refusal": None}
        texts = [self._token_text(token.id) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [max(token.logprob, LOWEST_LOGPROB) for token in tokens],
            "top_logprobs": [{self._token_text(i): score for i, score in token.top} for token in tokens],
            "text_offset": list(itertools.accumulate((len(text) for text in texts), initial=offset))[:-1],
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token_text(token)
        return {"token": text, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(text.encode())}


def event(data: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
