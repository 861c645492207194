"""A finished run is never lost: what an export needs is tried before training, and weights are kept whatever fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from tests.training.making import events, make_model, make_rows, settings
from tests.training.test_families import TRAINED, lively
from tests.training.tiny import tiny_config
from training import cli
from training.data.template import TextCodec
from training.errors import ConfigError, TrainingError, WriteFailed
from training.models.blocks import trunk_of
from training.models.export import save_model
from training.models.heads import RewardModel
from training.models.load import from_config, load_causal_lm
from training.models.rehearsal import mend_generation, rehearse_model, rehearse_reward_model


@pytest.mark.parametrize(
    ("published", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),  # Vicuna, Llama 2
        ({"temperature": 0.7, "do_sample": False}, {"do_sample": True, "temperature": 0.7}),
        ({"early_stopping": True, "length_penalty": 2.0}, {"do_sample": None}),
    ],
)  # fmt: skip
def test_a_run_ends_well_whatever_the_generation_config(
    published: dict[str, Any], kept: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **published}))
    rows = make_rows(tmp_path / "rows.jsonl", "sft", 8)
    assert cli.main(["sft", *settings("sft", model, rows, tmp_path / "run", max_steps=1)]) == 0
    written = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert {key: written.get(key) for key in kept} == kept and written["eos_token_id"] == [2]


def test_sampling_settings_in_config_json_are_written_where_they_belong(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "top_p": 0.8}))
    loaded = load_causal_lm(str(model))
    assert "do_sample" in mend_generation(loaded)
    rehearse_model(tmp_path, loaded, TextCodec.load(model), dtype=torch.float32)
    assert loaded.generation_config.top_p == 0.8 and loaded.generation_config.do_sample


def test_what_cannot_be_exported_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model", "cohere")  # no sequence classifier in transformers
    rows = make_rows(tmp_path / "rows.jsonl", "rm", 8)
    assert cli.main(["rm", *settings("rm", model, rows, tmp_path / "run", max_steps=2)]) == 64
    assert "no sequence classifier for cohere" in capsys.readouterr().err
    assert not [event for event in events(tmp_path / "run") if event["event"] == "metrics"]


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_architecture_passes_the_rehearsal(architecture: str, tmp_path: Path) -> None:
    codec = TextCodec.load(make_model(tmp_path / "base"))
    model = lively(from_config(tiny_config(architecture)))
    rehearse_model(tmp_path, model, codec, dtype=torch.float32)
    try:
        rehearse_reward_model(tmp_path, RewardModel(trunk_of(model)), codec, dtype=torch.float32)
    except ConfigError as refused:
        assert "no sequence classifier" in str(refused)
    assert [path.name for path in tmp_path.iterdir()] == ["base"], "the rehearsal left something behind"


def test_a_disk_that_is_too_small_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_config(tiny_config())
    codec = TextCodec.load(make_model(tmp_path / "base"))
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("training.models.rehearsal.shutil.disk_usage", lambda path: usage)
    with pytest.raises(WriteFailed, match="GiB free"):
        rehearse_model(tmp_path, model, codec, dtype=torch.float32)


class Unwritable(TextCodec):
    """A tokenizer whose files can't be written."""

    def save(self, folder: Any) -> None:
        raise PermissionError(13, "Permission denied", str(folder))


def test_weights_are_kept_when_the_export_fails(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", tie_word_embeddings=True)
    model, codec = load_causal_lm(str(base)), Unwritable.load(base)
    with pytest.raises(TrainingError, match=r"Permission denied.*trained weights are in .*model-weights.safetensors"):
        save_model(tmp_path / "model", model, model.state_dict(), codec, {})
    assert not (tmp_path / "model").exists()
    kept = load_file(tmp_path / "model-weights.safetensors")
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)
    assert set(model.state_dict()) - set(kept) == {"lm_head.weight"} or "lm_head.weight" in kept


def test_what_fails_after_the_weights_are_written_says_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Any) -> dict[str, float]:
        raise RuntimeError("the last evaluation ran out of something")

    model = make_model(tmp_path / "model")
    rows = make_rows(tmp_path / "rows.jsonl", "sft", 8)
    monkeypatch.setattr("training.loop.trainer.Trainer.evaluate", broken)
    assert cli.main(["sft", *settings("sft", model, rows, tmp_path / "run", max_steps=1)]) == 70
    folder = tmp_path / "run" / "model"
    assert f"trained to its end and written: {folder}" in capsys.readouterr().err
    load_causal_lm(str(folder))
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [2]
