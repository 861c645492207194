"""Cuts texts into tokens, with the place of each; special tokens in somebody's own words are cut as any text is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from training.data.rendering import ChatTemplate

Cut = tuple[np.ndarray, np.ndarray]
"""Token ids, int32 [n], and the first character of each token, int64 [n] ([0] where they aren't asked for)."""


class Splitter:
    """A tokenizer (fast, or one in Python) and the template whose placeholders it meets."""

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._fast = bool(getattr(tokenizer, "is_fast", False))
        self._control = _control_pattern(token for token in tokenizer.added_tokens_decoder.values() if token.special)
        if self._fast:
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()

    def __call__(self, texts: Sequence[str], *, special: bool) -> list[Cut]:
        """special: with the tokenizer's own beginning and end; else the text may have placeholders."""
        held = [number for number, text in enumerate(texts) if not special and self._template.has_placeholders(text)]
        done = {number: self._own_words(texts[number]) for number in held}
        rest = iter(self._plainly([text for number, text in enumerate(texts) if number not in done], special))
        return [done[number] if number in done else next(rest) for number in range(len(texts))]

    def _plainly(self, texts: Sequence[str], special: bool) -> list[Cut]:
        if not texts:
            return []
        if not self._fast:
            return [self._slowly(text, special) for text in texts]
        encodings = self._tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=special)
        nowhere = np.empty(0, np.int64)
        return [
            (
                np.array(e.ids, dtype=np.int32),
                nowhere if special else np.fromiter((start for start, _ in e.offsets), np.int64, len(e)),
            )
            for e in encodings
        ]

    def _slowly(self, text: str, special: bool, **options: Any) -> Cut:
        """For tokenizers without offsets: the beginning of each token is found by decoding what comes before it."""
        ids = self._tokenizer.encode(text, add_special_tokens=special, **options)
        if special:
            return np.array(ids, dtype=np.int32), np.empty(0, np.int64)
        starts = [
            len(self._tokenizer.decode(ids[:i], skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for i in range(len(ids))
        ]
        return np.array(ids, dtype=np.int32), np.maximum.accumulate(np.array(starts, dtype=np.int64))

    def _own_words(self, text: str) -> Cut:
        """The template's control tokens are kept, what lies between them is cut as text."""
        ids: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        at = 0
        for control in [*(self._control.finditer(text) if self._control else ()), None]:
            end = control.start() if control else len(text)
            if end > at:
                words, places = self._written_out(text[at:end], at)
                found, offsets = self._as_text(words)
                ids.append(found)
                starts.append(np.array([*places, end], dtype=np.int64)[offsets])
            if control:
                ids.append(
                    np.array([self._tokenizer.convert_tokens_to_ids(control[control.lastindex])], dtype=np.int32)
                )
                starts.append(np.array([control.start(control.lastindex)], dtype=np.int64))
                at = control.end()
        return np.concatenate(ids), np.concatenate(starts)

    def _written_out(self, text: str, at: int) -> tuple[str, list[int]]:
        """The text without placeholders, and for each of its characters where that stood."""
        words, places = "", []
        for piece, held in self._template.pieces(text):
            width = len(self._template.protect(piece)) if held else len(piece)
            places += [at] * len(piece) if held else range(at, at + width)
            words, at = words + piece, at + width
        return words, places

    def _as_text(self, words: str) -> Cut:
        if not self._fast:
            return self._slowly(words, False, split_special_tokens=True)
        backend = self._tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        try:
            return self._plainly([words], False)[0]
        finally:
            backend.encode_special_tokens = False


def _control_pattern(special: Iterable[Any]) -> re.Pattern[str] | None:
    """Finds special tokens in a text (in the match's last group), with the white space that they take with them."""
    longest_first = sorted((token for token in special if token.content), key=lambda token: -len(token.content))
    forms = [
        (r"\s*" if token.lstrip else "") + f"({re.escape(token.content)})" + (r"\s*" if token.rstrip else "")
        for token in longest_first
    ]
    return re.compile("|".join(forms)) if forms else None
