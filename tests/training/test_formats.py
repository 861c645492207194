"""Rows of every format become the right records, and every bad row is named with its place and what is wrong."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.training.data_making import write_jsonl
from training.config.data import DataConfig, DataSource
from training.data.files import choose_split, read_rows, resolve
from training.data.formats import Chat, Prompt, Text, detect_format, format_of, kind_for, parse_row
from training.data.messages import RowError
from training.data.preferences import Pair, split_transcripts
from training.data.records import Placed, Problem, open_source
from training.errors import DataError, MissingInput


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


# -- files ------------------------------------------------------------------------------------------------------------

ROWS = [{"instruction": f"q{i}", "output": "答"} for i in range(5)]


def values(path: Path) -> list[Any]:
    return [row.value for row in read_rows(path)]


def test_every_container_gives_the_same_rows(tmp_path: Path) -> None:
    pretty = json.dumps(ROWS, ensure_ascii=False, indent=2)
    (tmp_path / "array.json").write_text(pretty)
    (tmp_path / "bom.json").write_text("\ufeff" + pretty, encoding="utf-8")
    (tmp_path / "array.json.gz").write_bytes(gzip.compress(pretty.encode()))
    (tmp_path / "objects.json").write_text("\n".join(json.dumps(row) for row in ROWS))
    (tmp_path / "array.jsonl").write_text(pretty)
    write_jsonl(tmp_path / "lines.jsonl", ROWS)
    write_jsonl(tmp_path / "lines.jsonl.gz", ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "table.parquet")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    for file in files:
        assert values(file) == ROWS, file.name


def test_places_are_lines_that_an_editor_shows(tmp_path: Path) -> None:
    array = tmp_path / "array.json"
    array.write_text('[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n]')
    assert [row.place for row in read_rows(array)] == ["array.json:2", "array.json:4", "array.json:5"]
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row.place for row in read_rows(lines)] == ["lines.jsonl:1", "lines.jsonl:3"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    assert [row.place for row in read_rows(tmp_path / "t.parquet")][:2] == ["t.parquet row 1", "t.parquet row 2"]


def test_a_text_file_is_one_document_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n二\r\n   \nthree")
    assert values(tmp_path / "a.txt") == ["one", "二", "three"]


def test_a_bad_line_is_a_problem_of_its_own_and_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n{"text": "\xff"}\n{"text": "d"}\n')
    problems = [(row.place, row.problem) for row in read_rows(path) if row.problem]
    assert problems == [
        ("a.jsonl:2", "is not valid JSON: expecting value at column 10"),
        ("a.jsonl:3", "is not UTF-8: byte 0xff at byte offset 34 of the file"),
    ]
    assert [row.value for row in read_rows(path) if not row.problem] == [{"text": "a"}, {"text": "d"}]


def test_gbk_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + '{"text": "你好"}\n'.encode("gbk"))
    (problem,) = [row.problem for row in read_rows(tmp_path / "a.jsonl") if row.problem]
    assert problem.endswith("; it looks like GBK (iconv -f GB18030 -t UTF-8)")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", b'[{"a": 1},\n{"a": 2', "a.json:2"),
        ("a.json", b'[{"a": 1}\n', "a.json:2: the list is cut off"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', "a.json:2: a comma is missing after row 1"),
        ("a.json", b'[{"a": 1},\n{"a": "\xe9"}]', "a.json:2: is not UTF-8: byte 0xe9 at byte offset 18"),
        ("a.json", "[]".encode("utf-16"), "UTF-16"),
        ("a.jsonl.gz", b"not gzip", "damaged .gz"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999)[:-12], "damaged .gz"),
        ("a.parquet", b"PAR1", "not a readable parquet file"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / name))
    assert complaint in str(caught.value)


def test_sources_that_are_not_there_or_not_data(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="does not exist"):
        resolve(DataSource(str(tmp_path / "none.json")))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(MissingInput, match="not a data file"):
        resolve(DataSource(str(tmp_path / "a.csv")))
    with pytest.raises(MissingInput, match="holds no data file"):
        resolve(DataSource(str(tmp_path)))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        open_source(DataSource(str(tmp_path / "empty.jsonl")), "sft")
    write_jsonl(tmp_path / "odd.jsonl", [{"foo": 1}])
    with pytest.raises(DataError, match=r"odd.jsonl:1: the rows are of no known format \(fields: foo\)"):
        open_source(DataSource(str(tmp_path / "odd.jsonl")), "sft")


def test_a_folder_gives_the_files_of_the_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train-00000-of-00002.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "train-00001-of-00002.jsonl", ROWS[2:4])
    write_jsonl(tmp_path / "test-00000-of-00001.jsonl", ROWS[4:])
    (tmp_path / "dataset_infos.json").write_text("{}")
    rows = open_source(DataSource(str(tmp_path)), "sft")
    assert [item.raw.place for item in rows if isinstance(item, Placed)] == [
        "train-00000-of-00002.jsonl:1",
        "train-00000-of-00002.jsonl:2",
        "train-00001-of-00002.jsonl:1",
        "train-00001-of-00002.jsonl:2",
    ]
    assert len(list(open_source(DataSource(str(tmp_path), split="test"), "sft"))) == 1
    assert len(list(open_source(DataSource(str(tmp_path), max_samples=3), "sft"))) == 3


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["a.json", "b.txt", "README.md"], "train", ["a.json", "b.txt"]),
        (["data/train-0.parquet", "data/test-0.parquet"], "test", ["data/test-0.parquet"]),
        (["restrain.json", "train.json"], "train", ["train.json"]),
        (["all.json", "test.json"], "train", ["all.json"]),
        (["train.json"], "test", []),
    ],
)
def test_split_by_name(names: list[str], split: str, expected: list[str]) -> None:
    assert choose_split(names, split) == expected


def test_problems_are_told_from_records(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], {"instruction": "x", "output": ""}, ROWS[1]])
    items = list(open_source(DataSource(str(path)), "sft"))
    assert [str(item) for item in items if isinstance(item, Problem)] == ["a.jsonl:2: output is empty"]
    assert sum(isinstance(item, Placed) for item in items) == 2


def test_a_hub_data_set_comes_from_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small server that speaks the hub's protocol stands in for a mirror named by HF_ENDPOINT."""
    body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(True)

        def do_HEAD(self) -> None:
            self.answer(False)

        def answer(self, send: bool) -> None:
            asked.append(self.path)
            names = ("README.md", "data/train.jsonl", "data/test.jsonl")
            tree = [{"type": "file", "path": name, "oid": "0" * 40, "size": len(body)} for name in names]
            if self.path.startswith("/api/datasets/org/rows/tree/main"):
                content, headers = json.dumps(tree).encode(), {"Content-Type": "application/json"}
            elif self.path.startswith("/datasets/org/rows/resolve/main/data/train.jsonl"):
                content, headers = body, {"ETag": '"0123456789abcdef"', "X-Repo-Commit": "a" * 40}
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if send:
                self.wfile.write(content)

        def log_message(self, format: str, *values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        script = (
            "from training.config.data import DataSource\n"
            "from training.data.records import open_source, Placed\n"
            "rows = open_source(DataSource('hf:org/rows'), 'sft')\n"
            "print([item.raw.place for item in rows if isinstance(item, Placed)])\n"
            "try:\n    open_source(DataSource('hf:org/absent'), 'sft')\n"
            "except Exception as error:\n    print(type(error).__name__, error)\n"
        )
        out = run_python(script, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(tmp_path))
    finally:
        server.shutdown()
    assert out.splitlines()[0] == str([f"train.jsonl:{i + 1}" for i in range(5)])
    assert "MissingInput There is no data set org/absent on http://127.0.0.1" in out
    assert not any("test.jsonl" in path for path in asked)


def run_python(script: str, **environment: str) -> str:
    """A process of its own: huggingface_hub reads its environment when it is imported."""
    import os
    import subprocess
    import sys

    variables = {**os.environ, **environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    variables.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True, timeout=60, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"path": " "}, "path is empty"),
        ({"path": "hf:name"}, "not a hub data set"),
        ({"path": "a", "weight": 0}, "weight"),
        ({"path": "a", "max_samples": 0}, "max_samples"),
    ],
)
def test_bad_sources_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DataSource(**arguments)


def test_bad_data_sections_are_refused() -> None:
    with pytest.raises(ValueError, match="eval_fraction"):
        DataConfig(eval_fraction=1.0)
    with pytest.raises(ValueError, match="not both"):
        DataConfig(eval=(DataSource("a"),), eval_fraction=0.1)
