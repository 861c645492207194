"""Adapters start at the base, change only themselves, switch off, merge, and travel in PEFT's format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.tiny import packed, tiny_config
from training.config.stages import LoraConfig
from training.errors import ConfigError
from training.models.heads import LanguageModelLoss
from training.models.load import from_config
from training.models.lora import (
    adapters_off,
    convert_to_lora,
    lora_layers,
    merged_state_dict,
    save_adapter,
)

DOCS = [[5, 9, 12, 7], [3, 4, 8, 8, 20, 31]]


def adapted(architecture: str = "llama", **options):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = from_config(tiny_config(architecture))
    names = convert_to_lora(model, LoraConfig(rank=4, **options))
    return model, names


def shake(model: torch.nn.Module) -> None:
    """Give B values, as training would."""
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 12, 7, 33]]), use_cache=False).logits


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("llama", 14), ("gpt2", 8), ("bloom", 8), ("opt", 12), ("qwen2", 14), ("gpt_neox", 8)],
)
def test_auto_targets_are_every_linear_layer_of_the_blocks(architecture: str, expected: int) -> None:
    model, names = adapted(architecture)
    assert len(names) == expected
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.{part}" for name in names for part in ("lora_A", "lora_B")
    }


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_a_fresh_adapter_changes_nothing_and_an_adapter_switched_off_too(architecture: str) -> None:
    torch.manual_seed(0)
    plain = logits(from_config(tiny_config(architecture)))
    model, _ = adapted(architecture)
    torch.testing.assert_close(logits(model), plain)
    shake(model)
    assert not torch.allclose(logits(model), plain, atol=1e-3)
    with adapters_off(model):
        torch.testing.assert_close(logits(model), plain)
    assert not torch.allclose(logits(model), plain, atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_the_merged_model_in_plain_transformers_has_the_trained_logits(architecture: str, tmp_path: Path) -> None:
    model, _ = adapted(architecture)
    shake(model)
    trained = logits(model)
    model.save_pretrained(tmp_path, state_dict=merged_state_dict(model, model.state_dict()))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(logits(reloaded), trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_reads_the_saved_adapter(architecture: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, _ = adapted(architecture)
    shake(model)
    save_adapter(model, model.state_dict(), tmp_path, base="base")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_config(architecture), attn_implementation="eager")
    torch.testing.assert_close(
        logits(peft.PeftModel.from_pretrained(base, tmp_path)), logits(model), rtol=1e-4, atol=1e-4
    )


def test_training_moves_only_the_adapters_and_lowers_the_loss() -> None:
    model, _ = adapted()
    before = {name: p.clone() for name, p in model.named_parameters()}
    module, batch = LanguageModelLoss(model), packed(DOCS)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = module(batch).item()
    for _ in range(8):
        optimizer.zero_grad()
        loss = module(batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * first
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.endswith(("lora_A", "lora_B")) for name in moved)


def test_unknown_targets_and_the_output_layer_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"no linear layer named query; it has .*q_proj"):
        adapted(targets=("query",))
    torch.manual_seed(0)
    model = from_config(tiny_config("opt", word_embed_proj_dim=32))
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        convert_to_lora(model, LoraConfig(targets=("lm_head",)))


def test_dropout_acts_only_while_training() -> None:
    model, _ = adapted(dropout=0.5)
    shake(model)
    torch.testing.assert_close(logits(model), logits(model))
    module, batch = LanguageModelLoss(model), packed(DOCS)
    model.train()
    assert module(batch).item() != module(batch).item()
