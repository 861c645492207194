"""`navarch-train init` writes a configuration that runs, with values that follow from what it measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.training.making import make_model, make_rows
from training import cli
from training.config.load import load_config
from training.data.template import TextCodec
from training.errors import OutOfMemory
from training.models.families import FAMILIES, Family
from training.proposal.choices import Plan, plan
from training.proposal.document import written
from training.proposal.facts import DataFacts, Machine, ModelFacts, look_at_data

GIB = 2**30
SMALL = ModelFacts("Small", 135_000_000, 5_000_000, 49152, 576, 8192, 8192, 700_000, 60_000)
SEVEN = ModelFacts("Seven", 6_700_000_000, 40_000_000, 32000, 4096, 4096, 4096, 3_000_000, 350_000)
ONE = Machine("GPU", 1, 80 * GIB, 2, 4e14)
EIGHT = replace(ONE, gpus=8)


def data_of(lengths: list[int], *, rows: int | None = None, per_row: int = 1) -> DataFacts:
    count = rows or len(lengths) // per_row
    return DataFacts(("alpaca",), count, 0, "", np.array(lengths), per_row, count)


ROWS = data_of([100, 200, 300, 400] * 2500)


def values(found: Plan) -> dict[str, object]:
    return {choice.key: choice.value for choice in found.choices}


def test_a_small_model_is_trained_whole_and_steps_are_those_of_the_run() -> None:
    found = plan("sft", ROWS, SMALL, ONE)
    chosen = values(found)
    assert "lora" not in chosen and chosen["strategy"] == "naive" and chosen["train.lr"] == 2e-5
    assert chosen["train.max_length"] == 448  # 400, as a multiple of 64
    batch = int(str(chosen["train.tokens_per_batch"])) * int(str(chosen["train.accumulate"]))
    held_out = float(str(chosen["data.eval_fraction"]))
    assert held_out == 0.02 and 64 * 250 <= batch < 64 * 250 + 64
    assert found.steps == pytest.approx(3 * 2_500_000 * 0.98 / batch, rel=0.05)
    assert found.seconds == pytest.approx(found.steps * 6 * 135e6 * batch / 2e14)


def test_a_large_model_gets_adapters_on_one_gpu_and_is_shared_out_over_eight() -> None:
    chosen = values(plan("sft", ROWS, SEVEN, ONE))
    assert chosen["lora"] == 16 and chosen["train.lr"] == 2e-4 and "train.activation_checkpointing" not in chosen
    spread = values(plan("sft", ROWS, SEVEN, EIGHT))
    assert spread["strategy"] == "colossalai_zero2" and "lora" not in spread
    assert values(plan("sft", ROWS, SMALL, EIGHT))["strategy"] == "ddp"


def test_what_does_not_fit_is_recomputed_or_refused_with_both_figures() -> None:
    long = data_of([4000] * 100)
    assert values(plan("sft", long, SEVEN, replace(ONE, memory=21 * GIB)))["train.activation_checkpointing"] == "full"
    with pytest.raises(OutOfMemory, match=r"LoRA on 4,032 tokens takes about 1\d\.\d GiB, and 6\.8 GiB can be used"):
        plan("sft", long, SEVEN, replace(ONE, memory=8 * GIB))
    with pytest.raises(OutOfMemory, match="Actor, critic and reward model"):
        plan("ppo", long, SEVEN, replace(ONE, memory=24 * GIB))


def test_a_document_far_out_is_cut_and_the_context_is_the_limit() -> None:
    outlier = values(plan("sft", data_of([100] * 999 + [9000]), SMALL, ONE))
    assert outlier["train.max_length"] == 128
    assert values(plan("sft", data_of([9000] * 100), SMALL, ONE))["train.max_length"] == 8192


def test_pairs_stay_together_and_those_that_are_too_long_may_go() -> None:
    chosen = values(plan("dpo", data_of([100, 9000] * 100, per_row=2), SMALL, ONE))
    assert chosen["train.max_length"] == 8192 and int(str(chosen["train.tokens_per_batch"])) >= 2 * 8192
    assert chosen["data.max_left_out"] == 0.55


def test_ppo_leaves_room_for_answers_and_shares_them_out() -> None:
    chosen = values(plan("ppo", data_of([8000] * 500), SMALL, EIGHT))
    assert chosen["train.max_prompt_length"] == 8192 - 256 and chosen["train.long_prompts"] == "drop"
    assert chosen["train.rollout_batch_size"] == 128 and chosen["train.minibatch_size"] == 32
    assert values(plan("ppo", ROWS, SEVEN, ONE))["lora"] == 16


@pytest.mark.parametrize("value", [2e-5, 0.1, 1e-06, 16, True, "full", "a: b", "hf:org/x", ["a.json"], 3.0])
def test_values_are_read_back_as_they_were(value: object) -> None:
    assert yaml.safe_load(f"key: {written(value)}")["key"] == value


def test_of_many_rows_some_are_tokenised_and_all_are_counted(tmp_path: Path) -> None:
    model, rows = make_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": "red green blue"}) for _ in range(2500)))
    found = look_at_data([str(rows)], "pt", TextCodec.load(str(model)))
    assert (
        found.rows == found.documents == 2500 and found.seen == 2050 and "2,050 rows were tokenised" in found.sentence
    )


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "ppo", "grpo"])
def test_the_file_passes_the_check_and_explains_itself(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows, out = (
        make_model(tmp_path / "model"),
        make_rows(tmp_path / "rows.jsonl", stage, 60),
        tmp_path / "run.yaml",
    )
    words = ["init", stage, "--model", str(model), "--data", str(rows), "--out", str(out)]
    if stage in ("ppo", "grpo"):
        assert cli.main(words) == 64 and "--reward" in capsys.readouterr().err
        (tmp_path / "r.py").write_text("def f(prompts, completions, rows):\n    return [0.0] * len(rows)\n")
        words += ["--reward", f"{tmp_path}/r.py:f"]
    assert cli.main(words) == 0
    said, text = capsys.readouterr().out, out.read_text()
    assert "rows.jsonl:1:" in said and f"navarch-train {stage} --config {out}" in said  # the first row is shown
    config = load_config(stage, out)
    assert config.model == str(model) and config.data.sources[0].path == str(rows)
    assert "60 rows" in text and "half up to" in text and "GiB free" in text and " steps" in text
    lines = [line for line in text.splitlines() if ": " in line and not line.startswith(("#", "type", "model"))]
    assert all("# " in line for line in lines if "sources" not in line and "function" not in line)
    assert cli.main(words) == 64 and "is there already" in capsys.readouterr().err
    assert cli.main([stage, "--config", str(out), "--check"]) == 0


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_proposed_run_goes_to_its_end(stage: str, tmp_path: Path) -> None:
    model, rows, out = (
        make_model(tmp_path / "model"),
        make_rows(tmp_path / "rows.jsonl", stage, 60),
        tmp_path / "run.yaml",
    )
    assert cli.main(["init", stage, "--model", str(model), "--data", str(rows), "--out", str(out)]) == 0
    assert cli.main([stage, "--config", str(out), f"run_dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path}"]) == 0
    told = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    steps = [event for event in told if event["event"] == "metrics"][-1]["step"]
    proposed = re.search(r"(\d+) steps", out.read_text())
    assert proposed and steps == pytest.approx(int(proposed[1]), abs=2)


def test_bad_data_and_foreign_families_are_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = make_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": ""}\n')
    assert cli.main(["init", "sft", "--model", str(model), "--data", str(rows), "--out", str(tmp_path / "a")]) == 65
    assert "rows.jsonl:1: " in capsys.readouterr().err and not (tmp_path / "a").exists()
    monkeypatch.setitem(FAMILIES, "llama", Family(packed=True))
    words = ["init", "ppo", "--model", str(model), "--data", str(rows), "--reward", "x:f", "--out", str(tmp_path / "a")]
    assert cli.main(words) == 64 and "generation knows bloom, gpt2" in capsys.readouterr().err
