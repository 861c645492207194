"""A rule as a reward: which part of a completion's letters is a given one. Copy it and write your own rule.

A reward function gets three lists of one length: the prompts as the model read them, the completions without special
tokens, and the other fields of each prompt's row (a reference answer, say). It returns a finite number per completion.
"""

from collections.abc import Mapping, Sequence


def fraction(
    prompts: Sequence[str], completions: Sequence[str], rows: Sequence[Mapping[str, object]], letter: str = "e"
) -> list[float]:
    """Between 0 (no such letter) and 1 (nothing else)."""
    return [text.lower().count(letter) / max(sum(c.isalpha() for c in text), 1) for text in completions]
