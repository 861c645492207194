"""navarch-train's front door: help, quick and named refusals, exit codes, and event lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.making import ROOT, environment, make_model, make_rows, settings
from training import cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training.cli", *arguments], env=environment(), cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    return make_model(folder / "model"), make_rows(folder / "rows.jsonl", "sft", 8)


def test_a_wrong_key_is_refused_without_importing_torch(tmp_path: Path) -> None:
    started = time.monotonic()
    program = (
        "import sys; from training.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "sft", "model=m", "data=d", "train.epoch=3"], env=environment(), cwd=ROOT,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 64
    assert "Did you mean epochs?" in done.stderr
    event = json.loads(done.stdout.splitlines()[-1].removeprefix("@navarch "))
    assert (event["event"], event["kind"]) == ("error", "bad_config")
    assert time.monotonic() - started < 20  # a second on an idle machine; far from torch's import on any


def test_threads_that_wait_sleep(tmp_path: Path) -> None:
    """As OpenMP's own runtime tells it: those that spin bring a machine with other work to a standstill."""
    done = subprocess.run(
        [sys.executable, "-c", "from training.cli import main; main(['--help']); import torch"], cwd=ROOT,
        env={**environment(), "OMP_DISPLAY_ENV": "TRUE"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "navarch-train STAGE"),
        (["sfft"], "Did you mean sft?"),
        (["sft", "--confg", "x"], "Did you mean --config?"),
        (["sft", "--config"], "--config needs a value"),
        (["sft", "run.yaml"], "neither an option nor key=value"),
        (["sft", "model=m", "data=d", "strategy=colosalai_zero2"], "there is no strategy 'colosalai_zero2'"),
        (["sft", "model=m", "data=d", "strategy=colossalai_gemini", "lora=4"], "Gemini can't train LoRA"),
        (["sft", "model=m", "data=d", "strategy=colossalai_gemini", "train.precision=fp32"], "fp32 is not possible"),
    ],
)
def test_a_bad_command_line_is_explained(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 64
    shown = capsys.readouterr()
    assert said in shown.err + shown.out


def test_help_lists_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert cli.main(["sft", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("train.lr ", "2e-05", "lora.rank", "data.eval_fraction", "eval.every", "samples.prompts", "required"):
        assert word in text


def test_check_says_yes_and_runs_nothing(made: tuple[Path, Path], tmp_path: Path) -> None:
    assert cli.main(["sft", "--check", *settings("sft", *made, tmp_path / "run")]) == 0
    assert not (tmp_path / "run").exists()


def spoil(model: Path, tmp_path: Path, name: str, content: bytes | None) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    return copy


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("config.json", None, 66, "has no config.json"),
        ("config.json", b"{", 64, "config"),
        ("config.json", b'{"model_type": "nonesuch"}', 64, "nonesuch"),
        ("model.safetensors", None, 66, "weights in"),
        ("model.safetensors", b"\x00" * 64, 66, "can't be read"),
        ("tokenizer.json", b"{", 66, "tokenizer"),
    ],
)
def test_a_broken_model_folder_is_told_apart(
    name: str, content: bytes | None, code: int, said: str, made: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = spoil(made[0], tmp_path, name, content)
    assert cli.main(["sft", *settings("sft", model, made[1], tmp_path / "run")]) == code
    assert said in capsys.readouterr().err


def test_a_missing_model_missing_data_bad_row_and_foreign_tokenizer_have_their_codes(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = made
    assert cli.main(["sft", *settings("sft", tmp_path / "nothing", rows, tmp_path / "a")]) == 66
    assert "is not a folder" in capsys.readouterr().err
    assert cli.main(["sft", *settings("sft", model, tmp_path / "nothing.jsonl", tmp_path / "b")]) == 66
    assert "nothing.jsonl" in capsys.readouterr().err
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text() + '{"instruction": 5\n')
    assert cli.main(["sft", *settings("sft", model, bad, tmp_path / "c")]) == 65
    assert "bad.jsonl:9" in capsys.readouterr().err
    small = make_model(tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    from tests.training.tiny import tiny_config
    from training.models.load import from_config

    from_config(tiny_config(vocab_size=100)).save_pretrained(small)
    assert config["vocab_size"] == 384
    assert cli.main(["sft", *settings("sft", small, rows, tmp_path / "d")]) == 64
    assert "belong" in capsys.readouterr().err


def test_a_run_prints_metric_lines_that_a_program_can_read(made: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("sft", *settings("sft", *made, tmp_path / "run", max_steps=2), "samples.prompts=['red stone']")
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("@navarch ") for line in done.stdout.splitlines() if line.startswith("@navarch ")]
    found = [json.loads(line) for line in lines]
    assert found == [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    metrics = [event for event in found if event["event"] == "metrics"]
    assert [event["step"] for event in metrics] == [1, 2] and metrics[0]["total_steps"] == 2
    assert {"loss", "lr", "grad_norm", "tokens_per_second"} <= metrics[0]["values"].keys()
    samples = [event for event in found if event["event"] == "sample"]
    assert [event["title"] for event in samples] == ["before training", "after training"]
    assert samples[0]["columns"] == ["prompt", "answer"] and samples[0]["rows"][0][0] == "red stone"
    assert "step 2/2" in done.stdout
