"""Tokenised stores: made once however many ask, cut as told, equal for any number of workers, bad rows stopped at."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.data_making import preferences, questions, tokenizer_folder, write_jsonl
from training.config.data import DataSource
from training.data.encode import EncodeOptions, encode_source
from training.data.records import open_source
from training.data.report import Report
from training.data.store import DOCUMENT, StoreWriter, TokenStore, cache_folder, open_store
from training.data.template import TextCodec
from training.errors import DataError

OPTIONS = EncodeOptions(max_length=64, over_long="truncate")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(tokenizer_folder(tmp_path_factory.mktemp("codec")))


def encode(
    codec: TextCodec, path: Path, cache: Path, stage: str = "sft", options: EncodeOptions = OPTIONS, **more: Any
) -> tuple[TokenStore, Report]:
    return encode_source(open_source(DataSource(str(path)), stage), codec, options, cache, **more)


def documents(store: TokenStore) -> list[tuple[list[int], list[bool]]]:
    found = []
    for entry in store.documents:
        part = slice(int(entry["start"]), int(entry["start"] + entry["length"]))
        shard = int(entry["shard"])
        found.append((store.tokens[shard][part].tolist(), store.targets[shard][part].tolist()))
    return found


def test_a_store_holds_what_the_codec_gives(codec: TextCodec, tmp_path: Path) -> None:
    rows = questions(30, longest=5)
    store, report = encode(codec, write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "c")
    for (tokens, targets), row in zip(documents(store), rows, strict=True):
        talk = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        expected = codec.encode_chat(talk)
        assert tokens == expected.tokens.tolist() and targets == expected.targets.tolist()
    assert report.rows == report.documents == 30 and report.tokens == sum(len(t) for t, _ in documents(store))
    assert report.targets == sum(sum(t) for _, t in documents(store))
    assert store.tokens[0].dtype == np.uint16 and isinstance(store.tokens[0], np.memmap)
    assert [store.row_id(entry) for entry in store.documents[:2]] == ["a.jsonl:1", "a.jsonl:2"]


def test_several_workers_write_the_same_store(codec: TextCodec, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", questions(1200, longest=9))
    one, report = encode(codec, path, tmp_path / "one")
    two, other = encode(codec, path, tmp_path / "two", workers=2)
    assert report == other and report.documents == 1200
    assert np.array_equal(one.documents, two.documents)
    assert one.folder.name == two.folder.name and documents(one) == documents(two)


def test_the_cache_answers_for_the_same_content_only(codec: TextCodec, tmp_path: Path) -> None:
    path, cache = write_jsonl(tmp_path / "a.jsonl", questions(9)), tmp_path / "cache"
    folder = encode(codec, path, cache)[0].folder
    stamp = (folder / "documents.npy").stat().st_mtime_ns
    assert encode(codec, path, cache)[0].folder == folder
    assert (folder / "documents.npy").stat().st_mtime_ns == stamp  # not made again
    (tmp_path / "sub").mkdir()
    same = write_jsonl(tmp_path / "sub" / "a.jsonl", questions(9))
    assert encode(codec, same, cache)[0].folder == folder  # content counts, not where it lies
    others = {
        encode(codec, path, cache, options=EncodeOptions(32, "truncate"))[0].folder,
        encode(TextCodec.load(tokenizer_folder(tmp_path / "t"), template="human"), path, cache)[0].folder,
        encode(codec, write_jsonl(path, questions(10)), cache)[0].folder,
        folder,
    }
    assert len(others) == 4
    assert not [p for p in cache.iterdir() if p.name.endswith(".part")]


WORKER = """
import sys, time
from pathlib import Path
from training.data.store import StoreWriter, open_store
cache, log = Path(sys.argv[1]), Path(sys.argv[2])
def build(folder):
    with log.open("a") as file:
        file.write("built\\n")
    time.sleep(1)
    StoreWriter(folder, 100).finish({"files": []})
