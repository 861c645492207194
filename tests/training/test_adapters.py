"""Adapters of anybody's making: merged to what PEFT itself computes, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from peft.tuners.ia3 import IA3Config
from transformers import AutoModelForCausalLM

from tests.training.making import make_model, make_rows, settings
from tests.training.tiny import tiny_config
from training import cli
from training.config.serving import ServeConfig
from training.errors import ConfigError, MissingInput
from training.models.adapters import merge_adapter
from training.models.load import load_causal_lm
from training.serving.loading import load_served

IDS = torch.arange(20)[None] % 60
QV = ["q_proj", "v_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": QV}),
    "rank-stabilised": ("llama", {"target_modules": QV, "use_rslora": True}),
    "DoRA": ("llama", {"target_modules": QV, "use_dora": True}),
    "alpha pattern": ("llama", {"target_modules": QV, "alpha_pattern": {"q_proj": 64}}),
    "rank pattern": ("llama", {"target_modules": QV, "rank_pattern": {"q_proj": 2}}),
    "saved modules": ("llama", {"target_modules": QV, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "saved modules, tied": ("qwen2", {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "biases": ("qwen2", {"target_modules": QV, "bias": "all"}),
    "embeddings": ("llama", {"target_modules": [*QV, "embed_tokens"]}),
    "embeddings, tied": ("qwen2", {"target_modules": [*QV, "embed_tokens"]}),
    "head": ("llama", {"target_modules": [*QV, "lm_head"]}),
    "head, tied": ("qwen2", {"target_modules": [*QV, "lm_head"]}),
    "all linear": ("llama", {"target_modules": "all-linear"}),
    "some layers": ("llama", {"target_modules": QV, "layers_to_transform": [1]}),
    "GPT-2, square": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "BLOOM": ("bloom", {"target_modules": ["query_key_value"]}),
}


def base(architecture: str) -> Any:
    torch.manual_seed(0)
    tied = architecture == "qwen2"
    return AutoModelForCausalLM.from_config(tiny_config(architecture, tie_word_embeddings=tied)).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def make(folder: Path, architecture: str, config: Any) -> torch.Tensor:
    """Save an adapter that changes something; returns what PEFT computes with it."""
    torch.manual_seed(1)
    adapted = get_peft_model(base(architecture), config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(str(folder))
    return logits(adapted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_merges_to_what_peft_computes(kind: str, tmp_path: Path) -> None:
    architecture, options = KINDS[kind]
    wanted = make(tmp_path, architecture, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, **options))
    model = base(architecture)
    assert (logits(model) - wanted).abs().max() > 1e-3, "the adapter changes nothing: the test shows nothing"
    torch.testing.assert_close(logits(merge_adapter(model, tmp_path)), wanted, rtol=1e-4, atol=1e-4)


def test_other_kinds_are_merged_too_or_refused_by_name(tmp_path: Path) -> None:
    ia3 = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    wanted = make(tmp_path / "ia3", "llama", ia3)
    torch.testing.assert_close(logits(merge_adapter(base("llama"), tmp_path / "ia3")), wanted, rtol=1e-4, atol=1e-4)
    make(tmp_path / "prompt", "llama", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ConfigError, match="PROMPT_TUNING: it adds tokens"):
        merge_adapter(base("llama"), tmp_path / "prompt")


def test_biases_that_peft_did_not_save_are_missed(tmp_path: Path) -> None:
    make(tmp_path, "qwen2", LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=QV, bias="lora_only"))
    with pytest.raises(ConfigError, match="lora_only, and its file has no biases"):
        merge_adapter(base("qwen2"), tmp_path)


def test_what_a_newer_peft_wrote_is_read_unless_it_uses_what_is_new(tmp_path: Path) -> None:
    wanted = make(tmp_path, "llama", LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=QV))
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "peft_version": "0.18.0", "lora_bias": False, "target_parameters": None}))
    torch.testing.assert_close(logits(merge_adapter(base("llama"), tmp_path)), wanted, rtol=1e-4, atol=1e-4)
    path.write_text(json.dumps({**written, "lora_bias": True}))
    with pytest.raises(ConfigError, match="uses lora_bias, which PEFT"):
        merge_adapter(base("llama"), tmp_path)


def test_an_adapter_that_is_not_there_or_of_another_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="holds no adapter"):
        merge_adapter(base("llama"), tmp_path)
    make(tmp_path / "deep", "llama", LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=QV))
    shallow = AutoModelForCausalLM.from_config(tiny_config("llama", num_hidden_layers=1))
    with pytest.raises(ConfigError, match=r"another model.*layers\.1\."):
        merge_adapter(shallow, tmp_path / "deep")
    with pytest.raises(ConfigError, match="does not fit this model"):
        merge_adapter(base("gpt2"), tmp_path / "deep")
    wide = AutoModelForCausalLM.from_config(tiny_config("llama", hidden_size=64))
    with pytest.raises(ConfigError, match="does not fit this model"):
        merge_adapter(wide, tmp_path / "deep")


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_trained_adapter_is_served_and_trained_on_as_the_merged_model(architecture: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", architecture)
    rows = make_rows(tmp_path / "rows.jsonl", "sft", 8)
    run = tmp_path / "run"
    assert cli.main(["sft", *settings("sft", model, rows, run, max_steps=3), "lora.rank=4"]) == 0
    merged = logits(load_causal_lm(str(run / "model"), attention="eager").eval())
    served = load_served(ServeConfig(model=str(model), adapter=str(run / "adapter"), dtype="fp32", max_length=64))
    torch.testing.assert_close(logits(served.model), merged, rtol=1e-4, atol=1e-4)
    again = tmp_path / "again"
    options = settings("sft", model, rows, again, max_steps=1, lr=0.0)
    assert cli.main(["sft", *options, f"adapter={run / 'adapter'}"]) == 0
    torch.testing.assert_close(
        logits(load_causal_lm(str(again / "model"), attention="eager").eval()), merged, rtol=1e-4, atol=1e-4
    )
