"""Rows of every format become the right records, and every bad row is named with its place and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.data_making import write_jsonl
from training.config.data import DataSource
from training.data.formats import Chat, Prompt, Text, detect_format, format_of, kind_for, parse_row
from training.data.messages import RowError
from training.data.preferences import Pair, split_transcripts
from training.data.records import Placed, open_source
from training.errors import DataError


def turns(*contents: str, system: str = "") -> tuple[dict[str, str], ...]:
    roles = ["user", "assistant"] * len(contents)
    start = [{"role": "system", "content": system}] if system else []
    return (*start, *({"role": r, "content": c} for r, c in zip(roles, contents, strict=False)))


GOOD: list[tuple[Any, str, str, Any]] = [
    ({"instruction": "a", "input": "b", "output": "c"}, "alpaca", "sft", Chat(turns("a\nb", "c"))),
    ({"instruction": "a", "input": "", "output": "c"}, "alpaca", "sft", Chat(turns("a", "c"))),
    (
        {"instruction": "a", "output": "c", "history": [["q", "r"]], "system": "s"},
        "alpaca",
        "sft",
        Chat(turns("q", "r", "a", "c", system="s")),
    ),
    ({"prompt": "a", "completion": "c"}, "alpaca", "sft", Chat(turns("a", "c"))),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        "sharegpt",
        "sft",
        Chat(turns("a", "b")),
    ),
    (
        {"messages": [{"role": r, "content": r} for r in ("system", "user", "assistant", "user", "assistant")]},
        "messages",
        "sft",
        Chat(turns("user", "assistant", "user", "assistant", system="system")),
    ),
    ({"prompt": "a", "response": "c", "chosen": "c", "rejected": "d"}, "rm-static", "rm", Pair(turns("a"), "c", "d")),
    (
        {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " c", "rejected": " d"},
        "rm-static",
        "rm",
        Pair(turns("a"), " c", " d"),
    ),
    (
        {"prompt": "a", "chosen": "c", "rejected": "d", "margin": 0.5},
        "rm-static",
        "dpo",
        Pair(turns("a"), "c", "d", 0.5),
    ),
    (
        {"prompt": "a", "chosen": "c", "rejected": "d", "chosen_score": 5, "rejected_score": 3},
        "rm-static",
        "rm",
        Pair(turns("a"), "c", "d"),  # scores are no margin
    ),
    (
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: yes",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: no",
        },
        "hh-rlhf",
        "rm",
        Pair(turns("a", "b", "c"), "yes", "no"),
    ),
    (
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        "dpo",
        "dpo",
        Pair(turns("a"), "b", "c"),
    ),
    (
        {"chosen": list(turns("a", "b")), "rejected": list(turns("a", "c"))},
        "dpo",
        "dpo",
        Pair(turns("a"), "b", "c"),
    ),
    ({"instruction": "a"}, "prompt", "ppo", Prompt(turns("a"))),
    ({"instruction": "a", "input": "", "output": "c"}, "alpaca", "ppo", Prompt(turns("a"), {"output": "c"})),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 3},
        "sharegpt",
        "ppo",
        Prompt(turns("a"), {"id": 3}),
    ),
    # -- as the hub has them
    (
        {"instruction": "a", "context": "b", "response": "c", "category": "qa"},
        "alpaca",
        "sft",
        Chat(turns("a\nb", "c")),
    ),
    (
        {"context": "b", "question": "a", "answers": {"text": ["c", "d"], "answer_start": [0, 1]}, "id": "1"},
        "alpaca",
        "sft",
        Chat(turns("a\nb", "c")),
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
            ]
        },
        "messages",
        "sft",
        Chat(turns("ab", "c")),
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "weight": 0},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "d", "weight": 1},
            ]
        },
        "messages",
        "sft",
        Chat(
            ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "learn": False}, *turns("c", "d"))
        ),
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b", "train": False},
                {"from": "human", "value": "c"},
                {"from": "gpt", "value": "d", "train": True},
            ]
        },
        "sharegpt",
        "sft",
        Chat(
            ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "learn": False}, *turns("c", "d"))
        ),
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "reasoning_content": "because"},
            ]
        },
        "messages",
        "sft",
        Chat(turns("a", "<think>\nbecause\n</think>\n\nb")),
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "rain"},
                {"role": "assistant", "content": "b"},
            ],
            "tools": [{"name": "weather", "parameters": {}}],
        },
        "messages",
        "sft",
        Chat(
            (
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "x"}}}
                    ],
                },
                {"role": "tool", "content": "rain", "tool_call_id": "c1"},
                {"role": "assistant", "content": "b"},
            ),
            ({"type": "function", "function": {"name": "weather", "parameters": {}}},),
        ),
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "b"},
            ],
            "tools": '[{"name": "f"}]',
            "system": "s",
        },
        "sharegpt",
        "sft",
        Chat(
            (
                {"role": "system", "content": "s"},
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
                },
                {"role": "tool", "content": "3"},
                {"role": "assistant", "content": "b"},
            ),
            ({"type": "function", "function": {"name": "f"}},),
        ),
    ),
    (
        {"prompt": list(turns("a", "b", "c")), "completion": list(turns("", "d")[1:])},
        "prompt-completion",
        "sft",
        Chat(
            ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "learn": False}, *turns("c", "d"))
        ),
    ),
    (
        {"prompt": list(turns("a", "b", "c")), "answer": 5},
        "prompt-completion",
        "ppo",
        Prompt(turns("a", "b", "c"), {"answer": 5}),
    ),
    (  # ultrafeedback_binarized
        {
            "prompt": "a",
            "prompt_id": "1",
            "chosen": list(turns("a", "b")),
            "rejected": list(turns("a", "c")),
            "messages": list(turns("a", "b")),
            "score_chosen": 8.5,
            "score_rejected": 8.5,
        },
        "dpo",
        "dpo",
        Pair(turns("a"), "b", "c"),
    ),
    (  # TRL, explicit prompt
        {"prompt": list(turns("a")), "chosen": list(turns("", "b")[1:]), "rejected": list(turns("", "c")[1:])},
        "dpo",
        "rm",
        Pair(turns("a"), "b", "c"),
    ),
    (
        {"system": "s", "history": [["q", "r"]], "instruction": "a", "input": "b", "chosen": "c", "rejected": "d"},
        "rm-static",
        "dpo",
        Pair(turns("q", "r", "a\nb", system="s"), "c", "d"),
    ),
    (
        {"system": "", "history": [], "question": "a", "response_chosen": "b", "response_rejected": "c"},
        "rm-static",
        "rm",
        Pair(turns("a"), "b", "c"),
    ),
    ({"instruction": "a", "input": "", "output": ["b", "c"]}, "rm-static", "rm", Pair(turns("a"), "b", "c")),
    ({"text": "今天天气很好"}, "text", "pt", Text("今天天气很好")),
    ("a line", "text", "pt", Text("a line")),
    ({"text": "a"}, "text", "sft", Text("a")),
]


@pytest.mark.parametrize(("row", "format", "stage", "expected"), GOOD)
def test_a_row_is_recognised_and_read(row: Any, format: str, stage: str, expected: Any) -> None:
    assert format_of(row) == format
    assert detect_format([row, {"odd": 1}]) == format
    assert parse_row(row, format, kind_for(format, stage)) == expected


CHAT = {"from": "human", "value": "a"}
USER, ASSISTANT = turns("a", "b")
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
BAD: list[tuple[Any, str, str, str]] = [
    ({"instruction": "a", "output": " "}, "alpaca", "sft", "output is empty"),
    ({"instruction": "", "output": "b"}, "alpaca", "sft", "instruction is empty"),
    ({"instruction": "a", "output": None}, "alpaca", "sft", "output is null"),
    ({"instruction": "a", "output": 7}, "alpaca", "sft", "output is a number, expected text"),
    ({"instruction": "a", "outptu": "b"}, "alpaca", "sft", "its fields are instruction, outptu"),
    ({"instruction": "a\ud800", "output": "b"}, "alpaca", "sft", "surrogate"),
    ([1], "alpaca", "sft", "is a list, expected an object"),
    ({"conversations": []}, "sharegpt", "sft", "conversations is empty"),
    ({"conversations": [CHAT, CHAT]}, "sharegpt", "sft", "turn 2 is the user's, expected the assistant's"),
    ({"conversations": [CHAT]}, "sharegpt", "sft", "the last turn is the user's: nothing to learn"),
    ({"conversations": [CHAT, {"from": "gpt", "value": ""}]}, "sharegpt", "sft", "turn 2 (assistant) is empty"),
    ({"conversations": [CHAT, {"from": "alien", "value": "b"}]}, "sharegpt", "sft", "unknown role 'alien'"),
    ({"conversations": [CHAT, {"value": "b"}]}, "sharegpt", "sft", "lacks its role"),
    ({"messages": [{"role": "user", "content": [1]}]}, "messages", "sft", "a part of type 'a number'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages",
        "sft",
        "a part of type 'image_url'; only text parts",
    ),
    ({"messages": [{"role": "user", "content": "a", "images": ["x"]}]}, "messages", "sft", "has images, which a text"),
    ({"messages": list(turns("a", "b")), "images": ["x.png"]}, "messages", "sft", "has images, which a text model"),
    ({"messages": list(turns("a", "b")), "context": "c"}, "messages", "sft", "has context, which format 'messages'"),
    ({"messages": list(turns("a", "b")), "history": [["q", "r"]]}, "messages", "sft", "has history, which format"),
    (
        {"messages": list(turns("a", "b", system="s")), "system": "t"},
        "messages",
        "sft",
        "two system messages: system, and the first turn",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": "b", "weight": 0.5}]},
        "messages",
        "sft",
        "weight of messages[1] is 0.5: give 0 or 1",
    ),
    ({"messages": [USER, {"role": "tool", "content": "b"}]}, "messages", "sft", "turn 2 is the tool's, expected the"),
    ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages", "sft", "is the user's turn, but calls tools"),
    (
        {"conversations": [CHAT, {"from": "function_call", "value": "{oops"}]},
        "sharegpt",
        "sft",
        "calls a tool in text that is not valid JSON",
    ),
    ({"messages": list(turns("a", "b")), "tools": "{oops"}, "messages", "sft", "tools is text that is not valid JSON"),
    ({"context": "c", "question": "q", "answers": {"text": []}}, "alpaca", "sft", "answers holds no answer"),
    ({"instruction": "a", "output": ["b", "c", "d"]}, "alpaca", "sft", "two answers are a pair, for rm or dpo"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}, "rm-static", "rm", "margin is -1: below 0"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("inf")}, "rm-static", "rm", "a finite number"),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1, "score_rejected": 8},
        "rm-static",
        "rm",
        "the rejected answer has the better score (score_chosen 1, score_rejected 8); swap the answers",
    ),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": float("nan"), "rejected_score": 8},
        "rm-static",
        "rm",
        "chosen_score is nan, expected a finite number",
    ),
    (
        {"prompt": "other", "chosen": list(turns("a", "b")), "rejected": list(turns("a", "c"))},
        "dpo",
        "dpo",
        "prompt is not what chosen and rejected answer",
    ),
    (
        {"chosen": list(turns("a", "b")), "rejected": list(turns("z", "c"))},
        "dpo",
        "dpo",
        "must be the same conversation up to the last turn",
    ),
    (
        {"prompt": "a", "chosen": list(turns("a", "b")), "rejected": [ASSISTANT]},
        "dpo",
        "rm",
        "must both be answers, or",
    ),
    (
        {"prompt": [USER], "chosen": [ASSISTANT, USER, ASSISTANT], "rejected": [ASSISTANT]},
        "dpo",
        "dpo",
        "chosen goes on for 3 turns after the question",
    ),
    ({"prompt": "a", "conversations": [CHAT], "chosen": "b", "rejected": "c", "images": ["i"]}, "dpo", "rm", "images"),
    ({"prompt": "a", "chosen": "b", "rejected": "b "}, "rm-static", "rm", "identical"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, "rm-static", "rm", "rejected is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"}, "rm-static", "rm", "expected a finite"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "x"}, "hh-rlhf", "rm", "not a transcript"),
    ({"text": ""}, "text", "pt", "text is empty"),
    ({"txt": "a"}, "text", "pt", "has no text"),
]


@pytest.mark.parametrize(("row", "format", "stage", "complaint"), BAD)
def test_a_bad_row_says_what_is_wrong(row: Any, format: str, stage: str, complaint: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(row, format, kind_for(format, stage))
    assert complaint in str(caught.value)


def test_fields_that_nothing_is_made_of_are_named(tmp_path: Path) -> None:
    row = {"instruction": "a", "context": "b", "response": "c", "category": "qa", "note": None}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    (item,) = open_source(DataSource(str(path)), "sft")
    assert isinstance(item, Placed) and item.rest == ("category",)


def test_columns_say_which_field_is_which(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "a", "a": "b", "images": ["x"], "input": 3}] * 2)
    with pytest.raises(DataError, match=r"a.jsonl:1: .* Say which field is which with `columns`"):
        open_source(DataSource(str(path)), "sft")
    source = DataSource(str(path), columns={"instruction": "q", "output": "a"}, ignore=("images", "input"))
    rows = open_source(source, "sft")
    assert (
        rows.format == "alpaca"
        and [item.record for item in rows if isinstance(item, Placed)] == [Chat(turns("a", "b"))] * 2
    )
    with pytest.raises(DataError, match=r"a.jsonl:1: has no qq, which columns names; its fields are q, a"):
        open_source(DataSource(str(path), columns={"instruction": "qq"}), "sft")


def test_transcripts_are_split_at_the_last_common_turn() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    pair = split_transcripts(start + "yes\n\nHuman: more\n\nAssistant: x", start + "no")
    assert pair == Pair(turns("a", "b", "c"), "yes", "no")  # what follows the differing answer is not part of it


@pytest.mark.parametrize(
    ("chosen", "rejected", "complaint"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b", "identical"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: z\n\nAssistant: b", "different questions"),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: e\n\nAssistant: d",
            "turn 3, which is not an answer",
        ),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "\n\nHuman: a\n\nAssistant: b", "no second answer"),
    ],
)
def test_transcripts_that_are_no_pair_are_refused(chosen: str, rejected: str, complaint: str) -> None:
    with pytest.raises(RowError, match=complaint):
        split_transcripts(chosen, rejected)


@pytest.mark.parametrize(("format", "stage"), [("alpaca", "rm"), ("text", "ppo"), ("dpo", "sft"), ("prompt", "sft")])
def test_a_stage_refuses_a_format_that_it_cannot_use(format: str, stage: str) -> None:
    with pytest.raises(RowError, match=f"stage {stage} needs"):
        kind_for(format, stage)
