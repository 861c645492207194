"""Finds near-duplicate rows: MinHash to find candidates, their true likeness to decide."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_PROSE = re.compile(r"""[.,;:!?…]+(?=[\s"'”’»)]|$)|["“”‘’«»、。，；：！？（）「」『』《》]|(?<!\w)'|'(?!\w)""")
"""Punctuation that says nothing: after a word, or quoting. Operators, brackets, signs, emoji and `a.b` are words."""
_MARKS = "".join(chr(code) for code in range(0x300, 0xFE00) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
_PIECE = re.compile(rf"(?:[^\W_][{re.escape(_MARKS)}]*)+|\S")
_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese, Korean: words aren't separated by spaces, or are very short."""
PERMUTATIONS = 128


@dataclass(frozen=True)
class Duplicate:
    """Row `number` is like the earlier row `of`; likeness: Jaccard index of their shingles."""

    number: int
    of: int
    likeness: float


def shingles(text: str) -> set[str]:
    """What two texts are compared by: runs of three words and signs; of three characters where words aren't separated
    by spaces. Case and the punctuation of prose don't count; operators, signs and emoji are words of their own."""
    words = _PIECE.findall(_PROSE.sub(" ", text).lower()) or _PIECE.findall(text)
    joined = "".join(words)
    pieces: Sequence[str] = joined if len(_SPACELESS.findall(joined)) * 3 > len(joined) else words
    if len(pieces) < 3:
        return {" ".join(pieces)}
    return {" ".join(pieces[i : i + 3]) for i in range(len(pieces) - 2)}


def likeness(one: set[str], other: set[str]) -> float:
    """Jaccard index: shared shingles over all shingles."""
    return len(one & other) / (len(one | other) or 1)


def find_duplicates(texts: Iterable[str], threshold: float = 0.8) -> list[Duplicate]:
    """Rows that are at least `threshold` like an earlier row that is kept. The first of each family stays.

    Candidates come from MinHash (Broder 1997) with locality-sensitive hashing; none is dropped without comparing the
    shingles themselves: about one pair in 200 at the threshold may be missed, none is invented.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], not {threshold:g}")
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
    kept: dict[int, np.ndarray] = {}
    found: list[Duplicate] = []
    for number, text in enumerate(texts):
        pieces = shingles(text)
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([piece.encode() for piece in pieces])
        digest = _digests(pieces)
        best = max(((_jaccard(digest, kept[other]), -other) for other in index.query(sketch)), default=(0.0, 0))
        if best[0] >= threshold:
            found.append(Duplicate(number, -best[1], best[0]))
            continue
        index.insert(number, sketch, check_duplication=False)
        kept[number] = digest
    return found


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows per band): the most selective choice that still finds 99.5 % of the pairs at the threshold.

    Two sets of likeness s share a band with probability 1 − (1 − s^rows)^bands (Leskovec et al., Mining of Massive
    Datasets, §3.4).
    """
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= 0.995:
            return count, rows
    return PERMUTATIONS, 1


def _digests(pieces: set[str]) -> np.ndarray:
    """Sorted 64-bit hashes of shingles: an eighth of the memory that the strings take."""
    import hashlib

    values = [int.from_bytes(hashlib.blake2b(p.encode(), digest_size=8).digest(), "little") for p in pieces]
    return np.unique(np.array(values, dtype=np.uint64))


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
