"""Weight-only quantization: the error is what the step size allows, and files come back as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Phi3Config, PretrainedConfig

from training.config.generation import GenerationConfig
from training.rollout import RolloutEngine
from training.rollout.linear import (
    QuantizedLinear,
    dequantize,
    fuse_linears,
    pack_nibbles,
    product,
    unpack_nibbles,
    weight_of,
)
from training.serving.quantize import (
    is_quantized,
    load_quantized,
    perplexity,
    quantize_model,
    quantize_weight,
    save_quantized,
)

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, attention_bias=True,
    ),
    "gpt2": GPT2Config(vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=128),
    "phi3": Phi3Config(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_within_half_a_step_of_every_weight_that_is_not_clipped(group: int) -> None:
    matrix = torch.randn(8, 256)
    weight = quantize_weight(matrix, 4, group)
    assert weight.data.shape == (8, 32) and weight.data.dtype == torch.int32 and weight.group == group
    assert weight.scale is not None and weight.offset is not None
    full = dequantize(weight, torch.float32).view(8, -1, group)
    step = weight.scale.float()[..., None]
    inside = (matrix.view(8, -1, group) > weight.offset.float()[..., None]) & (
        matrix.view(8, -1, group) < weight.offset.float()[..., None] + 15 * step
    )
    error = (full - matrix.view(8, -1, group)).abs()
    assert (error <= step / 2 + 1e-3)[inside].all() and inside.float().mean() > 0.9


def test_shrinking_the_range_lowers_the_error_when_one_weight_is_far_out() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(64, 128) * 0.1
    weight = quantize_weight(matrix, 4, 128)
    low, high = matrix.amin(1, keepdim=True), matrix.amax(1, keepdim=True)
    plain = ((matrix - low) / (high - low) * 15).round() * (high - low) / 15 + low
    assert (dequantize(weight, torch.float32) - matrix).pow(2).sum() < 0.97 * (plain - matrix).pow(2).sum()


def test_int8_product_is_close_and_keeps_bias_and_type() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    x = torch.randn(5, 7, 96)
    out = QuantizedLinear(quantize_weight(linear.weight, 8, bias=linear.bias))(x)
    assert out.shape == (5, 7, 40) and out.dtype == x.dtype
    assert (out - linear(x)).norm() / linear(x).norm() < 0.01
    half = QuantizedLinear(quantize_weight(linear.weight.bfloat16(), 8, bias=linear.bias.bfloat16()))
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_with_one_input_become_one_product(bits: int) -> None:
    torch.manual_seed(0)
    layers = [QuantizedLinear(quantize_weight(torch.randn(n, 64), bits, 32, torch.randn(n))) for n in (16, 8, 8)]
    x = torch.randn(3, 64)
    expected = torch.cat([layer(x) for layer in layers], dim=-1)
    assert weight_of(layers) is None
    assert fuse_linears(layers)
    joined = weight_of(layers)
    assert joined is not None and torch.equal(product(x, joined), expected)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_saves_loads_and_generates_alike(name: str, bits: int, tmp_path: Path) -> None:
    model = quantize_model(make_model(name), bits, group=32)
    assert isinstance(model.lm_head, QuantizedLinear) and model.lm_head.bits == 8
    layers = {"llama": 15, "gpt2": 9, "phi3": 9}[name]
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == layers
    save_quantized(model, tmp_path / "out", bits, 32)
    assert is_quantized(tmp_path / "out")
    again = load_quantized(tmp_path / "out", torch.float32)
    prompts, config = [[5, 6, 7], [8, 9]], GenerationConfig(max_new_tokens=16, temperature=0)
    first = RolloutEngine(model, max_batch=2, max_length=64).generate(prompts, config)
    second = RolloutEngine(again, max_batch=2, max_length=64).generate(prompts, config)
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.logprobs, second.logprobs)
    with torch.no_grad():
        row = first.tokens[0][None]
        logits = model(row).logits[0].float().log_softmax(-1)
    expected = logits[torch.arange(2, 18), first.tokens[0, 3:19]]
    torch.testing.assert_close(first.logprobs[0], expected, atol=2e-4, rtol=1e-4)


def test_a_model_in_another_layout_is_refused(tmp_path: Path) -> None:
    save_quantized(quantize_model(make_model("llama"), 4, group=32), tmp_path / "old", 4, 32)
    facts = tmp_path / "old" / "navarch_quantization.json"
    facts.write_text(facts.read_text().replace('"layout": 2', '"layout": 1'))
    with pytest.raises(ValueError, match="quantize the model again"):
        load_quantized(tmp_path / "old", torch.float32)


def test_nibbles_come_back_and_unfilled_blocks_end_in_zeros() -> None:
    levels = torch.randint(0, 16, (5, 224))
    words = pack_nibbles(levels)
    assert words.shape == (5, 32) and torch.equal(unpack_nibbles(words)[:, :224], levels.int())
    assert not unpack_nibbles(words)[:, 224:].any()


def test_int8_moves_perplexity_less_than_int4() -> None:
    tokens = torch.randint(0, 97, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    plain, int8, int4 = (
        perplexity(model, tokens, window=64)
        for model in (
            make_model("llama"),
            quantize_model(make_model("llama"), 8),
            quantize_model(make_model("llama"), 4),
        )
    )
    assert abs(math_log(int8 / plain)) < 0.02 < 1
    assert abs(math_log(int8 / plain)) < abs(math_log(int4 / plain))


def math_log(x: float) -> float:
    return float(torch.tensor(x).log())


def test_perplexity_of_a_uniform_model_is_the_vocabulary() -> None:
    model = make_model("gpt2")
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, list(range(90)), window=16) == pytest.approx(97, rel=1e-4)


def test_widths_that_int4_cannot_group_are_refused() -> None:
    with pytest.raises(ValueError, match="32 divides"):
        quantize_weight(torch.randn(4, 40), 4)
