"""Weight-only int8 and int4 quantization: at load, or ahead with `navarch-train quantize MODEL OUT --bits 4`.

int8 has one scale a row; int4 a scale and an offset for each group of a row (gptq.py rounds it). Embeddings stay as
they are; the output layer, often the largest matrix of a small model, is kept at int8.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from training.models.families import context_of
from training.models.load import load_config
from training.rollout.linear import QuantizedLinear, Weight, pack_nibbles
from training.serving import gptq
from training.serving.calibration import LENGTH, ROWS, quantize_blocks, rows_from_data, rows_from_model

QUANTIZED_FILE = "navarch_quantization.json"
LAYOUT = 2
"""Of the words of int4 weights (linear.pack_nibbles); a file of another one can't be read."""
GROUPS = (128, 64, 32)


def fitting_group(inputs: int, most: int) -> int:
    """The largest of 128, 64, 32 that is at most `most` and divides a layer's number of inputs."""
    fitting = [size for size in GROUPS if size <= most and inputs % size == 0]
    if not fitting:
        raise ValueError(f"int4 needs a number of inputs that 32 divides; a layer has {inputs}")
    return fitting[0]


def quantize_weight(
    matrix: Tensor, bits: int, group: int = 128, bias: Tensor | None = None, inputs: gptq.Inputs | None = None
) -> Weight:
    """Quantize [N, K]. int4 takes the largest of 128, 64, 32 that is at most `group` and divides K.

    With what is known of the layer's `inputs` int4 is rounded by GPTQ, else to the nearest level.
    """
    wide = matrix.detach().float()
    bias = None if bias is None else bias.detach().clone()
    if bits == 8:
        scale = (wide.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
        return Weight(8, (wide / scale).round().clamp(-127, 127).to(torch.int8), bias, scale)
    if bits != 4:
        raise ValueError(f"{bits} bits can't be had: give 8 or 4")
    size = fitting_group(wide.shape[1], group)
    if inputs is None:
        levels, grid = gptq.round_to_nearest(wide, size)
    else:
        levels, grid = gptq.round_compensated(wide, inputs, size)
    return Weight(4, pack_nibbles(levels), bias, grid.scale.contiguous(), grid.offset.contiguous(), size)


def quantize_model(
    model: nn.Module,
    bits: int,
    group: int = 128,
    *,
    head: bool = True,
    rows: Sequence[Sequence[int]] | None = None,
) -> nn.Module:
    """Replace the linear layers of a causal LM in place (GPT-2's transposed ones too); returns the model.

    With calibration `rows` (token ids) the blocks' int4 layers are rounded by GPTQ.
    """
    if rows is not None and bits == 4:
        quantize_blocks(model, rows, lambda layer, inputs: quantize_layer(layer, bits, group, inputs))
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name, parent, key, module in _linears(model):
        is_head = module is output or name.endswith("lm_head")
        if is_head and not head:
            continue
        setattr(parent, key, quantize_layer(module, 8 if is_head else bits, group))
    return model


def quantize_layer(layer: Any, bits: int, group: int, inputs: gptq.Inputs | None = None) -> QuantizedLinear:
    matrix = layer.weight.t().contiguous() if isinstance(layer, Conv1D) else layer.weight
    return QuantizedLinear(quantize_weight(matrix, bits, group, layer.bias, inputs))


def _linears(model: nn.Module) -> list[tuple[str, nn.Module, str, Any]]:
    """(full name, parent, attribute, layer) of every plain linear layer."""
    found = []
    for prefix, parent in model.named_modules():
        for key, module in parent.named_children():
            if type(module) is nn.Linear or isinstance(module, Conv1D):
                found.append((f"{prefix}.{key}" if prefix else key, parent, key, module))
    return found


def save_quantized(model: Any, folder: Path, bits: int, group: int) -> None:
    """Write a quantized model as safetensors with its config, for `load_quantized`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings and not isinstance(model.get_output_embeddings(), QuantizedLinear):
        tensors.pop("lm_head.weight", None)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    model.config.save_pretrained(str(folder))
    layers = {
        name: {"bits": module.bits, "group": module.group, "bias": module.bias is not None}
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    facts = {"layout": LAYOUT, "bits": bits, "group": group, "layers": layers}
    (folder / QUANTIZED_FILE).write_text(json.dumps(facts, indent=1) + "\n")


def is_quantized(folder: str | Path) -> bool:
    return (Path(folder) / QUANTIZED_FILE).exists()


def load_quantized(folder: str | Path, dtype: torch.dtype) -> Any:
    """Read what `save_quantized` wrote; activations and what isn't quantized are of `dtype`."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from transformers.modeling_utils import no_init_weights

    folder = Path(folder)
    facts = json.loads((folder / QUANTIZED_FILE).read_text())
    layers = facts["layers"]
    if facts.get("layout") != LAYOUT:
        raise ValueError(f"{folder} was quantized by another version of this program: quantize the model again")
    tensors = load_file(str(folder / "model.safetensors"))
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(load_config(str(folder)), torch_dtype=dtype)
    for name, layer in layers.items():
        parent_name, _, key = name.rpartition(".")
        parts = (tensors[f"{name}.data"], tensors.get(f"{name}.bias"))
        scales = (tensors[f"{name}.scale"], tensors.get(f"{name}.offset"))
        bias = None if parts[1] is None else parts[1].to(dtype)
        weight = Weight(layer["bits"], parts[0], bias, scales[0], scales[1], layer["group"])
        setattr(model.get_submodule(parent_name), key, QuantizedLinear(weight))
    rest = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] not in layers
    }
    missing, unexpected = model.load_state_dict(rest, strict=False)
    missing = [name for name in missing if name.rpartition(".")[0] not in layers and name != "lm_head.weight"]
    if missing or unexpected:
        raise ValueError(f"{folder} does not fit its config: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return model.eval()


@torch.no_grad()
def perplexity(model: Any, tokens: list[int], window: int = 512, most: int = 32768) -> float:
    """exp of the mean next-token loss over windows of a text, each token predicted once."""
    device = next(iter(model.parameters())).device
    window = min(window, context_of(model.config) or window)
    total, count = 0.0, 0
    for start in range(0, min(len(tokens), most) - 1, window - 1):
        piece = torch.tensor([tokens[start : start + window]], device=device)
        if piece.shape[1] < 2:
            break
        logits = model(input_ids=piece, use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, piece[0, 1:], reduction="sum"))
        count += piece.shape[1] - 1
    if not count:
        raise ValueError("the text has fewer than two tokens: no perplexity can be taken")
    return math.exp(total / count)


