"""Rewards that a rule can check, ready to be named in `reward.function`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def right_number(
    prompts: Sequence[str], completions: Sequence[str], rows: Sequence[dict[str, Any]], field: str = "number"
) -> list[float]:
    """1 where the last number in a completion is that in the row's `field`, else 0. KeyError where a row has none."""
    scores = []
    for completion, row in zip(completions, rows, strict=True):
        found = _NUMBER.findall(completion)
        right = float(str(row[field]).replace(",", ""))
        scores.append(float(bool(found) and float(found[-1].replace(",", "")) == right))
    return scores
