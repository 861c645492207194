"""config.json and tokenizers as transformers 5 writes them mean here what they mean there; exports have one form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.making import make_model, make_rows, settings
from training import cli
from training.data.template import TextCodec
from training.errors import ConfigError
from training.models.load import load_causal_lm, load_config

BASE: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "dtype": "float32", "transformers_version": "5.24.0",
}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
WRITTEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": None},
    ),
    "llama (3.1)": (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "gpt_neox": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}},
        {"rotary_emb_base": 3e4, "rotary_pct": 0.5},
    ),
    "phi": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25}},
        {"rope_theta": 2e4, "partial_rotary_factor": 0.25},
    ),
    "phi3": (
        {"rope_parameters": LONG, "original_max_position_embeddings": 16, "pad_token_id": 0},
        {"original_max_position_embeddings": 16, "rope_theta": 1e4,
         "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
    ),
    "gemma3_text": (
        {"rope_parameters": {FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                             SLIDING: {"rope_type": "default", "rope_theta": 2e4}},
         "layer_types": [SLIDING, SLIDING, FULL], "_sliding_window_pattern": 6, "sliding_window": 6, "head_dim": 8},
        {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
         "sliding_window_pattern": 3},
    ),
    "qwen3": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "layer_types": [FULL, SLIDING, SLIDING],
         "use_sliding_window": True, "sliding_window": 6, "head_dim": 8},
        {"rope_theta": 1e6, "max_window_layers": 1, "use_sliding_window": True},
    ),
    "qwen3_moe": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "num_local_experts": 4,
         "moe_intermediate_size": 24, "head_dim": 8},
        {"rope_theta": 1e6, "num_experts": 4},
    ),
}  # fmt: skip


def folder(path: Path, name: str) -> Path:
    path.mkdir(exist_ok=True)
    written = {**BASE, **WRITTEN[name][0], "model_type": name.split()[0]}
    (path / "config.json").write_text(json.dumps(written))
    return path


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_what_transformers_5_writes_is_read(name: str, tmp_path: Path) -> None:
    config = load_config(str(folder(tmp_path, name)))
    assert {key: getattr(config, key) for key in WRITTEN[name][1]} == WRITTEN[name][1]
    assert config.torch_dtype == torch.float32
    config.save_pretrained(tmp_path / "out")
    again = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"rope_parameters", "dtype", "layer_types"} & set(again), "two forms in one file"


def test_layers_that_this_transformers_cannot_mix_are_refused(tmp_path: Path) -> None:
    written = {**BASE, "model_type": "qwen3", "layer_types": [SLIDING, FULL, SLIDING],
               "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match="layer_types mix full_attention and sliding_attention"):
        load_config(str(tmp_path))


def test_a_run_from_such_a_model_keeps_its_rotary_base(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", rope_theta=500000.0)
    wanted = load_causal_lm(str(model)).model.rotary_emb.inv_freq
    written = json.loads((model / "config.json").read_text())
    written["rope_parameters"] = {"rope_type": "default", "rope_theta": written.pop("rope_theta")}
    written["dtype"] = written.pop("torch_dtype")
    (model / "config.json").write_text(json.dumps(written))
    rows = make_rows(tmp_path / "rows.jsonl", "sft", 8)
    assert cli.main(["sft", *settings("sft", model, rows, tmp_path / "run", max_steps=1)]) == 0
    torch.testing.assert_close(load_causal_lm(str(tmp_path / "run" / "model")).model.rotary_emb.inv_freq, wanted)
    exported = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert exported["rope_theta"] == 500000.0 and "rope_parameters" not in exported


@pytest.mark.parametrize("extra", [{}, {"extra_special_tokens": ["<s>"]}])
def test_a_tokenizer_of_transformers_5_is_read_from_its_tokenizer_json(extra: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    before = TextCodec.load(model)
    path = model / "tokenizer_config.json"
    written = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True, **extra}
    path.write_text(json.dumps({**json.loads(path.read_text()), **written}))
    after = TextCodec.load(model)
    assert after.fingerprint == before.fingerprint and after.encode_text("red river").tokens.tolist() == (
        before.encode_text("red river").tokens.tolist()
    )
    after.save(tmp_path / "saved")
    assert TextCodec.load(tmp_path / "saved").vocabulary_digest == before.vocabulary_digest