def calibration_rows(model: Any, codec: Any, data: str | None, count: int) -> list[list[int]]:
    length = min(LENGTH, context_of(model.config) or LENGTH)
    if data is not None:
        return rows_from_data(data, codec, count, length)
    return rows_from_model(model, codec, count, length)


def main(argv: list[str]) -> int:
    """`navarch-train quantize MODEL OUT --bits 4 [--group 64] [--calibration DATA] [--text FILE]`."""
    from training.data.template import TextCodec
    from training.errors import ConfigError, MissingInput
    from training.models.load import default_attention, load_causal_lm
    from training.report.phases import phase

    parser = argparse.ArgumentParser(prog="navarch-train quantize", description="Quantize a model's weights ahead.")
    parser.add_argument("model", help="model folder or hf:org/name")
    parser.add_argument("out", type=Path, help="folder to write; must not exist or be empty")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument(
        "--group", type=int, choices=sorted(GROUPS), default=64, help="weights that share a scale (int4)"
    )
    parser.add_argument(
        "--rounding", choices=("gptq", "nearest"), default="gptq", help="int4: gptq runs text through the model"
    )
    parser.add_argument(
        "--calibration", help="data for gptq, of any format that training reads; default: text the model writes itself"
    )
    parser.add_argument("--rows", type=int, default=ROWS, help=f"calibration rows of {LENGTH} tokens")
    parser.add_argument("--text", type=Path, help="text file on which to print the perplexity before and after")
    options = parser.parse_args(argv)
    if options.out.exists() and any(options.out.iterdir()):
        raise ConfigError(f"{options.out} is not empty: give a new folder for the quantized model")
    if options.text is not None and not options.text.is_file():
        raise MissingInput(f"the text file {options.text} does not exist")
    codec = TextCodec.load(options.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention = default_attention(load_config(options.model))
    model: Any = load_causal_lm(options.model, attention=attention).eval().to(device)
    tokens = codec.tokenizer(options.text.read_text("utf-8"))["input_ids"] if options.text else []
    before = perplexity(model, tokens) if tokens else None
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    rows: list[list[int]] | None = None
    if options.bits == 4 and options.rounding == "gptq":
        start = time.perf_counter()
        with phase("gathering text to calibrate with"):
            rows = calibration_rows(model, codec, options.calibration, options.rows)
        print(
            f"calibrating with {len(rows)} rows, {sum(map(len, rows)):,} tokens ({time.perf_counter() - start:.0f} s)"
        )
    start = time.perf_counter()
    with phase(f"quantizing to int{options.bits}"):
        quantize_model(model, options.bits, options.group, rows=rows)
    print(f"quantized in {time.perf_counter() - start:.0f} s", flush=True)
    after = perplexity(model, tokens) if tokens else None
    staging = options.out.with_name(options.out.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    save_quantized(model.cpu(), staging, options.bits, options.group)
    codec.save(staging)
    if options.out.exists():
        options.out.rmdir()
    staging.rename(options.out)
    written = (options.out / "model.safetensors").stat().st_size
    print(f"{options.out}: int{options.bits}, {written / 2**20:,.0f} MiB (weights were {size / 2**20:,.0f} MiB)")
    if before is not None and after is not None:
        change = 100 * (after / before - 1)
        print(f"perplexity on {options.text}: {before:.3f} before, {after:.3f} after ({change:+.2f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
