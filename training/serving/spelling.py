"""Spells each token in bytes, so that the bytes of a completion's tokens, one after another, are its text."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, NamedTuple

from training.data.template import TextCodec

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


class Spelled(NamedTuple):
    """A token: the bytes that it adds to the text (a special token adds none), and how it is shown alone."""

    raw: bytes
    shown: str


class Spelling:
    """The bytes of a tokenizer's tokens: byte-level BPE, SentencePiece (with byte fallback), or any that decodes."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._tokenizer = codec.tokenizer
        self._added = dict(self._tokenizer.added_tokens_decoder)
        kinds = _decoders(self._tokenizer)
        self._byte_of = {letter: byte for byte, letter in _byte_letters().items()} if "ByteLevel" in kinds else None
        self._words = self._byte_of is None and bool(kinds & {"Metaspace", "ByteFallback", "Replace"})
        self._known: dict[int, Spelled] = {}
        self._drops_first_space = self._words and self._first_space_is_dropped()

    def __call__(self, token: int, *, first: bool = False) -> Spelled:
        """first: the token begins a completion, where some tokenizers leave a space out."""
        spelled = self._known.get(token)
        if spelled is None:
            added = self._added.get(token)
            raw = b"" if added is not None and added.special else self._spell(token)
            spelled = self._known[token] = Spelled(raw, added.content if added is not None else _shown(raw))
        if first and self._drops_first_space and spelled.raw.startswith(b" "):
            return Spelled(spelled.raw[1:], spelled.shown[1:])
        return spelled

    def _spell(self, token: int) -> bytes:
        if token in self._added:
            return str(self._added[token].content).encode()
        written = self._tokenizer.convert_ids_to_tokens(token)
        if written is None:  # the model has more embeddings than the tokenizer has tokens
            return b""
        if self._byte_of is not None and all(letter in self._byte_of for letter in written):
            return bytes(self._byte_of[letter] for letter in written)
        if self._words:
            byte = _BYTE.fullmatch(written)
            return bytes([int(byte[1], 16)]) if byte else written.replace(_SPACE, " ").encode()
        return self._codec.decode([token], skip_special=False).encode()

    def _first_space_is_dropped(self) -> bool:
        word = next((t for t in self._tokenizer.get_vocab() if t.startswith(_SPACE) and t[1:].isalpha()), None)
        if word is None:
            return False
        number = self._tokenizer.convert_tokens_to_ids(word)
        return not self._codec.decode([number], skip_special=False).startswith(" ")


class Speller:
    """Spells one completion's tokens as they come, with the place of each in the text, in characters."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True
        self._length = 0

    def add(self, token: int, others: list[int]) -> tuple[Spelled, int, list[Spelled]]:
        """(the token, where its text begins, `others` at its place)."""
        first = self._first
        spelled, at = self._spelling(token, first=first), self._length
        self._first = first and not spelled.raw
        self._length += len(self._decoder.decode(spelled.raw))
        return spelled, at, [self._spelling(other, first=first) for other in others]


def _shown(raw: bytes) -> str:
    """A token's text; one that holds a part of a character as OpenAI writes it, by its bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _decoders(tokenizer: Any) -> set[str]:
    """Kinds of the decoders of a fast tokenizer; of one in Python, what it most resembles."""
    if not getattr(tokenizer, "is_fast", False):
        if hasattr(tokenizer, "byte_decoder"):
            return {"ByteLevel"}
        return {"Metaspace"} if hasattr(tokenizer, "sp_model") else set()
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {part["type"] for part in state.get("decoders", [state])}


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + number) for number, byte in enumerate(rest)}
