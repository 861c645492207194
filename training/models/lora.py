"""Low-rank adapters (Hu et al. 2021) on linear layers: inject, switch off, merge, save and load in PEFT's format."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from training.config.stages import LoraConfig
from training.errors import ConfigError
from training.models.blocks import find_blocks

PEFT_PREFIX = "base_model.model."


class LoraLinear(nn.Module):
    """y = base(x) + scale · (dropout(x)·Aᵀ)·Bᵀ, in place of an nn.Linear or a GPT-2 Conv1D of the same parameter names.

    weight, bias: the layer's own, frozen. lora_A [r, in], lora_B [out, r] (zero at first: training starts at the base).
    transposed: weight is [in, out], as Conv1D keeps it.
    """

    def __init__(self, base: nn.Linear | Conv1D, *, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.transposed = isinstance(base, Conv1D)
        self.weight, self.bias = base.weight, base.bias
        self.in_features, self.out_features = base.weight.shape if self.transposed else base.weight.shape[::-1]
        self.rank, self.scale, self.enabled = rank, scale, True
        make = {"dtype": base.weight.dtype, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, **make))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, **make))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.t() if self.transposed else self.weight, self.bias)
        if self.enabled:
            y = y + F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B) * self.scale
        return y

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The weight, in its own layout, with the adapter added (summed in fp32, rounded once)."""
        return merge(self.weight, self.lora_A, self.lora_B, self.scale, self.transposed)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}, scale={self.scale:g}"


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float, transposed: bool) -> Tensor:
    """weight + scale·B·A in the weight's layout and dtype."""
    delta = scale * (b.float() @ a.float())
    return (weight.float() + (delta.t() if transposed else delta)).to(weight.dtype)


def convert_to_lora(model: nn.Module, config: LoraConfig) -> list[str]:
    """Freeze `model` and put adapters on its target layers; returns the adapted layers' names.

    Raises ConfigError when a target matches no layer, naming what there is.
    """
    candidates = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D) and "." in name
    }
    blocks, prefix = find_blocks(model)
    if config.targets == "auto":
        chosen = {name: layer for name, layer in candidates.items() if name.startswith(f"{prefix}.")}
    else:
        wanted = set(config.targets)
        chosen = {n: m for n, m in candidates.items() if n.rsplit(".", 1)[-1] in wanted or n in wanted}
        missing = wanted - {n.rsplit(".", 1)[-1] for n in chosen} - set(chosen)
        if missing:
            known = sorted({n.rsplit(".", 1)[-1] for n in candidates})
            raise ConfigError(
                f"lora.targets: this {type(model).__name__} has no linear layer named {', '.join(sorted(missing))}; "
                f"it has {', '.join(known)}."
            )
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name, layer in chosen.items():
        if layer is head:
            raise ConfigError(f"lora.targets: {name} is the output layer, which can't take an adapter; leave it out.")
    if not chosen:
        raise ConfigError(f"lora: no linear layer was found inside the {len(blocks)} blocks of {type(model).__name__}.")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, layer in chosen.items():
        parent_name, _, last = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, last, LoraLinear(layer, rank=config.rank, scale=config.scale, dropout=config.dropout))
    return list(chosen)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, `model` computes what its base did: the reference of DPO and PPO."""
    layers = list(lora_layers(model).values())
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the adapters' own tensors, under the names of the model before it was adapted."""
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in ("lora_A", "lora_B")}


def merged_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` (whole weights under the names of the adapted `model`) as the plain model's: adapters added and gone."""
    layers = lora_layers(model)
    merged = {}
    for name, tensor in state.items():
        owner, _, last = name.rpartition(".")
        if last in ("lora_A", "lora_B"):
            continue
        if owner in layers and last == "weight":
            layer = layers[owner]
            tensor = merge(tensor, state[f"{owner}.lora_A"], state[f"{owner}.lora_B"], layer.scale, layer.transposed)
        merged[name] = tensor
    return merged


def save_adapter(
    model: nn.Module, state: Mapping[str, Tensor], directory: Path, *, base: str, task: str = "CAUSAL_LM"
) -> None:
    """adapter_model.safetensors and adapter_config.json as PEFT reads them (peft.PeftModel.from_pretrained)."""
    layers = lora_layers(model)
    first = next(iter(layers.values()))
    tensors = {
        f"{PEFT_PREFIX}{name}.{part}.weight": state[f"{name}.{part}"].detach().cpu().contiguous().clone()
        for name in layers
        for part in ("lora_A", "lora_B")
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    dropout = first.dropout.p if isinstance(first.dropout, nn.Dropout) else 0.0
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base, "r": first.rank,
        "lora_alpha": first.scale * first.rank, "lora_dropout": dropout, "bias": "none", "inference_mode": True,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in layers}), "fan_in_fan_out": first.transposed,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
