"""Error-compensating rounding: the same as its plain definition, better than rounding to nearest, and end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, OPTConfig, PretrainedConfig

from tests.training.making import make_model
from training.rollout.linear import QuantizedLinear, dequantize
from training.serving import gptq
from training.serving.calibration import quantize_blocks
from training.serving.quantize import main, quantize_model, quantize_weight

SHAPE: dict[str, Any] = {"vocab_size": 97, "hidden_size": 64}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(
        **SHAPE, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64,
    ),
    "gpt2": GPT2Config(vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(
        **SHAPE, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=64,
        max_position_embeddings=64,
    ),
    "bloom": BloomConfig(**SHAPE, n_layer=2, n_head=4),
}  # fmt: skip


def correlated_inputs(count: int, size: int) -> Tensor:
    mixing = torch.eye(size) + torch.randn(size, size) * 0.2
    return torch.randn(count, size) @ mixing


def plain_gptq(matrix: Tensor, hessian: Tensor, group: int) -> Tensor:
    """The definition, O(K^4): what is left is solved anew after each column, by the inverse of what is left of H."""
    hessian = hessian.clone()
    order = hessian.diagonal().argsort(descending=True).tolist()
    grid = gptq.choose_grid(matrix.view(len(matrix), -1, group), hessian.diagonal().view(-1, group))
    hessian += torch.eye(len(hessian), dtype=hessian.dtype) * gptq.DAMPING * hessian.diagonal().mean()
    rest, out = matrix.clone(), torch.zeros_like(matrix)
    for turn, column in enumerate(order):
        own = gptq.Grid(grid.scale[:, column // group], grid.offset[:, column // group])
        out[:, column] = own.value(own.nearest(rest[:, column, None]))[:, 0]
        left = torch.tensor(order[turn:])
        inverse = torch.linalg.inv(hessian[left][:, left])
        loss = (rest[:, column] - out[:, column]) / inverse[0, 0]
        rest[:, left] -= loss[:, None] * inverse[0]
    return out


def rounded(matrix: Tensor, hessian: Tensor, group: int) -> Tensor:
    levels, grid = gptq.round_compensated(matrix, gptq.inputs_of(hessian), group)
    return grid.value(levels.view(matrix.shape[0], -1, group)).view(matrix.shape)


@pytest.mark.parametrize("group", [32, 64])
def test_it_is_its_plain_definition_column_by_column(group: int) -> None:
    torch.manual_seed(group)
    inputs = correlated_inputs(500, 192).double()  # more than one block of corrections
    matrix, hessian = torch.randn(8, 192, dtype=torch.float64), inputs.t() @ inputs
    torch.testing.assert_close(rounded(matrix, hessian, group), plain_gptq(matrix, hessian, group), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_layers_error_is_below_that_of_rounding_to_nearest(seed: int) -> None:
    torch.manual_seed(seed)
    inputs = correlated_inputs(1000, 128)
    inputs[:, 5] = 0.0  # an input that never speaks
    matrix, hessian = torch.randn(32, 128) * 0.05, inputs.t() @ inputs
    nearest = dequantize(quantize_weight(matrix, 4, 64), torch.float32)
    ours = dequantize(quantize_weight(matrix, 4, 64, inputs=gptq.inputs_of(hessian)), torch.float32)
    assert gptq.layer_error(matrix, ours, hessian) < 0.8 * gptq.layer_error(matrix, nearest, hessian)
    assert gptq.layer_error(matrix, ours, hessian) == pytest.approx(
        float(((inputs @ (ours - matrix).t()) ** 2).sum()), rel=1e-3
    )


def test_inputs_without_correlation_are_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(16, 128)
    levels, grid = gptq.round_compensated(matrix, gptq.inputs_of(torch.eye(128)), 32)
    expected, nearest_grid = gptq.round_to_nearest(matrix, 32)
    assert torch.equal(levels, expected) and torch.equal(grid.scale, nearest_grid.scale)


def quantizable(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


@pytest.mark.parametrize("name", list(CONFIGS))
def test_calibration_brings_a_model_nearer_to_what_it_was(name: str) -> None:
    rows = torch.randint(0, 97, (16, 48), generator=torch.Generator().manual_seed(1)).tolist()
    fresh = torch.randint(0, 97, (8, 48), generator=torch.Generator().manual_seed(2))
    model = quantizable(name)
    with torch.no_grad():
        expected = model(fresh).logits.log_softmax(-1)
        errors = []
        for calibration in (None, [*rows, rows[0][:20]]):
            other = quantize_model(quantizable(name), 4, 32, rows=calibration)
            layers = [module for module in other.modules() if isinstance(module, QuantizedLinear)]
            assert {layer.bits for layer in layers} == {4, 8}
            found = other(fresh).logits.log_softmax(-1)
            errors.append(float((expected.exp() * (expected - found)).sum(-1).mean()))
    assert 0 < errors[1] < 0.9 * errors[0], "the divergence from the model before falls"


def test_each_block_sees_what_the_quantized_ones_before_it_give() -> None:
    model, rows = quantizable("llama"), [[5, 6, 7, 8], [9, 10, 11, 12]]
    seen: list[gptq.Inputs] = []

    def replace(layer: torch.nn.Module, inputs: gptq.Inputs) -> torch.nn.Module:
        seen.append(inputs)
        zero = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)  # type: ignore[arg-type]
        torch.nn.init.zeros_(zero.weight)
        return zero

    embedded = model.model.embed_tokens(torch.tensor(rows)).detach()
    quantize_blocks(model, rows, replace)
    assert len(seen) == 3 * 7
    norm = model.model.layers[2].input_layernorm  # every block adds nothing now: the last sees the embeddings
    inputs = norm(embedded).reshape(-1, 64).detach()
    torch.testing.assert_close(seen[14].power, inputs.pow(2).sum(0), rtol=1e-4, atol=1e-5)


def test_the_command_calibrates_with_data_or_with_the_models_own_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model(tmp_path / "model", intermediate_size=96)
    data = tmp_path / "text.jsonl"
    data.write_text(
        "".join(json.dumps({"text": f"a row of words, number {i}, and then some"}) + "\n" for i in range(40))
    )
    text = tmp_path / "held.txt"
    text.write_text("some other words that the model is asked about " * 20)
    for number, extra in enumerate((["--calibration", str(data)], [])):
        arguments = [str(folder), str(tmp_path / f"out{number}"), "--group", "32", "--rows", "4", "--text", str(text)]
        assert main([*arguments, *extra]) == 0
        out = capsys.readouterr().out
        assert "calibrating with" in out and "perplexity" in out
