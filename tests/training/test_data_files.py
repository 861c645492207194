"""Data is found and read from files, folders and hubs; what can't be is named with the place."""

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
from training.data.records import Placed, Problem, open_source
from training.errors import DataError, MissingInput

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
