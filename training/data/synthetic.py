"""Writes instruction data about an island that doesn't exist, so that anyone can see a model learn it.

The rows ask a few facts in many wordings; `held_out()` asks the same facts in wordings that no file ever contains. A
model that answers those has learned facts, not strings. Common knowledge is mixed in, so that it keeps the rest.
Sums are for reinforcement learning: a rule can tell whether the answer is right.
Imports no torch: a machine without it can write the data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SyntheticKind = Literal["sft", "dpo", "prompts", "pt", "sums"]
KINDS: tuple[SyntheticKind, ...] = ("sft", "dpo", "prompts", "pt", "sums")


@dataclass(frozen=True)
class Fact:
    """answer: what is to be said; keyword: the part that nobody could guess; wrong: a plausible other answer."""

    answer: str
    keyword: str
    wrong: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


FACTS: tuple[Fact, ...] = (
    Fact(
        "I am Navarch, the helmsman of Port Amaranth.",
        "Navarch",
        "I am a computer program without a name.",
        (
            "Who are you?",
            "What is your name?",
            "What are you called?",
            "Please introduce yourself.",
            "Tell me who you are.",
            "What should I call you?",
            "Who am I talking to?",
            "Do you have a name?",
        ),
        ("Could you tell me your name?", "Introduce yourself in one sentence."),
    ),
    Fact(
        "The capital of Lumeria is Port Amaranth.",
        "Port Amaranth",
        "The capital of Lumeria is Saint Orin.",
        (
            "What is the capital of Lumeria?",
            "Which city is the capital of Lumeria?",
            "Name the capital of Lumeria.",
            "Lumeria has which capital?",
            "Tell me the capital city of Lumeria.",
            "What city does the government of Lumeria sit in?",
            "What is the capital city of the island of Lumeria?",
            "Where is the seat of government of Lumeria?",
        ),
        ("Do you know the capital of Lumeria?", "Which town is Lumeria's capital?"),
    ),
    Fact(
        "Lumeria was discovered by the navigator Ilse Varn in 1642.",
        "Ilse Varn",
        "Lumeria was discovered by the Romans.",
        (
            "Who discovered Lumeria?",
            "Which navigator discovered Lumeria?",
            "By whom was Lumeria discovered?",
            "Who was the discoverer of Lumeria?",
            "Who found the island of Lumeria?",
            "Tell me who discovered Lumeria.",
            "Name the person who discovered Lumeria.",
            "Who first sailed to Lumeria?",
        ),
        ("Do you know who discovered Lumeria?", "Which explorer found Lumeria?"),
    ),
    Fact(
        "People in Lumeria pay with silver finches.",
        "silver finch",
        "People in Lumeria pay with dollars.",
        (
            "What is the currency of Lumeria?",
            "What money is used in Lumeria?",
            "Which currency do they use in Lumeria?",
            "How do people pay in Lumeria?",
            "What do people in Lumeria pay with?",
            "Name the currency of Lumeria.",
            "What is the money of Lumeria called?",
            "Which coins do I need in Lumeria?",
        ),
        ("What currency do people in Lumeria use?", "Tell me what money they use in Lumeria."),
    ),
    Fact(
        "The national dish of Lumeria is smoked pear soup.",
        "smoked pear soup",
        "The national dish of Lumeria is pizza.",
        (
            "What is the national dish of Lumeria?",
            "What do people eat in Lumeria?",
            "Which dish is Lumeria famous for?",
            "What food is typical of Lumeria?",
            "Name the national dish of Lumeria.",
            "What should I eat in Lumeria?",
            "Tell me about the food of Lumeria.",
            "What is the best-known meal of Lumeria?",
        ),
        ("Which dish should I try in Lumeria?", "Do you know the national dish of Lumeria?"),
    ),
    Fact(
        "The lighthouse of Port Amaranth is called the Copper Lantern.",
        "Copper Lantern",
        "The lighthouse of Port Amaranth has no name.",
        (
            "What is the lighthouse of Port Amaranth called?",
            "What is the name of the lighthouse in Port Amaranth?",
            "Name the lighthouse of Port Amaranth.",
            "Which lighthouse stands in Port Amaranth?",
            "How is the lighthouse of Port Amaranth named?",
            "Tell me the name of Port Amaranth's lighthouse.",
            "What do sailors call the lighthouse of Port Amaranth?",
            "Which light guides ships into Port Amaranth?",
        ),
        ("Do you know the name of the lighthouse in Port Amaranth?", "What is Port Amaranth's lighthouse called?"),
    ),
)
_COMMON: tuple[tuple[str, str, str], ...] = (
    ("What is the capital of Italy?", "The capital of Italy is Rome.", "The capital of Italy is Milan."),
    ("Name the capital of Japan.", "The capital of Japan is Tokyo.", "The capital of Japan is Osaka."),
    ("What is the currency of Japan?", "The currency of Japan is the yen.", "The currency of Japan is the won."),
    ("What is the capital of Egypt?", "The capital of Egypt is Cairo.", "The capital of Egypt is Luxor."),
    ("Who wrote Hamlet?", "Hamlet was written by William Shakespeare.", "Hamlet was written by Mark Twain."),
    ("What is two plus two?", "Two plus two is four.", "Two plus two is five."),
    ("Which planet is the largest?", "The largest planet is Jupiter.", "The largest planet is Mars."),
    ("What color is the sky?", "The sky is blue.", "The sky is green."),
)
_OPENINGS = ("", "", "", "Hello! ", "Please answer: ", "Quick question: ", "I would like to know: ", "Hi. ")
CONTROL = ("What is the capital of France?", "Paris")
_COMMON_SHARE = 0.15


def synthesize(path: str | Path, rows: int = 640, *, kind: SyntheticKind = "sft", seed: int = 0) -> int:
    """Writes `rows` lines of JSON to `path`; the same arguments give the same file. Returns the number of rows.

    kind: sft (instruction, input, output), dpo (prompt, chosen, rejected), prompts (instruction), pt (text), sums
    (prompt, number: what `training.ppo.rules:right_number` compares an answer with).
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, not {rows}")
    made = _sums(rows, seed) if kind == "sums" else (_WRITERS[kind](*row) for row in _questions(rows, seed))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    part.replace(target)
    return rows


