"""Each stage through its front door: it learns, exports what transformers reads, counts its loss alike everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.training.making import events, losses, make_model, make_rows, settings, train
from training import cli


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_stage_learns_and_exports(stage: str, lora: bool, model: Path, tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "rows.jsonl", stage)
    options = [
        *settings(stage, model, rows, tmp_path / "run", max_steps=12),
        "data.eval_fraction=0.2",
        "eval.at_start=true",
    ]
    assert cli.main([stage, *options, *(["lora.rank=4", "lora.alpha=16"] if lora else [])]) == 0
    first, last = (event["values"]["eval/loss"] for event in events(tmp_path / "run", "eval"))
    assert last < first
    made = {event["path"]: event["kind"] for event in events(tmp_path / "run", "artifact")}
    assert made == {"model": "model", **({"adapter": "adapter"} if lora else {})}
    folder = tmp_path / "run" / "model"
    loader = AutoModelForSequenceClassification if stage == "rm" else AutoModelForCausalLM
    _, report = loader.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).chat_template
    facts = json.loads((folder / "navarch.json").read_text())
    assert (
        facts["stage"] == stage
        and facts["step"] == 12
        and facts["metrics"]["eval/loss"] == pytest.approx(last, rel=1e-4)
    )


def test_a_frozen_trunk_stays_as_it_was_and_the_head_learns(model: Path, tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "rows.jsonl", "rm")
    options = settings("rm", model, rows, tmp_path / "run", max_steps=12)
    assert cli.main(["rm", *options, "reward.trunk=frozen", "reward.head_init=zero", "train.lr=1e-2"]) == 0
    curve = losses(tmp_path / "run")
    assert curve[0] == pytest.approx(0.6931, abs=1e-4) and curve[-1] < curve[0]
    before = AutoModelForCausalLM.from_pretrained(model).model.state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert all(torch.equal(before[name], tensor) for name, tensor in after.model.state_dict().items())
    assert after.score.weight.abs().max() > 0
    assert cli.main(["rm", *options, "reward.trunk=frozen", "lora=4"]) == 64
    assert cli.main(["rm", *options, "reward.trunk=frozen", "strategy=colossalai_gemini"]) == 64


@pytest.mark.parametrize("architecture", ["gpt2", "bloom", "opt", "qwen2"])
def test_other_architectures_train_and_their_export_has_the_trained_logits(architecture: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "model", architecture)
    rows = make_rows(tmp_path / "rows.jsonl", "sft", 12)
    assert cli.main(["sft", *settings("sft", base, rows, tmp_path / "run", max_steps=12), "lora=8"]) == 0
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0]


def test_loss_and_steps_are_the_same_for_1x8_and_2x4_accumulated_and_2_ranks_of_4(model: Path, tmp_path: Path) -> None:
    """Documents have unequal lengths, so any mean of means would differ."""
    rows = make_rows(tmp_path / "rows.jsonl", "sft", 32)
    runs = {
        "whole": (1, {"batch_size": 8, "accumulate": 1}, "naive"),
        "accumulated": (1, {"batch_size": 4, "accumulate": 2}, "naive"),
        "ranks": (2, {"batch_size": 4, "accumulate": 1}, "ddp"),
    }
    weights, curves = {}, {}
    for name, (ranks, sizes, strategy) in runs.items():
        options = settings("sft", model, rows, tmp_path / name, packing=False, max_steps=4, eps=1e-4, **sizes)
        if ranks == 1:
            assert cli.main(["sft", *options]) == 0
        else:
            done = train("sft", [*options, f"strategy={strategy}"], ranks=ranks)
            assert done.returncode == 0, done.stderr
        metrics = [event["values"] for event in events(tmp_path / name, "metrics")]
        curves[name] = torch.tensor([[each["loss"], each["grad_norm"]] for each in metrics])
        weights[name] = AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict()
    for name in ("accumulated", "ranks"):
        torch.testing.assert_close(curves[name], curves["whole"], rtol=1e-4, atol=1e-4)
        for key, value in weights["whole"].items():
            torch.testing.assert_close(weights[name][key], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("stage", ["sft", "rm", "dpo"])
def test_packed_and_unpacked_rows_give_the_same_first_loss(stage: str, model: Path, tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "rows.jsonl", stage, 6)
    first = []
    for packing, size in ((True, {"tokens_per_batch": 2048}), (False, {"batch_size": 6})):
        run_dir = tmp_path / str(packing)
        options = settings(stage, model, rows, run_dir, packing=packing, max_steps=1, **size)
        if not packing:
            options.remove("train.tokens_per_batch=256")
        assert cli.main([stage, *options]) == 0
        values = events(run_dir, "metrics")[0]["values"]
        first.append([values["loss"], values["grad_norm"]])
    torch.testing.assert_close(torch.tensor(first[0]), torch.tensor(first[1]), rtol=1e-4, atol=1e-5)


def test_a_stage_uses_the_model_of_the_stage_before(model: Path, tmp_path: Path) -> None:
    """pt → sft → rm, and the manifest tells the way."""
    base = model
    for stage in ("pt", "sft", "rm"):
        rows = make_rows(tmp_path / f"{stage}.jsonl", stage, 8)
        assert cli.main([stage, *settings(stage, base, rows, tmp_path / stage, max_steps=2)]) == 0
        base = tmp_path / stage / "model"
    history = json.loads((base / "navarch.json").read_text())["history"]
    assert [entry["stage"] for entry in history] == ["pt", "sft"]


def test_neftune_and_recomputed_activations_train_and_recomputing_changes_nothing(model: Path, tmp_path: Path) -> None:
    rows = make_rows(tmp_path / "rows.jsonl", "sft", 12)
    curves = {}
    variants = {"plain": {}, "noisy": {"neftune": 5}} | {
        how: {"activation_checkpointing": how} for how in ("full", "selective")
    }
    for name, extra in variants.items():
        assert cli.main(["sft", *settings("sft", model, rows, tmp_path / name, max_steps=3, **extra)]) == 0
        curves[name] = losses(tmp_path / name)
    assert curves["full"] == pytest.approx(curves["plain"], rel=1e-5)
    assert curves["selective"] == pytest.approx(curves["plain"], rel=1e-5)
    assert curves["noisy"] != pytest.approx(curves["plain"], rel=1e-5)


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo"])
def test_documents_beyond_a_position_table_end_there_and_it_is_said(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_model(tmp_path / "model", "gpt2", max_position_embeddings=32)
    rows = make_rows(tmp_path / "rows.jsonl", stage, 8)
    assert cli.main([stage, *settings(stage, base, rows, tmp_path / "run", max_steps=1, max_length=96)]) == 0
    assert "has positions for 32 tokens: documents end there (train.max_length is 32)" in capsys.readouterr().out


def test_documents_longer_than_a_rotary_models_context_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_model(tmp_path / "model", max_position_embeddings=64)
    rows = make_rows(tmp_path / "rows.jsonl", "sft", 8)
    options = settings("sft", base, rows, tmp_path / "run", max_steps=1, max_length=96)
    assert cli.main(["sft", *options]) == 0
    assert "was made for 64 tokens" in capsys.readouterr().out
    assert cli.main(["sft", *options, "samples.prompts=[red]", "samples.max_new_tokens=60"]) == 64
    assert "together more than the 64 that the model reads" in capsys.readouterr().err
