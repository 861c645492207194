"""A job's YAML as its author meant it: overrides and relative paths; and the examples that come along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.spec import load_document, parse_spec
from jobs.workspace import parse_workspace
from service.cli import specs
from service.contract.errors import Problem

EXAMPLES = sorted((Path(__file__).parents[2] / "jobs" / "examples").rglob("*.yaml"))


def write(folder: Path, document: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(document))
    return str(file)


def test_relative_paths_are_relative_to_the_file_and_in_overrides_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(
        tmp_path / "specs",
        {
            "type": "sft",
            "model": "models/llama",
            "data": [{"path": "../data/a.json", "format": "alpaca"}, "b.json", "/abs/c.json"],
            "mounts": ["cache:/cache:ro", "/abs:/abs"],
        },
    )
    spec = specs.read(file, ["eval.every=5", "data.1=here.json"])
    assert spec["model"] == str(tmp_path / "specs/models/llama")
    assert spec["data"][0] == {"path": str(tmp_path / "data/a.json"), "format": "alpaca"}
    assert spec["data"][1:] == [str(tmp_path / "here.json"), "/abs/c.json"]
    assert spec["mounts"] == [f"{tmp_path}/specs/cache:/cache:ro", "/abs:/abs"]
    assert spec["eval"] == {"every": 5}


@pytest.mark.parametrize("data", ["rows.json", ["rows.json"]])
def test_overrides_reach_into_what_was_given_in_short(tmp_path: Path, data: object) -> None:
    file = write(tmp_path, {"type": "sft", "model": "/m", "data": data, "strategy": "colossalai_zero2"})
    spec = specs.read(file, ["data.eval_fraction=0.1", "strategy.bucket_mb=32"])
    assert spec["data"] == {"sources": [str(tmp_path / "rows.json")], "eval_fraction": 0.1}
    assert spec["strategy"] == {"name": "colossalai_zero2", "bucket_mb": 32}


@pytest.mark.parametrize("path", ["artifact:smol", "hf:org/name", "/abs/model"])
def test_names_of_things_that_are_no_local_paths_stay(tmp_path: Path, path: str) -> None:
    spec = specs.read(write(tmp_path, {"type": "sft", "model": "x", "data": path}), [f"model={path}"])
    assert spec["model"] == path and spec["data"] == path


def test_paths_of_ppo_are_found_too(tmp_path: Path) -> None:
    document = {
        "type": "ppo",
        "model": "m",
        "reward": {"function": "score.py:length", "functions": ["a.py:f", {"function": "b.py:g"}, "package:h"]},
        "critic": {"model": "c"},
        "ptx": {"data": [{"path": "p"}]},
        "data": {"sources": ["s"], "eval": [{"path": "e"}]},
    }
    spec = specs.read(write(tmp_path, document), [])
    assert spec["reward"] == {
        "function": f"{tmp_path}/score.py:length",
        "functions": [f"{tmp_path}/a.py:f", {"function": f"{tmp_path}/b.py:g"}, "package:h"],
    }
    assert spec["critic"]["model"] == f"{tmp_path}/c" and spec["ptx"]["data"][0]["path"] == f"{tmp_path}/p"
    assert spec["data"] == {"sources": [f"{tmp_path}/s"], "eval": [{"path": f"{tmp_path}/e"}]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("3", 3),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("a b", "a b"),
        ("", None),
        ("1.0", 1.0),
        ("e5", "e5"),
    ],
)
def test_values_of_overrides_are_yaml_with_numbers_as_people_write_them(text: str, value: object) -> None:
    assert specs.parse_override(f"train.lr={text}") == (["train", "lr"], value)


@pytest.mark.parametrize("text", ["lr", "=1", "a..b=1", "a={", "a=[1"])
def test_a_bad_override_is_named(text: str) -> None:
    with pytest.raises(Problem) as refused:
        specs.parse_override(text)
    assert refused.value.code == "invalid_override" and text.split("=")[0] in refused.value.detail


def test_an_override_into_a_list_must_hit_an_item(tmp_path: Path) -> None:
    file = write(tmp_path, {"type": "sft", "data": ["/a"]})
    with pytest.raises(Problem, match="is a list of 1"):
        specs.read(file, ["data.1.path=b"])


def test_a_missing_or_broken_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="There is no file"):
        specs.read(str(tmp_path / "none.yaml"), [])
    broken = tmp_path / "broken.yaml"
    broken.write_text("type: [sft\nname: x")
    with pytest.raises(Problem, match="line"):
        specs.read(str(broken), [])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_valid_job_or_workspace(example: Path) -> None:
    document = load_document(example.read_text())
    assert (parse_workspace if document["type"] == "workspace" else parse_spec)(document).name