store = open_store(cache, "key", build)
print(store.meta["documents"])
"""


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path / "cache"), str(tmp_path / "log")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["0", "0", "0"]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_builder_that_is_killed_leaves_the_work_to_the_next(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        WORKER.replace("time.sleep(1)", "time.sleep(60)"),
        str(tmp_path),
        str(tmp_path / "l"),
    ]
    killed = subprocess.Popen(command)
    deadline = time.monotonic() + 30
    while not (tmp_path / "l").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.wait(timeout=10)

    def build(folder: Path) -> None:
        StoreWriter(folder, 100).finish({"files": []})

    assert open_store(tmp_path, "key", build).meta["documents"] == 0


def test_a_failed_build_leaves_nothing_behind(codec: TextCodec, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*questions(3), {"instruction": "x", "output": ""}])
    with pytest.raises(DataError, match=r"a.jsonl:4: output is empty. Mend or remove the row, or set data.bad_rows"):
        encode(codec, path, tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_bad_rows_can_be_skipped_and_are_counted(codec: TextCodec, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n{"instruction": "\xff"}\n')
    store, report = encode(codec, path, tmp_path / "c", options=EncodeOptions(64, "truncate", bad_rows="skip"))
    assert len(store.documents) == 1 and (report.rows, report.bad) == (3, 2)
    offset = path.read_bytes().index(b"\xff")
    assert report.problems[1] == f"a.jsonl:3: is not UTF-8: byte 0xff at byte offset {offset} of the file"
    assert "2 bad and skipped" in str(report)


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
    folder = tokenizer_folder(tmp_path / "t", template=template + "{{ messages[-1]['content'] + eos_token }}")
    talk = [{"role": r, "content": "a"} for r in ("user", "assistant")]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": talk}, {"messages": talk * 2}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: The chat template 'tokenizer' refuses .* one question only"):
        encode(TextCodec.load(folder), path, tmp_path / "c")


# -- lengths ----------------------------------------------------------------------------------------------------------


def test_split_texts_predict_every_token_once(codec: TextCodec, tmp_path: Path) -> None:
    text = " ".join(f"word{i}" for i in range(200))
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text}, {"text": "short"}])
    store, report = encode(codec, path, tmp_path / "c", "pt", EncodeOptions(max_length=50, over_long="split"))
    whole = codec.encode_text(text).tokens.tolist()
    pieces = [tokens for tokens, _ in documents(store)][:-1]
    assert all(len(piece) <= 50 for piece in pieces) and report.split == 1
    assert pieces[0] + [token for piece in pieces[1:] for token in piece[1:]] == whole
    assert sum(store.documents["targets"][:-1]) == len(whole) - 1
    assert len(set(store.documents["key"][:-1])) == 1  # pieces of a text stay on one side of a split


def test_truncated_documents_keep_their_beginning(codec: TextCodec, tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "word " * 99}, {"instruction": "long " * 99, "output": "b"}, *questions(1)]
    store, report = encode(codec, write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "c")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "word " * 99}]
    assert documents(store)[0][0] == codec.encode_chat(talk).tokens[:64].tolist()
    assert documents(store)[0][0][-1] not in codec.stop_ids  # a cut answer does not teach to stop
    assert (report.truncated, report.unlearnable, report.documents) == (2, 1, 2)
    assert "2 cut to max_length" in str(report) and "1 left out: nothing to learn" in str(report)


def test_long_documents_can_be_dropped(codec: TextCodec, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "a", "output": "word " * 99}, *questions(2)])
    _, report = encode(codec, path, tmp_path / "c", options=EncodeOptions(64, "drop"))
    assert (report.too_long, report.documents) == (1, 2)


def test_nothing_left_is_an_error_with_the_reason(codec: TextCodec, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", questions(3))
    with pytest.raises(DataError, match=r"nothing usable is left of 3 rows .* 3 left out: over max_length"):
        encode(codec, path, tmp_path / "c", options=EncodeOptions(4, "drop"))


def test_a_run_that_would_lose_most_rows_is_refused(codec: TextCodec, tmp_path: Path) -> None:
    """Also from the cache, and also where the longest rows only lose their answers."""
    rows = [{"instruction": "long " * 99, "output": f"b {i}"} for i in range(9)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, *questions(1)])
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            encode(codec, path, tmp_path / "c", max_left_out=0.5)
        said = str(caught.value)
        assert (
            "9 left out: nothing to learn. That 9 of 10 rows are left out is more than data.max_left_out (0.5)" in said
        )
        assert "Raise train.max_length (now 64; the longest row has " in said
    assert encode(codec, path, tmp_path / "c", max_left_out=0.9)[1].unlearnable == 9
    talk = [{"role": r, "content": "word " * 9} for _ in range(4) for r in ("user", "assistant")]
    chats = write_jsonl(tmp_path / "b.jsonl", [{"messages": talk}])
    with pytest.raises(DataError, match=r"That \d of 4 answers of the assistant would not be learned is more than"):
        encode(codec, chats, tmp_path / "c", max_left_out=0.1)
    report = encode(codec, chats, tmp_path / "c")[1]
    assert report.answers == 4 and 0 < report.lost < 4 and f"{report.lost} of 4 answers not learned" in str(report)


def test_answers_that_nobody_wants_are_not_lost(codec: TextCodec, tmp_path: Path) -> None:
    talk = [{"role": r, "content": r, "weight": 0} for _ in range(2) for r in ("user", "assistant")]
    talk[-1]["weight"] = 1
    store, report = encode(codec, write_jsonl(tmp_path / "a.jsonl", [{"messages": talk, "id": 1}]), tmp_path / "c")
    assert (report.answers, report.lost, report.unused) == (1, 0, {"id": 1})
    tokens, targets = documents(store)[0]
    assert codec.decode(np.array(tokens)[targets], skip_special=False) == "assistant<|im_end|>"
    assert "fields not used: id" in str(report)


def test_pairs_that_become_equal_when_cut_are_left_out(codec: TextCodec, tmp_path: Path) -> None:
    same = "word " * 99
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"prompt": "q", "chosen": same + "x", "rejected": same + "y"}, *preferences(2)]
    )
    store, report = encode(codec, path, tmp_path / "c", "rm")
    assert report.unlearnable == 1 and len(store.documents) == 4
    assert [store.row_id(entry) for entry in store.documents] == ["a.jsonl:2"] * 2 + ["a.jsonl:3"] * 2


def test_a_store_of_several_shards_reads_like_one(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, 70_000, shard_tokens=10)
    for number in range(5):
        entry = np.zeros(2, DOCUMENT)
        entry["length"] = (3, 4)
        writer.append(entry, np.arange(7) + 65_530 + number, np.ones(7, bool))
    writer.finish({"files": ["a"]})
    store = TokenStore(tmp_path)
    assert store.meta["shards"] == 5 and store.tokens[0].dtype == np.int32
    assert documents(store)[-1] == ([65_537, 65_538, 65_539, 65_540], [True] * 4)


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAVARCH_CACHE_DIR", str(tmp_path / "env"))
    assert cache_folder() == tmp_path / "env" / "data"
    assert cache_folder(str(tmp_path / "asked")) == tmp_path / "asked" / "data"
    monkeypatch.delenv("NAVARCH_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "navarch" / "data"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # can't be made: the temporary folder serves
    assert "navarch" in str(cache_folder()) and json.dumps(str(cache_folder()))
