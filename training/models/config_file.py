"""Reads a model's config.json as the installed transformers means it, also when a newer one wrote it.

transformers 5 writes the rotary settings as one `rope_parameters`, which transformers 4 stores and never reads: the
model then turns its positions by a base of 10,000 whatever the file says.
"""

from __future__ import annotations

import json
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from training.errors import ConfigError
from training.hub import hub_refusal
from training.models.families import FAMILIES, UNKNOWN

RENAMED = {"qwen3_moe": {"num_local_experts": "num_experts"}}
"""Keys that transformers 5 writes under another name, by model_type."""
OLD_TRANSFORMERS = int(transformers.__version__.split(".")[0]) < 5


def read_config(source: str, path: str) -> Any:
    """The transformers config of a folder or hub id. `path`: as the user wrote it.

    Raises ConfigError for an unknown architecture, a broken file or settings that this transformers can't express.
    """
    try:
        written, _ = PretrainedConfig.get_config_dict(source)
        kind = written.get("model_type")
        if kind not in CONFIG_MAPPING or not OLD_TRANSFORMERS:
            return AutoConfig.from_pretrained(source)
        return CONFIG_MAPPING[kind].from_dict(as_transformers_4(written))
    except (ValueError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        if refusal := hub_refusal(path, error):
            raise refusal from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(f"The model's config in {path} can't be used: {first}") from error


def as_transformers_4(written: dict[str, Any]) -> dict[str, Any]:
    """config.json of transformers 5 with transformers 4's keys; one that 4 wrote comes back as it is.

    Raises ValueError where transformers 4 has no words for it.
    """
    raw = dict(written)
    for name, part in raw.items():
        if isinstance(part, dict) and "model_type" in part:
            raw[name] = as_transformers_4(part)
    if "dtype" in raw:
        raw.setdefault("torch_dtype", raw.pop("dtype"))
        raw.pop("dtype", None)
    rope = raw.pop("rope_parameters", None)
    if not rope:
        return raw
    for new, old in RENAMED.get(raw.get("model_type", ""), {}).items():
        if new in raw:
            raw.setdefault(old, raw.pop(new))
    layers = raw.pop("layer_types", None)
    if layers:
        _layers(raw, layers)
    if all(isinstance(value, dict) or value is None for value in rope.values()):
        rope = _one_of(raw, rope)
    _rope(raw, dict(rope))
    return raw


def _rope(raw: dict[str, Any], rope: dict[str, Any]) -> None:
    """rope_theta, partial_rotary_factor and rope_scaling from the one dictionary."""
    row = FAMILIES.get(raw.get("model_type", ""), UNKNOWN)
    if (theta := rope.pop("rope_theta", None)) is not None:
        raw[row.rope_theta] = theta
    if (share := rope.pop("partial_rotary_factor", None)) is not None:
        raw[row.rope_share] = share
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    if kind == "default":
        raw["rope_scaling"] = None
        return
    if kind == "longrope" and "original_max_position_embeddings" in rope:
        raw.setdefault("original_max_position_embeddings", rope.pop("original_max_position_embeddings"))
    if raw.get("model_type") == "phi3":  # takes these three and nothing else
        rope.pop("original_max_position_embeddings", None)
        raw["rope_scaling"] = {"type": kind, "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}
        return
    raw["rope_scaling"] = {"rope_type": kind, **rope}


def _one_of(raw: dict[str, Any], by_layer: dict[str, Any]) -> dict[str, Any]:
    """The settings of full attention where each kind of layer has its own."""
    found = {name: rope for name, rope in by_layer.items() if rope}
    full = found.get("full_attention") or next(iter(found.values()))
    sliding = found.get("sliding_attention", full)
    if raw.get("model_type") in ("gemma3_text", "gemma3"):
        raw["rope_local_base_freq"] = sliding["rope_theta"]
    elif any(rope != full for rope in found.values()):
        raise ValueError(
            "each kind of layer has rotary positions of its own (rope_parameters), which transformers "
            f"{transformers.__version__} does not know for {raw.get('model_type')}"
        )
    return dict(full)


def _layers(raw: dict[str, Any], layers: list[str]) -> None:
    """Which layers see a window only, in the words of transformers 4."""
    kinds = set(layers)
    kind, count = raw.get("model_type"), len(layers)
    if kinds == {"full_attention"}:
        if kind in ("qwen2", "qwen3"):
            raw["use_sliding_window"] = False
        return
    first = layers.index("full_attention") if "full_attention" in kinds else count
    if kind in ("gemma3_text", "cohere2", "gemma2"):
        pattern = first + 1
        if layers == ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(count)]:
            if kind == "gemma2" and pattern != 2:
                raise ValueError("transformers 4 knows Gemma 2 with every other layer sliding only")
            raw["sliding_window_pattern"] = pattern
            return
    elif kind in ("qwen2", "qwen3"):
        full = len([layer for layer in layers if layer == "full_attention"])
        if layers == ["full_attention"] * full + ["sliding_attention"] * (count - full):
            raw["max_window_layers"] = full
            return
    elif kinds == {"sliding_attention"}:
        return
    raise ValueError(
        f"its layer_types mix {' and '.join(sorted(kinds))} in a way that transformers {transformers.__version__} does "
        f"not know for {kind}"
    )
