"""Turns a growing list of tokens into text pieces: no half characters, no stop string, nothing ever taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "�"


class TextStream:
    """Text of one completion as its tokens come. `decode` maps token ids to text."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        self._from = self._shown = 0  # tokens that give context to the next decode, tokens already in the text
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.text = ""
        self.stopped = False
        self.count = 0
        """Tokens that the text stands for; those after a stop string don't count."""

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """The new text that may be shown. With `last`, everything that is left."""
        if self.stopped:
            return ""
        before = len(self._tokens)
        self._tokens += tokens
        self.count = len(self._tokens)
        known = self._decode(self._tokens[self._from : self._shown])
        whole = self._decode(self._tokens[self._from :])
        if whole.endswith(UNFINISHED) and not last:
            return ""
        new = whole[len(known) :]
        self._held += new
        if new:  # tokens without text (special ones) are no context: a word after them would lose its space
            self._from = self._shown
        self._shown = len(self._tokens)
        cut = min((at for at in (self._held.find(text) for text in self._stop) if at >= 0), default=-1)
        if cut >= 0:
            self.stopped = True
            self.count = self._tokens_until(before)
            return self._show(self._held[:cut])
        keep = 0 if last else self._partial()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._show(shown)

    def _show(self, text: str) -> str:
        self.text += text
        return text

    def _partial(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(text) - 1 for text in self._stop), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-size:]) for text in self._stop):
                return size
        return 0

    def _tokens_until(self, before: int) -> int:
        """Number of tokens up to the one that completed the stop string."""
        for end in range(before + 1, len(self._tokens)):
            text = self._decode(self._tokens[:end])
            if any(stop in text for stop in self._stop):
                return end
        return len(self._tokens)
