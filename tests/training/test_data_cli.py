"""The data commands as a person types them: what they print, what they write, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.data_making import CHATML, preferences, questions, tokenizer_folder, write_jsonl
from training.data.cli import main
from training.data.files import read_rows
from training.data.formats import detect_format
from training.data.synthetic import CONTROL, FACTS, KINDS, held_out, prompts, synthesize
from training.errors import ConfigError, DataError, MissingInput


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tokenizer_folder(tmp_path_factory.mktemp("model")))


def test_check_lists_every_bad_row_with_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [*questions(2), {"instruction": "x", "output": ""}, {"instruction": "y"}, questions(1)[0]])
    with path.open("ab") as file:
        file.write(b"{\n\xff\n")
    assert main(["check", str(path)]) == 65
    out = capsys.readouterr().out
    for line in (
        "problem: a.jsonl:3: output is empty",
        "problem: a.jsonl:4: has no output / response / completion / answer / answers; its fields are instruction",
        "problem: a.jsonl:6: is not valid JSON",
        "problem: a.jsonl:7: is not UTF-8: byte 0xff",
        "warning: a.jsonl:5: repeats a.jsonl:1 word for word",
        "7 rows of format alpaca, for sft, ppo",
        "4 problems",
    ):
        assert line in out


def test_check_of_an_array_lists_rows_up_to_where_it_breaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"text": "a"},\n{"text": ""},\n{"text": "b" "c"}\n]')
    assert main(["check", str(path)]) == 65
    out = capsys.readouterr().out
    assert "problem: a.json:3: text is empty" in out
    assert "problem: a.json:4: not valid JSON in row 3 (which begins on line 4): expecting ',' delimiter" in out


def test_check_counts_tokens_when_a_model_is_given(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*questions(1), {"instruction": "a", "output": "word " * 99}])
    assert main(["check", str(path), "--model", model, "--max-length", "90"]) == 65
    assert "problem: a.jsonl:2: is too long: " in (out := capsys.readouterr().out) and "a.jsonl:1" not in out
    write_jsonl(path, [{"instruction": "a", "output": "b<|im_end|>c"}])
    assert main(["check", str(path), "--model", model]) == 0
    assert "its text holds the special token <|im_end|>, which is read as plain text" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="give --model too"):
        main(["check", str(path), "--max-length", "9"])


def test_check_refuses_what_the_run_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + CHATML
    model = str(tokenizer_folder(tmp_path / "model", template=template))
    talk = [{"role": r, "content": r} for r in ("user", "assistant")]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": talk, "tools": [{"name": "f"}]}, {"messages": talk * 2}])
    assert main(["check", str(path), "--limit", "0"]) == 0
    assert "no problem found; tools need a chat template with a place for them" in capsys.readouterr().out
    assert main(["check", str(path), "--model", model]) == 65
    out = capsys.readouterr().out
    assert "a.jsonl:1: The chat template 'tokenizer' has no place for tools" in out
    assert "a.jsonl:2: The chat template 'tokenizer' refuses this conversation: one question only" in out
    assert main(["stats", str(path), "--model", model]) == 0
    assert "2 of them bad (a.jsonl:1: The chat template 'tokenizer' has no place" in capsys.readouterr().out
    path = write_jsonl(tmp_path / "b.jsonl", [{"instruction": "long " * 50, "output": "b"}, *questions(1)])
    assert main(["check", str(path), "--model", model, "--max-length", "40"]) == 65
    out = capsys.readouterr().out
    assert "b.jsonl:1: nothing is left to learn within max_length" in out and "1 of 2 rows are left out" in out


def test_check_names_fields_of_which_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**row, "source": "web"} for row in questions(3)])
    assert main(["check", str(path)]) == 0
    assert "no problem found; fields not used: source (3 rows)" in capsys.readouterr().out


def test_check_as_json_and_for_a_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*preferences(2), {"prompt": "q", "chosen": "a", "rejected": "a"}])
    assert main(["check", str(path), "--json"]) == 65
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["format"], facts["kind"]) == (3, "rm-static", "pair")
    assert facts["problems"][0]["place"] == "a.jsonl:3" and "identical" in facts["problems"][0]["problem"]
    assert main(["check", str(path), "--stage", "ppo"]) == 0
    with pytest.raises(DataError, match="stage sft needs"):
        main(["check", str(path), "--stage", "sft"])


def test_stats_show_lengths_and_what_is_learned(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "问", "output": f"答 {i}"} for i in range(30)])
    assert main(["stats", str(path), "--model", model, "--show", "3"]) == 0
    out = capsys.readouterr().out
    assert "30 rows of format alpaca" in out and "(tokens)" in out and "█" in out
    assert "<|im_start|>user\n问<|im_end|>\n<|im_start|>assistant\n⟦答 3⟧⟦<|im_end|>⟧" in out
    assert "a.jsonl:4 (⟦…⟧ is learned)" in out
    assert main(["stats", str(path)]) == 0
    assert "(characters)" in capsys.readouterr().out


def test_stats_paint_what_is_learned_green(tmp_path: Path, model: str) -> None:
    from training.data.formats import Chat, Text
    from training.data.preferences import Pair
    from training.data.stats import CONTEXT, LEARNED, RESET, TURN_END, coloured
    from training.data.template import TextCodec

    codec = TextCodec.load(model)
    chat = Chat(({"role": "user", "content": "the"}, {"role": "assistant", "content": "old"}))
    text = coloured(chat, codec)[0]
    assert text.endswith(f"{LEARNED}old{RESET}{TURN_END}<|im_end|>{RESET}") and text.startswith(CONTEXT)
    assert len(coloured(Pair(chat.messages[:1], "a", "b"), codec)) == 2
    assert coloured(Text("river"), codec)[0].startswith(LEARNED)
    assert f"{LEARNED}old{RESET}" in coloured(chat, None)[0]


def test_dedup_writes_the_rows_that_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "the old stone bridge over the river is long"}, {"text": "something else"}]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {"text": "The old stone bridge over the river is long!"}])
    for name in ("out.jsonl", "out.json"):
        assert main(["dedup", str(path), "--out", str(tmp_path / name)]) == 0
        assert [row.value for row in read_rows(tmp_path / name)] == rows
    assert "a.jsonl:3 is 100% like a.jsonl:1" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="threshold"):
        main(["dedup", str(path), "--threshold", "2"])


def test_wrong_use_and_missing_files(tmp_path: Path) -> None:
    assert main(["chekc", "x"]) == 64
    with pytest.raises(MissingInput):
        main(["check", str(tmp_path / "none.json")])


def test_exit_codes_through_navarch_train(tmp_path: Path) -> None:
    def code(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "training.data.cli", *arguments]
        program = "import sys; from training.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", program, "data", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    assert code("check", str(tmp_path / "none.json"))[0] == 66
    (tmp_path / "empty.jsonl").write_text("")
    status, error = code("check", str(tmp_path / "empty.jsonl"))
    assert status == 65 and "is empty" in error and "Traceback" not in error


# -- synthetic data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_data_is_what_its_stage_reads(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    assert main(["synthesize", str(path), "--rows", "50", "--kind", kind]) == 0
    rows = [row.value for row in read_rows(path)]
    assert len(rows) == 50
    formats = {"sft": "alpaca", "dpo": "rm-static", "prompts": "prompt", "pt": "text", "sums": "prompt"}
    assert detect_format(rows) == formats[kind]


def test_synthetic_data_is_reproducible_and_never_holds_the_test_questions(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize(tmp_path / name, 2000, seed=seed)
    one = (tmp_path / "a").read_text()
    assert one == (tmp_path / "b").read_text() != (tmp_path / "c").read_text()
    for question in [question for question, _ in held_out()] + [CONTROL[0]]:
        assert question not in one
    for fact in FACTS:
        assert one.count(fact.answer) > 200 and fact.keyword.lower() in fact.answer.lower()
        assert all(question in one for question in fact.questions)
    assert set(prompts()) <= {question for question, _ in held_out()} | {CONTROL[0]}


def test_data_synthesize_needs_only_what_the_control_plane_has(tmp_path: Path) -> None:
    program = (
        "import sys; from training.cli import main; "
        f"assert main(['data', 'synthesize', {str(tmp_path / 'a.jsonl')!r}, '--rows', '5']) == 0; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
    with pytest.raises(ConfigError, match="rows must be at least 1"):
        main(["synthesize", str(tmp_path / "b.jsonl"), "--rows", "0"])
