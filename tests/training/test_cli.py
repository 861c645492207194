"""navarch-train's front door: help, quick and named refusals, exit codes, and event lines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.making import ROOT, environment, make_model, make_rows, settings
from training import cli
from training.config.foreign import FOREIGN
from training.config.help import keys_of
from training.config.load import load_config
from training.config.stages import config_class


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training.cli", *arguments], env=environment(), cwd=ROOT, capture_output=True, text=True,
        timeout=240, check=False,
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
        capture_output=True, text=True, timeout=240, check=False,
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


@pytest.mark.parametrize("stage", [*cli.STAGES, "serve"])
def test_help_says_what_each_key_means_and_may_be(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And every default that it shows is one that the stage takes."""
    tree: dict[str, object] = {"model": "m", "data": ["d"], "reward": {"function": "m:f"}}
    for key in keys_of(config_class(stage)):
        assert key.meaning.endswith((".", "…", ")")) and key.values, key
        if key.default != "required" and not key.path.startswith("data.sources"):
            given = {
                name: value for name, value in tree.items() if name in ("model", "data") or stage in ("ppo", "grpo")
            }
            given = {"model": "m"} if stage == "serve" else given
            if key.path not in ("critic.head", "reward.model", "reward.function", "ptx.coef"):
                load_config(stage, given, [f"{key.path}={key.default}"])
    assert cli.main([stage, "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 160


def test_help_of_a_stage_has_its_own_defaults() -> None:
    rates = {
        stage: next(k.default for k in keys_of(config_class(stage)) if k.path == "train.lr") for stage in cli.STAGES
    }
    assert rates == {"pt": "2e-05", "sft": "2e-05", "rm": "1e-05", "dpo": "5e-07", "ppo": "1e-06", "grpo": "1e-06"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learning_rate=1e-5", "Unknown key learning_rate. Here it is train.lr."),
        ("train.gradient_accumulation_steps=2", "Here it is train.accumulate."),
        ("model_name_or_path=x", "Here it is model."),
        ("per_device_train_batch_size=2", "Here it is train.batch_size."),
        ("train.cutoff_len=9", "Here it is train.max_length."),
        ("gradient-checkpointing=true", "Here it is train.activation_checkpointing: full."),
        ("lora.target_modules=[q]", "Here it is lora.targets."),
        ("lr=1", "It belongs to a section: train.lr."),
        ("kl_coef=1", "Unknown key kl_coef. Known here"),  # a name of ppo's
        ("data.sources.0.wieght=1", "Unknown key data.sources[0].wieght. Did you mean weight?"),
    ],
)
def test_names_of_other_tools_are_known(override: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "model=m", "data=d", override]) == 64
    assert said in capsys.readouterr().err


def test_every_foreign_name_leads_to_a_key_that_some_stage_has() -> None:
    paths = {key.path for stage in (*cli.STAGES, "serve") for key in keys_of(config_class(stage))}
    paths |= {path.rpartition(".")[0] for path in paths}
    for theirs, ours in FOREIGN.items():
        assert ours.startswith("nothing") or ours.split(":")[0].split(" ")[0] in paths, theirs


def test_the_page_for_people_from_other_tools_has_every_name() -> None:
    rows = [line.split(" | ") for line in (ROOT / "docs/other-tools.md").read_text().splitlines() if " | " in line]
    page = {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    for theirs, ours in FOREIGN.items():
        assert page[theirs].replace("`", "").removesuffix(" |") == ours


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=a.jsonl"],
        ["data.0.path=a.jsonl"],
        ["data.sources.0.path=a.jsonl", "data.sources.0.weight=2"],
        ["data=a.jsonl", "data.sources.0.weight=2"],
        ["data.0.path=a.jsonl", "data.1.path=b.jsonl", "lora=4", "lora.dropout=0.1", "strategy=naive", "strategy.tp=1"],
    ],
)
def test_overrides_make_what_they_reach_into(overrides: list[str]) -> None:
    config = load_config("sft", {}, ["model=m", *overrides])
    assert config.data.sources[0].path == "a.jsonl"
    assert config.data.sources[0].weight == (2 if any("weight" in word for word in overrides) else 1)


