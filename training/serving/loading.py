"""Loads what is to be served: a language model (adapter merged, weights quantized) or a reward model, and its codec."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config.serving import ServeConfig
from training.data.template import TextCodec
from training.errors import ConfigError
from training.models.adapters import merge_adapter
from training.models.export import load_reward_model
from training.models.families import context_of, engine_context
from training.models.load import default_attention, load_causal_lm, load_config, resolve_model
from training.rollout import fuse_projections
from training.rollout.families import ENDLESS
from training.serving.quantize import is_quantized, load_quantized, quantize_model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LONGEST_DEFAULT = 4096


@dataclass(frozen=True)
class Served:
    """A model in memory, ready to answer. `max_length` counts prompt and completion."""

    model: Any
    codec: TextCodec
    name: str
    device: torch.device
    max_length: int
    reward: bool


def load_served(config: ServeConfig) -> Served:
    """Raises MissingInput or ConfigError with what to do."""
    if not config.model:
        raise ConfigError("serve needs a model: give `model: DIR` (or navarch-train serve --model DIR)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES.get(config.dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    source = resolve_model(config.model)
    facts = load_config(config.model)
    name = config.name or Path(source).resolve().name
    codec = TextCodec.load(config.model)
    reward = any("SequenceClassification" in kind for kind in facts.architectures or [])
    if reward:
        if config.quantize != "none" or config.adapter:
            raise ConfigError("a reward model is served as it is: leave out quantize and adapter")
        model: Any = load_reward_model(config.model, dtype=dtype, pad_id=codec.pad_id).eval().to(device)
    else:
        model = _language_model(config, source, facts, dtype).eval().to(device)
        if config.quantize != "none" and not is_quantized(source):
            quantize_model(model, 4 if config.quantize == "int4" else 8, config.group)
        fuse_projections(model)
    model.requires_grad_(False)
    context = (context_of(facts) if reward else engine_context(facts)) or ENDLESS
    if config.max_length is not None and config.max_length > context:
        raise ConfigError(f"max_length is {config.max_length}, but {config.model} has a context of {context} tokens")
    return Served(model, codec, name, device, config.max_length or min(context, LONGEST_DEFAULT), reward)


def _language_model(config: ServeConfig, source: str, facts: Any, dtype: torch.dtype) -> Any:
    if is_quantized(source):
        bits = json.loads((Path(source) / "navarch_quantization.json").read_text())["bits"]
        if config.quantize not in ("none", f"int{bits}"):
            raise ConfigError(f"{config.model} was quantized to int{bits} ahead: leave out quantize, or say int{bits}")
        if config.adapter:
            raise ConfigError("an adapter can't be merged into quantized weights: quantize the merged model instead")
        return load_quantized(source, dtype)
    model = load_causal_lm(config.model, dtype=dtype, attention=default_attention(facts))
    return merge_adapter(model, Path(config.adapter)) if config.adapter else model
