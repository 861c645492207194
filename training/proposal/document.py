"""Writes a proposed configuration as YAML that people read: every value with its reason, facts on top."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from training.proposal.choices import Choice

COLUMN = 44
"""Where comments begin."""
SECTIONS = ("model", "data", "reward", "lora", "strategy", "generation", "train", "kl", "eval", "checkpoint", "log")


def document(stage: str, head: Sequence[str], choices: Sequence[Choice]) -> str:
    """head: lines of comment on top."""
    lines = [f"# {line}" if line else "#" for line in head] + [f"type: {stage}"]
    for section in SECTIONS:
        lines += _section(section, [choice for choice in choices if choice.key.split(".")[0] == section])
    return "\n".join([*lines, "", *_more(stage, choices), ""])


def _section(name: str, choices: Sequence[Choice]) -> Iterator[str]:
    if choices and "." in choices[0].key:
        yield f"{name}:"
    for choice in choices:
        inside = "." in choice.key
        line = f"{'  ' if inside else ''}{choice.key.split('.')[-1]}: {written(choice.value)}"
        yield f"{line:<{COLUMN}}# {choice.why}" if choice.why else line


def _more(stage: str, choices: Sequence[Choice]) -> Iterator[str]:
    """What else people often want, to be uncommented."""
    chosen = {choice.key for choice in choices}
    yield f"# Every key with its default and meaning: navarch-train {stage} --help. Often wanted besides:"
    if "lora" not in chosen:
        yield f"{'# lora: 16':<{COLUMN}}# adapters instead of all weights; then a ten times higher lr"
    if stage in ("pt", "sft", "dpo"):
        yield f"{'# samples: [What is a tide?]':<{COLUMN}}# answered before and after, to see what changed"
    yield f"{'# image: colossalai-0.3.0':<{COLUMN}}# these two, and navarch submit runs it in a container"
    yield "# resources: {gpus: 1}"


def written(value: object) -> str:
    """A value as YAML reads it back: 2e-05 would be text."""
    if isinstance(value, float):
        mantissa, found, exponent = f"{value:g}".partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}" if found else f"{value:g}"
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or _needs_quotes(value) else value


def _needs_quotes(text: str) -> bool:
    return not text or text != text.strip() or any(mark in text for mark in ":#{}[]&*!|>'\"%@`,")