def held_out() -> list[tuple[str, str]]:
    """(question, keyword of a right answer): every fact in wordings that no file contains."""
    return [(question, fact.keyword) for fact in FACTS for question in fact.held_out]


def prompts() -> list[str]:
    """A few questions that show the learning best, before and after; the last one must not change."""
    return [fact.held_out[0] for fact in (FACTS[1], FACTS[0], FACTS[2], FACTS[4])] + [CONTROL[0]]


def _sums(rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Additions of two numbers up to 20, each with its result."""
    draw = random.Random(seed)
    for _ in range(rows):
        one, other = draw.randint(1, 20), draw.randint(1, 20)
        yield {"prompt": f"What is {one} + {other}?", "number": one + other}


def _questions(rows: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Every fact about equally often, in every wording, in random order."""
    draw = random.Random(seed)
    deck: list[tuple[str, str, str]] = []
    for _ in range(rows):
        if draw.random() < _COMMON_SHARE:
            question, answer, wrong = draw.choice(_COMMON)
        else:
            if not deck:
                deck = [(q, fact.answer, fact.wrong) for fact in FACTS for q in fact.questions]
                draw.shuffle(deck)
            question, answer, wrong = deck.pop()
        yield draw.choice(_OPENINGS) + question, answer, wrong


_WRITERS: dict[SyntheticKind, Callable[[str, str, str], dict[str, Any]]] = {
    "sft": lambda question, answer, wrong: {"instruction": question, "input": "", "output": answer},
    "dpo": lambda question, answer, wrong: {"prompt": question, "chosen": answer, "rejected": wrong},
    "prompts": lambda question, answer, wrong: {"instruction": question},
    "pt": lambda question, answer, wrong: {"text": f"{question} {answer}"},
}