def test_an_error_is_told_once_to_people_and_as_an_event_to_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sft", "model=m"]) == 64
    assert capsys.readouterr() == ("", "error: data is missing: it has no default.\n")
    monkeypatch.setenv("NAVARCH_EVENTS", "1")
    assert cli.main(["sft", "model=m"]) == 64
    assert '@navarch {"event":"error"' in capsys.readouterr().out


def test_check_looks_at_everything_and_runs_nothing(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sft", "--check", *settings("sft", *made, tmp_path / "run"), "lora=4"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert "model: LlamaForCausalLM, 40,096 parameters" in said and "LoRA: rank 4 on 14 layers" in said
    assert "8 rows looked at, 0 bad; tokens: half have up to" in said and "rows.jsonl:1:" in said and "⟦" in said


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        (["lora.targets=[q_porj]"], 64, "has no linear layer named q_porj; it has"),
        (["resume=/nowhere/step-3"], 66, "is no whole checkpoint"),
        (["data.template=chatlm"], 64, "is not one of human, alpaca"),
        (["data.template=llama3"], 64, "add them as tokens with data.add_special_tokens"),
        (["data.sources.0.path=nowhere.jsonl"], 66, "nowhere.jsonl does not exist"),
        (["data.eval=[nowhere.jsonl]"], 66, "nowhere.jsonl does not exist"),
        (["data.sources.0.format=dpo"], 65, "stage sft needs conversations"),
        (["data.sources.0.columns={instruction: q}"], 65, "rows.jsonl:1: has no q, which columns names"),
        (["model=nowhere"], 66, "There is no model folder nowhere"),
    ],
)
def test_check_refuses_what_the_run_would(
    made: tuple[Path, Path], tmp_path: Path, extra: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sft", "--check", *settings("sft", *made, tmp_path / "run"), *extra]) == code
    assert said in capsys.readouterr().err


def test_check_of_ppo_and_serve(made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ppo", "--check", f"model={made[0]}", f"data={made[1]}"]
    assert cli.main([*words, "reward.function=nowhere:f"]) == 64
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "r.py").write_text("def f(prompts, completions, rows):\n    return [0.0] * len(rows)\n")
    assert cli.main([*words, f"reward.function={tmp_path}/r.py:f"]) == 0
    assert cli.main([*words, f"reward.function={tmp_path}/r.py:f", "generation.max_new_tokens=9999"]) == 64
    assert cli.main(["serve", "--check", f"model={made[0]}"]) == 0
    assert cli.main(["serve", "--check", f"model={made[0]}", "max_length=9999"]) == 64
    assert cli.main(["serve", "--check", f"model={made[0]}", f"adapter={tmp_path}"]) == 66


def test_ppo_on_a_family_that_the_engine_lacks_is_refused_before_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = make_model(tmp_path / "model", "olmo"), make_rows(tmp_path / "rows.jsonl", "ppo", 8)
    (tmp_path / "r.py").write_text("def f(prompts, completions, rows):\n    return [0.0] * len(rows)\n")
    words = [f"model={model}", f"data={rows}", f"reward.function={tmp_path}/r.py:f", f"run_dir={tmp_path}/run"]
    said = "generation knows bloom, gpt2, llama, mistral, opt, phi3, qwen2, qwen3; this model is 'olmo'"
    assert cli.main(["ppo", "--check", *words]) == 64 and said in capsys.readouterr().err
    (model / "model.safetensors").write_bytes(b"no weights at all")
    assert cli.main(["ppo", "strategy=naive", *words]) == 64 and said in capsys.readouterr().err


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
    assert "There is no model folder" in capsys.readouterr().err
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
